"""k linear blocks of one shape as one stacked parameter, executed in one grouped product."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks.base import FunctionBlocks
from routing_gym.blocks.chain import Link, run_chain
from routing_gym.blocks.grouping import SortedRows, plain
from routing_gym.blocks.ownership import OwnedParameter
from routing_gym.tasks.checking import whole_number


class LinearBlocks(FunctionBlocks):
    """k linear layers `x @ weight[c] + bias[c]`, each optionally followed by a ReLU.

    Args:
        num_blocks: k.
        in_features: Width of the input.
        out_features: Width of the output.
        relu: Apply a ReLU to the output: it is part of the block, so that PASS leaves it out.

    Attributes:
        weight: `(k, in_features, out_features)`.
        bias: `(k, out_features)`.
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
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def run(self, x: Tensor, choice: Tensor) -> Tensor:
        """Run block `choice[i]` on row `x[i]`: `(B, in_features)` to `(B, out_features)`."""
        return plain(self.run_sorted(x, choice))

    def run_sorted(self, x: Tensor | SortedRows, choice: Tensor) -> Tensor | SortedRows:
        """Run block `choice[i]` on row i, and leave the output in the order of the blocks where that is natural."""
        return run_chain([self.link()], x, choice.unsqueeze(1))

    def link(self, *, passes: bool = False) -> Link:
        """Return the blocks as part of a chain, with PASS as one more choice if that is asked for."""
        return Link(self.weight, self.bias, self.relu, passes)

    def run_all(self, x: Tensor) -> Tensor:
        """Run every block on every row, `(B, in_features)` to `(B, k, out_features)`, as one batched product."""
        return self.run_each(x.unsqueeze(1).expand(-1, self.num_blocks, -1))

    def run_each(self, x: Tensor) -> Tensor:
        """Run every block on rows of its own, `(B, k, in_features)` to `(B, k, out_features)`."""
        y = torch.baddbmm(self.bias.unsqueeze(1), x.transpose(0, 1), self.weight).transpose(0, 1)
        return functional.relu(y) if self.relu else y

    def run_where(self, x: Tensor, where: Tensor) -> Tensor:
        """Run every block on some rows of its own, `(B, k, in_features)` to `(B, k, out_features)`.

        Args:
            x: What goes into each block.
            where: `(B, k)` bool: what is to be run; the rest is zeros.
        """
        if bool(where.all()):
            return self.run_each(x)
        row, block = where.nonzero(as_tuple=True)
        outputs = self.run(x[row, block], block)
        return outputs.new_zeros(*where.shape, self.out_features).index_put((row, block), outputs)

    def parameters_of(self, choice: int) -> list[OwnedParameter]:
        """Return the block's slices of the stacked weight and bias."""
        return [OwnedParameter(self.weight, choice), OwnedParameter(self.bias, choice)]

    def as_modules(self, choice: int) -> list[nn.Module]:
        """Return the block as a `torch.nn.Linear`, and a ReLU where it has one."""
        weight, bias = self.weight[choice].detach(), self.bias[choice].detach()
        linear = nn.utils.skip_init(
            nn.Linear, self.in_features, self.out_features, device=weight.device, dtype=weight.dtype
        )
        linear.load_state_dict({"weight": weight.t(), "bias": bias})
        return [linear, nn.ReLU()] if self.relu else [linear]

    def keep(self, kept: Sequence[int]) -> None:
        """Keep some slices of the stacked weight and bias."""
        self.weight, self.bias = (
            nn.Parameter(stack.detach()[list(kept)], stack.requires_grad) for stack in (self.weight, self.bias)
        )

    def extra_repr(self) -> str:
        """Describe the blocks in the module's printout."""
        return f"{self.num_blocks} x ({self.in_features} -> {self.out_features}), relu={self.relu}"
