"""k linear blocks of one shape as one stacked parameter, executed in one grouped product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from routing_gym.blocks.base import FunctionBlocks, OwnedParameter
from routing_gym.blocks.grouping import Groups, SortedRows, group, group_plan, plain

GROUPED_DTYPES = (torch.float32, torch.bfloat16)
ALIGNMENT_BYTES = 16
MANY_ROWS = 128
"""Rows per block from which on, on a CPU, one call per block is worth its overhead."""


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
        if in_features < 1 or out_features < 1:
            raise ValueError(f"linear blocks need at least one feature each way, got {in_features} -> {out_features}")
        self.in_features, self.out_features, self.relu = in_features, out_features, relu
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
        return run_chain([self], x, choice.unsqueeze(1))

    def run_one_by_one(self, x: Tensor, choice: Tensor) -> Tensor:
        """Do what `run` does, one product per block: for zero rows and float64, which `grouped_mm` refuses."""
        groups = group(choice, self.num_blocks)
        pieces = x.index_select(0, groups.order).split(groups.counts)
        products = [
            torch.addmm(bias, piece, weight)
            for piece, weight, bias in zip(pieces, self.weight.unbind(0), self.bias.unbind(0), strict=True)
        ]
        y = torch.cat(products).index_select(0, groups.inverse)
        return functional.relu(y) if self.relu else y

    def run_all(self, x: Tensor) -> Tensor:
        """Run every block on every row, `(B, in_features)` to `(B, k, out_features)`, as one batched product."""
        return self.run_each(x.unsqueeze(1).expand(-1, self.num_blocks, -1))

    def run_each(self, x: Tensor) -> Tensor:
        """Run every block on rows of its own, `(B, k, in_features)` to `(B, k, out_features)`."""
        y = torch.baddbmm(self.bias.unsqueeze(1), x.transpose(0, 1), self.weight).transpose(0, 1)
        return functional.relu(y) if self.relu else y

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
        self.weight, self.bias = (nn.Parameter(stack.detach()[list(kept)]) for stack in (self.weight, self.bias))

    def extra_repr(self) -> str:
        """Describe the blocks in the module's printout."""
        return f"{self.num_blocks} x ({self.in_features} -> {self.out_features}), relu={self.relu}"


def run_chain(banks: Sequence[LinearBlocks], x: Tensor | SortedRows, plan: Tensor) -> Tensor | SortedRows:
    """Run linear blocks one after the other, by choices that are all known beforehand.

    Args:
        banks: L sets of blocks, the outputs of each as wide as the inputs of the next.
        x: `(B, in_features)`.
        plan: `(B, L)` int64: the block of each row in each set.

    Returns:
        `(B, out_features)`, in the order of the last set's blocks where that is natural.
    """
    if banks[0].weight.dtype not in GROUPED_DTYPES or not len(plan):
        y = plain(x)
        for number, bank in enumerate(banks):
            y = bank.run_one_by_one(y, plan[:, number])
        return y
    layers = group_plan(plan, [bank.num_blocks for bank in banks])
    rows, place, back = (x.rows, x.place, x.back) if isinstance(x, SortedRows) else (x, None, None)
    moves: list[tuple[Tensor, Tensor] | None] = []
    for groups in layers:
        # From where the rows stand now to the order of the blocks, and back.
        if place is None or back is None:
            moves.append((groups.order, groups.inverse))
        elif back is groups.order:
            moves.append(None)
        else:
            moves.append((place.index_select(0, groups.order), groups.inverse.index_select(0, back)))
        place, back = groups.inverse, groups.order
    parameters = [parameter for bank in banks for parameter in (bank.weight, bank.bias)]
    y = _Chain.apply(rows, layers, moves, [bank.relu for bank in banks], *parameters)
    assert isinstance(y, Tensor)
    return SortedRows(y, layers[-1].inverse, layers[-1].order)


class _Chain(torch.autograd.Function):
    """Layer by layer: gather rows by block, multiply every run by its block's weight, add bias and rectify.

    As one function so that going back is one permutation and two grouped products per layer, without the zero-filled
    buffers and scattered additions that differentiating an `index_select` would cost, and so that of every layer only
    its gathered input is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layers: list[Groups],
        moves: list[tuple[Tensor, Tensor] | None],
        relu: list[bool],
        *parameters: Tensor,
    ) -> Tensor:
        inputs = []
        for number, groups in enumerate(layers):
            move = moves[number]
            x = x if move is None else x.index_select(0, move[0])
            inputs.append(x)
            x = _affine(x, parameters[2 * number], parameters[2 * number + 1], groups)
            if relu[number]:
                x = x.relu_()
        ctx.save_for_backward(x if relu[-1] else None, *inputs, *parameters[::2])
        ctx.layers, ctx.moves, ctx.relu = layers, moves, relu
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layers, moves = ctx.layers, ctx.moves
        y, *saved = ctx.saved_tensors
        inputs, weights = saved[: len(layers)], saved[len(layers) :]
        to_parameters: list[Tensor | None] = [None] * (2 * len(layers))
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        grad = grad.contiguous()
        for number in reversed(range(len(layers))):
            groups, x, weight = layers[number], inputs[number], weights[number]
            wanted = ctx.needs_input_grad[4 + 2 * number : 6 + 2 * number]
            if wanted[0]:
                to_parameters[2 * number] = _grouped_outer(x, grad, groups.ends)
            if wanted[1]:
                to_parameters[2 * number + 1] = grad.new_zeros(len(weight), grad.shape[1]).index_add_(
                    0, groups.block, grad
                )
            if not (ctx.needs_input_grad[0] or any(ctx.needs_input_grad[4 : 4 + 2 * number])):
                return None, None, None, None, *to_parameters
            grad = _grouped_mm(grad, weight.transpose(1, 2), groups.ends)
            if number and ctx.relu[number - 1]:
                # The input is the rectified output of the layer before, gathered.
                grad = torch.ops.aten.threshold_backward(grad, x, 0)
            move = moves[number]
            grad = grad if move is None else grad.index_select(0, move[1])
        return grad, None, None, None, *to_parameters


def _affine(x: Tensor, weight: Tensor, bias: Tensor, groups: Groups) -> Tensor:
    """Return `x @ weight[c] + bias[c]` for rows sorted by their block c."""
    if x.device.type != "cpu" or len(x) < MANY_ROWS * len(weight):
        return _grouped_mm(x, weight, groups.ends).add_(bias.index_select(0, groups.block))
    # A bias gathered for every row costs more than a call per block that adds it on the way.
    y = x.new_empty(len(x), weight.shape[2])
    counts = groups.counts
    parts = zip(bias.unbind(0), x.split(counts), weight.unbind(0), y.split(counts), strict=True)
    for own_bias, rows, own_weight, out in parts:
        torch.addmm(own_bias, rows, own_weight, out=out)
    return y


def _grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each run of rows by its own matrix: `(B, i)` and `(k, i, o)` to `(B, o)`; runs end at `ends`."""
    inputs, outputs = weight.shape[1:]
    # grouped_mm wants rows that start at multiples of 16 bytes.
    step = ALIGNMENT_BYTES // x.element_size()
    pad_in, pad_out = -inputs % step, -outputs % step
    if pad_in or pad_out:
        x, weight = functional.pad(x, (0, pad_in)), functional.pad(weight, (0, pad_out, 0, pad_in))
    y = functional.grouped_mm(x, weight, offs=ends)
    return y[:, :outputs] if pad_out else y


def _grouped_outer(x: Tensor, grad: Tensor, ends: Tensor) -> Tensor:
    """Multiply each run of x, transposed, by the run of grad: `(B, i)` and `(B, o)` to `(k, i, o)`."""
    inputs, outputs = x.shape[1], grad.shape[1]
    step = ALIGNMENT_BYTES // x.element_size()
    pad_in, pad_out = -inputs % step, -outputs % step
    if pad_in or pad_out:
        x, grad = functional.pad(x, (0, pad_in)), functional.pad(grad, (0, pad_out))
    product = functional.grouped_mm(x.t(), grad, offs=ends)
    return product[:, :inputs, :outputs] if pad_in or pad_out else product
