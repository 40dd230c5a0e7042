"""Rows of a batch: taken out and put back, run block by block, and filled up to batches of a few sizes.

Images whose channels are last in memory stay so: `index_select` alone would put their channels first, and pooling is
ten times as slow then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks.base import FunctionBlocks, weighed
from routing_gym.blocks.fast.groups import group

LARGEST = 128
"""Most rows that run at once, whole batches apart: what they compute stays in the caches of a CPU."""


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows `x[rows]`."""
    if channels_are_last(x):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


def put_rows(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Copy of x with other values in some rows."""
    dtype = torch.promote_types(x.dtype, values.dtype)  # under autocast blocks give what is not the type of x
    x, values = x.to(dtype), values.to(dtype)
    if channels_are_last(x):
        return x.permute(0, 2, 3, 1).index_copy(0, rows, values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x.index_copy(0, rows, values)


def put_rows_(x: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write other values into some rows of x itself."""
    if channels_are_last(x):
        x, values = x.permute(0, 2, 3, 1), values.permute(0, 2, 3, 1)
    x.index_copy_(0, rows, values.to(x.dtype))


def channels_are_last(x: Tensor) -> bool:
    """Whether rows are images with their channels last in memory, and only so."""
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


class BlockByBlock(FunctionBlocks):
    """Bank that calls `run_block` once for each block that has rows; images keep their layout in memory."""

    output_shape: tuple[int, ...]
    """Shape of one row's output."""

    def run(self, x: Tensor, choice: Tensor) -> Tensor:
        """See `FunctionBlocks.run`; no row moves where all choose one block."""
        if not len(x):
            return x.new_zeros(0, *self.output_shape)
        groups = group(choice, self.num_blocks)
        counts = groups.counts
        most = max(range(self.num_blocks), key=counts.__getitem__)
        if counts[most] == len(x):
            return self.run_block(x, most)
        pieces = take_rows(x, groups.order).split(counts)
        y = torch.cat([self.run_block(piece, number) for number, piece in enumerate(pieces) if len(piece)])
        return take_rows(y, groups.inverse)

    def mix(self, x: Tensor, rows: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
        """See `FunctionBlocks.mix`; every block's rows are added to the sum as soon as it has run."""
        rows, choice, weights = self.weighty(x, rows, choice, weights)
        groups = group(choice, self.num_blocks)
        own_rows, own_weights = (part[groups.order].split(groups.counts) for part in (rows, weights))
        # Sums over rows are fastest where a row lies in one piece.
        turned = channels_are_last(x) and len(self.output_shape) == 3
        total = None
        for number, (own, weight) in enumerate(zip(own_rows, own_weights, strict=True)):
            if not len(own):
                continue
            y = weighed(self.run_block(take_rows(x, own), number), weight)
            y = y.permute(0, 2, 3, 1) if turned else y
            total = y.new_zeros(len(x), *y.shape[1:]) if total is None else total
            total = total.index_add_(0, own, y)
        if total is None:
            return x.new_zeros(len(x), *self.output_shape) + weights.sum()  # of none: 0, with a graph
        return total.permute(0, 3, 1, 2) if turned else total

    def mix_all(self, x: Tensor, weights: Tensor) -> Tensor:
        """See `FunctionBlocks.mix_all`; side by side the outputs would take k times the memory."""
        products = (weighed(self.run_block(x, number), weight) for number, weight in enumerate(weights.unbind(1)))
        return sum(products, next(products))


def in_few_sizes(module: nn.Module, inputs: Sequence[Tensor], *, whole: bool) -> tuple[Tensor, ...]:
    """Outputs of a module for inputs filled up with zeros to one of a few numbers of rows.

    Routing hands a block another number of rows every time. A library of convolutions prepares itself for every size of
    a batch it has not seen lately, which takes longer than a small batch itself. The module is called as
    `module(*inputs, rows=r)` and gives a tuple of tensors of the first r rows, all where r is None. `whole` runs all
    rows as one batch, for modules in which rows meet (batch norm while training).
    """
    count = len(inputs[0])
    if inputs[0].device.type != "cpu":
        return module(*inputs, rows=None)
    if whole or count <= LARGEST:
        return _filled_up(module, inputs)
    pieces = [_filled_up(module, piece) for piece in zip(*(x.split(LARGEST) for x in inputs), strict=True)]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def _filled_up(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Outputs for the next size: up to 4 all, then 6, 8, 12, 16, 24, 32, ...: never more than half as much again."""
    count = len(inputs[0])
    size = 1 << max(count - 1, 0).bit_length()
    size = 3 * size // 4 if size > 2 and count <= 3 * size // 4 else size
    if size == count:
        return module(*inputs, rows=None)
    return module(*(functional.pad(x, (0, 0) * (x.ndim - 1) + (0, size - count)) for x in inputs), rows=count)
