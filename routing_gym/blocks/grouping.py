"""Bringing the rows that use the same block together, and back."""

from __future__ import annotations

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
        block: `(B,)` int64: the block of each sorted row, ascending.
        ends: `(k,)` int32: where each block's run of sorted rows ends.
    """

    order: Tensor
    inverse: Tensor
    block: Tensor
    ends: Tensor

    @property
    def counts(self) -> list[int]:
        """Rows per block, zeros included; copies to the host."""
        ends = self.ends.tolist()
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]


class SortedRows:
    """Rows left in the order of the blocks that made them, until someone asks for them in their own.

    The next layer gathers its rows from wherever they stand, so that between two layers rows move once, not twice.

    Args:
        rows: `(B, ...)` in some order.
        place: `(B,)` int64: row i stands at `rows[place[i]]`.
        back: `(B,)` int64, the inverse of `place`.
    """

    def __init__(self, rows: Tensor, place: Tensor, back: Tensor) -> None:
        self.rows, self.place, self.back = rows, place, back

    def in_order(self) -> Tensor:
        """Return the rows in their own order."""
        ordered = _Permute.apply(self.rows, self.place, self.back)
        assert isinstance(ordered, Tensor)
        return ordered

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return some rows, as `Tensor.index_select` does along the first axis."""
        return self.rows.index_select(dim, self.place.index_select(0, index))


def plain(rows: Tensor | SortedRows) -> Tensor:
    """Return rows in their own order."""
    return rows if isinstance(rows, Tensor) else rows.in_order()


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


def group(choice: Tensor, num_blocks: int) -> Groups | int:
    """Sort rows by their block.

    Args:
        choice: `(B,)` int64 in `[0, num_blocks)`.
        num_blocks: k.

    Returns:
        The groups; on a CPU, where every row uses one block, the number of that block.
    """
    if choice.device.type == "cpu":
        return _group_on_host(choice.numpy(), num_blocks)
    return group_on_device(choice, num_blocks)


def _group_on_host(choice: np.ndarray, num_blocks: int) -> Groups | int:
    """Group with numpy, whose many small steps cost a fraction of PyTorch's."""
    counts = np.bincount(choice, minlength=num_blocks)
    most = int(counts.argmax())
    if len(choice) and counts[most] == len(choice):
        return most
    # Stable sorting of short integers is a radix sort.
    order = np.argsort(choice.astype(np.int16 if num_blocks <= np.iinfo(np.int16).max else np.int64), kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    arrays = order, inverse, choice[order], counts.cumsum().astype(np.int32)
    return Groups(*map(torch.from_numpy, arrays))


def group_on_device(choice: Tensor, num_blocks: int) -> Groups:
    """Group without a copy to the host."""
    block, order = choice.sort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    # Where the sorted runs end: unlike bincount, searchsorted needs no copy to the host on a GPU.
    blocks = torch.arange(num_blocks, device=block.device)
    ends = torch.searchsorted(block, blocks, right=True, out_int32=True)
    return Groups(order, inverse, block, ends)
