"""Rows sorted by the block they use, on the host or on a device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LOWEST_TILE, HIGHEST_TILE = 16, 128
"""Rows of a tile."""


class Tiles(NamedTuple):
    """Sorted rows laid out in tiles of one height, each of one block, so that products have the same shape every time.

    There are ⌈B / height⌉ + k tiles: a block has at most one that is not full. Rows of no instance are zeros.
    """

    height: int
    place: Tensor
    """`(B,)` int64: row of each sorted row among those of all tiles."""
    block: Tensor
    """`(tiles,)` int64: block of each tile, ascending."""

    def laid_out(self, x: Tensor) -> Tensor:
        """Sorted rows `(B, n)` as `(tiles, height, n)`."""
        rows = x.new_zeros(len(self.block) * self.height, x.shape[1]).index_copy(0, self.place, x)
        return rows.view(len(self.block), self.height, -1)

    def products(self, x: Tensor, weight: Tensor) -> Tensor:
        """Products `(B, o)` of sorted rows `(B, i)` and their blocks' matrices, of `(k, i, o)`."""
        y = torch.bmm(self.laid_out(x), weight.index_select(0, self.block))
        return y.flatten(0, 1).index_select(0, self.place)

    def outer(self, x: Tensor, grad: Tensor, num_blocks: int) -> Tensor:
        """Products `(k, i, o)` of every block's rows of x `(B, i)`, transposed, and of grad `(B, o)`."""
        each = torch.bmm(self.laid_out(x).transpose(1, 2), self.laid_out(grad))
        # Not index_add, which adds up in another order every time.
        return each.new_zeros(num_blocks, *each.shape[1:]).index_put_((self.block,), each, accumulate=True)


class Groups(NamedTuple):
    """Rows sorted by the block they use; rows of one block keep their order."""

    order: Tensor
    """`(B,)` int64: position i of the sorted rows holds row `order[i]`."""
    inverse: Tensor
    """`(B,)` int64: row i stands at position `inverse[i]`."""
    block: Tensor
    """`(B,)` int64: block of each sorted row, ascending."""
    ends: Tensor
    """`(k,)` int32: end of each block's run of sorted rows."""
    tiles: Tiles | None = None
    """On a device that the host would wait for, to know how many rows a block has."""

    @property
    def counts(self) -> list[int]:
        """Rows per block, zeros included; read on the host."""
        ends = self.ends.tolist()
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def group(choice: Tensor, num_blocks: int) -> Groups:
    """Rows sorted by their block, `choice`: `(B,)` int64 in `[0, num_blocks)`."""
    return group_plan(choice.unsqueeze(1), [num_blocks])[0]


def group_plan(plan: Tensor, num_blocks: Sequence[int]) -> list[Groups]:
    """Rows sorted by each column of a plan `(B, L)` int64 in `[0, num_blocks[i])`; equal neighbours give one object."""
    if on_host(plan):
        return _group_on_host(plan.numpy().T, num_blocks)
    return [group_on_device(choice, number) for choice, number in zip(plan.unbind(1), num_blocks, strict=True)]


def _group_on_host(choices: np.ndarray, num_blocks: Sequence[int]) -> list[Groups]:
    """Groups by numpy, whose small steps cost a fraction of PyTorch's, of all choices `(L, B)` in each step."""
    most, (count, rows) = max(num_blocks), choices.shape
    # Stable sorting of short integers is a radix sort.
    choices = choices.astype(np.int16 if most <= np.iinfo(np.int16).max else np.int64, order="C")
    order = np.argsort(choices, axis=1, kind="stable")
    layer = np.arange(count)[:, None]
    place = (order + layer * rows).ravel()
    inverse = np.empty_like(place)
    inverse[place] = _counting(count, rows)
    block = choices.ravel()[place].astype(np.int64).reshape(order.shape)
    # Numbers that rise from layer to layer too: one search finds where the runs of all blocks end.
    ends = np.searchsorted((block + layer * most).ravel(), np.arange(count * most), side="right")
    ends = (ends.reshape(count, most) - layer * rows).astype(np.int32)
    tensors = (torch.from_numpy(array).unbind(0) for array in (order, inverse.reshape(order.shape), block, ends))
    layers = [Groups(*parts) for parts in zip(*tensors, strict=True)]
    layers = [groups._replace(ends=groups.ends[:k]) for groups, k in zip(layers, num_blocks, strict=True)]
    for number in range(1, count):
        if num_blocks[number] == num_blocks[number - 1] and np.array_equal(choices[number], choices[number - 1]):
            layers[number] = layers[number - 1]
    return layers


@lru_cache(maxsize=8)
def _counting(layers: int, rows: int) -> np.ndarray:
    """Numbers 0 … rows − 1, as often as there are layers."""
    return np.tile(np.arange(rows), layers)


def group_on_device(choice: Tensor, num_blocks: int) -> Groups:
    """Groups without a copy to the host."""
    block, order = choice.sort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    # Where the sorted runs end: unlike bincount, searchsorted needs no copy to the host on a GPU.
    blocks = torch.arange(num_blocks, device=block.device)
    ends = torch.searchsorted(block, blocks, right=True, out_int32=True)
    return Groups(order, inverse, block, ends, tiles_of(block, ends))


def tiles_of(block: Tensor, ends: Tensor) -> Tiles:
    """Tiles for sorted rows, given the block of each, `(B,)`, and where the run of each block ends, `(k,)`."""
    rows, num_blocks = len(block), len(ends)
    height = min(max(LOWEST_TILE, 1 << (rows // (4 * num_blocks)).bit_length()), HIGHEST_TILE)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    needed = (counts + height - 1) // height
    last = needed.cumsum(0)
    tiles = torch.arange(-(-rows // height) + num_blocks, device=block.device)
    of_tile = torch.searchsorted(last, tiles, right=True).clamp_(max=num_blocks - 1)
    # A row's place: its block's first tile, and how far it is behind the first row of its block.
    ahead = (last - needed) * height - (ends - counts)
    place = ahead.index_select(0, block) + torch.arange(rows, device=block.device)
    return Tiles(height, place, of_tile)


def on_host(x: Tensor) -> bool:
    """Whether numbers of x's can be read without waiting; not while `torch.compile` traces, which reads none."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
