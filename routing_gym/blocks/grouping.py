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
        counts: `(k,)` int64: rows per block, zeros included.
    """

    order: Tensor
    inverse: Tensor
    block: Tensor
    counts: Tensor


def group(choice: Tensor, num_blocks: int) -> Groups:
    """Sort rows by their block; no copy to the host.

    Args:
        choice: `(B,)` int64 in `[0, num_blocks)`.
        num_blocks: k.
    """
    block, order = choice.sort(stable=True)
    positions = torch.arange(len(order), device=order.device)
    inverse = torch.empty_like(order).scatter_(0, order, positions)
    # Bounds of the sorted runs: unlike bincount, searchsorted needs no copy to the host on a GPU.
    bounds = torch.searchsorted(block, torch.arange(num_blocks + 1, device=block.device))
    return Groups(order, inverse, block, bounds.diff())


def only_choice(choice: Tensor) -> int | None:
    """Return the block that every row uses, or None where they differ.

    Reading the answer would make a GPU wait, so there it is always None.
    """
    if choice.device.type != "cpu" or not len(choice):
        return None
    first = int(choice[0])
    return first if bool((choice == first).all()) else None
