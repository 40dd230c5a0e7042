"""Bank of linear blocks as one stacked parameter, executed in one grouped product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from routing_gym.blocks.base import FunctionBlocks, OwnedParameter
from routing_gym.blocks.fast.chain import Link, plain, run_chain
from routing_gym.blocks.fast.mixture import mix_rows
from routing_gym.tasks.checking import whole_number


class LinearBlocks(FunctionBlocks):
    """k linear layers `x @ weight[c] + bias[c]`, with `relu` each followed by a ReLU, which PASS leaves out.

    `weight` is `(k, in_features, out_features)`, `bias` `(k, out_features)`.
    """

    def __init__(self, num_blocks: int, in_features: int, out_features: int, *, relu: bool = False) -> None:
        super().__init__(num_blocks)
        self.in_features = in_features = whole_number("in_features of linear blocks", in_features)
        self.out_features = out_features = whole_number("out_features of linear blocks", out_features)
        self.relu = relu
        self.macs = (float(in_features * out_features),) * num_blocks
        self.weight = nn.Parameter(torch.empty(num_blocks, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(num_blocks, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every block as `torch.nn.Linear` draws a layer."""
        bound = 1 / math.sqrt(self.in_features)
        for stack in (self.weight, self.bias):
            nn.init.uniform_(stack, -bound, bound)

    def run_block(self, x: Tensor, number: int) -> Tensor:
        """Outputs `(r, out_features)` of one block."""
        y = torch.addmm(self.bias[number], x, self.weight[number])
        return functional.relu(y) if self.relu else y

    def run_own(self, x: Tensor, choice: Tensor) -> Tensor:
        """As `run`, every row times a copy of its block's weight, so that no value says what is computed."""
        weight, bias = self.weight.index_select(0, choice), self.bias.index_select(0, choice)
        y = torch.baddbmm(bias.unsqueeze(1), x.unsqueeze(1), weight).squeeze(1)
        return functional.relu(y) if self.relu else y

    def run(self, x: Tensor, choice: Tensor) -> Tensor:
        """See `FunctionBlocks.run`; as a chain of one link."""
        return plain(run_chain([self.link()], x, choice.unsqueeze(1)))

    def run_each(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        """See `FunctionBlocks.run_each`; all blocks as one batched product."""
        host = x.is_cpu and not self.runs_all
        if where is not None and host and not bool(where.all()):
            return super().run_each(x, where)
        x = repeated(x, self.num_blocks // x.shape[1])
        y = torch.baddbmm(self.bias.unsqueeze(1), x.transpose(0, 1), self.weight).transpose(0, 1)
        y = functional.relu(y) if self.relu else y
        # On a GPU what is not wanted is run, too, and thrown away: the host need not wait.
        return y if where is None or host else y.masked_fill(~where.unsqueeze(-1), 0)

    def mix(self, x: Tensor, rows: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
        """See `FunctionBlocks.mix`; outputs are added up wherever they stand."""
        if type(self).run is not LinearBlocks.run:
            return super().mix(x, rows, choice, weights)
        return mix_rows(self.link(), x, *self.weighty(x, rows, choice, weights))

    def mixes_all(self, weights: Tensor) -> bool:
        """On a GPU in any case: one batched product takes less than waiting to know which weights are 0."""
        return not weights.is_cpu or super().mixes_all(weights)

    @property
    def mergeable(self) -> bool:
        """Always."""
        return True

    def merge(self, x: Tensor, weights: Tensor) -> Tensor:
        """See `FunctionBlocks.merge`; x Σ_c w_c W_c is computed as Σ_c w_c (x W_c): nothing is stored by row."""
        each = torch.baddbmm(self.bias.unsqueeze(1), x.expand(self.num_blocks, *x.shape), self.weight)
        y = torch.einsum("kbo,bk->bo", each, weights)
        return functional.relu(y) if self.relu else y

    def mix_all(self, x: Tensor, weights: Tensor) -> Tensor:
        """See `FunctionBlocks.mix_all`."""
        return torch.einsum("bk...,bk->b...", self.run_each(x.unsqueeze(1)), weights)

    def link(self, some: Tensor | None = None, *, passes: bool = False) -> Link:
        """Link of a chain, see `run_chain`; `passes` adds PASS as the last choice.

        Of `some` blocks `(V,)`, each once and in order, gradients are sparse: nothing is as large as the whole stack.
        """
        if some is None:
            return Link(self.weight, self.bias, self.relu, passes)
        return Link(some_of(self.weight, some), some_of(self.bias, some), self.relu, passes)

    def parameters_of(self, choice: int) -> list[OwnedParameter]:
        """The block's slices of the stacked weight and bias."""
        return [OwnedParameter(self.weight, choice), OwnedParameter(self.bias, choice)]

    def as_modules(self, choice: int) -> list[nn.Module]:
        """The block as a `torch.nn.Linear`, and a ReLU where it has one."""
        weight, bias = self.weight[choice].detach(), self.bias[choice].detach()
        features = self.in_features, self.out_features
        linear = nn.utils.skip_init(nn.Linear, *features, device=weight.device, dtype=weight.dtype)
        linear.load_state_dict({"weight": weight.t(), "bias": bias})
        return [linear, nn.ReLU()] if self.relu else [linear]

    def keep(self, kept: Sequence[int]) -> None:
        """Keep some slices of the stacked weight and bias."""
        for name, stack in (("weight", self.weight), ("bias", self.bias)):
            setattr(self, name, nn.Parameter(stack.detach()[list(kept)], stack.requires_grad))

    def extra_repr(self) -> str:
        """Sizes in the module's printout."""
        return f"{self.num_blocks} x ({self.in_features} -> {self.out_features}), relu={self.relu}"


def some_of(stack: Tensor, some: Tensor) -> Tensor:
    """Slices `(V, ...)` of a stack, `some (V,)`, each once and in order; their gradient is sparse."""
    slices = _Some.apply(stack, some)
    assert isinstance(slices, Tensor)
    return slices


class _Some(torch.autograd.Function):
    """Some slices of a stack, each once and in order, with a sparse gradient."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, some: Tensor) -> Tensor:
        ctx.some, ctx.shape = some, stack.shape
        return stack.index_select(0, some)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values = grad.flatten().view(grad.shape)  # in one piece, strides included: PyTorch adds them up as if they were
        return torch.sparse_coo_tensor(
            ctx.some.unsqueeze(0), values, ctx.shape, check_invariants=False, is_coalesced=True
        ), None


def repeated(x: Tensor, times: int) -> Tensor:
    """Tensors `(B, g * times, ...)`, each of `(B, g, ...)` as often in a row; a view where g or `times` is 1."""
    return x if times == 1 else x.unsqueeze(2).expand(-1, -1, times, *x.shape[2:]).flatten(1, 2)
