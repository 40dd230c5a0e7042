"""Rows sorted by their block, and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Groups(NamedTuple):
    """Rows sorted by the block they use.

    Attributes:
        order: `(B,)` int64: position i of the sorted rows holds row `order[i]`; rows of one block keep their order.
        inverse: `(B,)` int64: row i stands at position `inverse[i]`.
        block: `(B,)` int64: block of each sorted row, ascending.
        ends: `(k,)` int32: end of each block's run of sorted rows.
    """

    order: Tensor
    inverse: Tensor
    block: Tensor
    ends: Tensor

    @property
    def counts(self) -> list[int]:
        """Rows per block, zeros included; read on the host."""
        ends = self.ends.tolist()
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]


class SortedRows:
    """Rows `(B, ...)` left in the order of the blocks that made them, until someone asks for them in their own.

    The next layer gathers its rows from wherever they stand, so that between two layers rows move once, not twice. Row
    i stands at `rows[place[i]]`; `place` is `(B,)` int64, and `back` its inverse.
    """

    def __init__(self, rows: Tensor, place: Tensor, back: Tensor) -> None:
        self.rows, self.place, self.back = rows, place, back

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Some rows, as of `Tensor.index_select` along the first axis."""
        return self.rows.index_select(dim, self.place.index_select(0, index))


def plain(rows: Tensor | SortedRows) -> Tensor:
    """Rows in their own order."""
    if isinstance(rows, SortedRows):
        rows = _Permute.apply(rows.rows, rows.place, rows.back)
        assert isinstance(rows, Tensor)
    return rows


class _Permute(torch.autograd.Function):
    """Reorder rows; going back is reordering them the other way, without the scattered sum of `index_select`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return rows.index_select(0, place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.index_select(0, ctx.back), None, None


def group(choice: Tensor, num_blocks: int) -> Groups:
    """Rows sorted by their block, `choice`: `(B,)` int64 in `[0, num_blocks)`."""
    return group_plan(choice.unsqueeze(1), [num_blocks])[0]


def group_plan(plan: Tensor, num_blocks: Sequence[int]) -> list[Groups]:
    """Rows sorted by each column of a plan `(B, L)` int64 in `[0, num_blocks[i])`; equal neighbours give one object."""
    if plan.device.type == "cpu":
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
    """Numbers 0 … rows − 1, `(layers, rows)`."""
    return np.tile(np.arange(rows), layers)


def group_on_device(choice: Tensor, num_blocks: int) -> Groups:
    """Groups without a copy to the host."""
    block, order = choice.sort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    # Where the sorted runs end: unlike bincount, searchsorted needs no copy to the host on a GPU.
    blocks = torch.arange(num_blocks, device=block.device)
    ends = torch.searchsorted(block, blocks, right=True, out_int32=True)
    return Groups(order, inverse, block, ends)
