"""Bringing the rows that use the same block together, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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


def group(choice: Tensor, num_blocks: int) -> Groups:
    """Sort rows by their block; no copy to the host.

    Args:
        choice: `(B,)` int64 in `[0, num_blocks)`.
        num_blocks: k.
    """
    block, order = choice.sort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    # Where the sorted runs end: unlike bincount, searchsorted needs no copy to the host on a GPU.
    blocks = torch.arange(num_blocks, device=block.device)
    ends = torch.searchsorted(block, blocks, right=True, out_int32=True)
    return Groups(order, inverse, block, ends)


def only_choice(choice: Tensor) -> int | None:
    """Return the block that every row uses, or None where they differ.

    Reading the answer would make a GPU wait, so there it is always None.
    """
    if choice.device.type != "cpu" or not len(choice):
        return None
    first = int(choice[0])
    return first if bool((choice == first).all()) else None
