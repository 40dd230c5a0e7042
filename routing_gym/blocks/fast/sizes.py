"""Modules run on any number of rows as batches of a few sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 128
"""Most rows that run at once, whole batches apart: what they compute stays in the caches of a CPU."""


def in_few_sizes(module: nn.Module, inputs: Sequence[Tensor], *, whole: bool) -> tuple[Tensor, ...]:
    """Outputs of a module for rows that are filled up with zeros to one of a few numbers of rows.

    Routing hands a block another number of rows every time. A library of convolutions prepares itself for every size of
    a batch it has not seen lately, which takes longer than a small batch itself.

    Args:
        module: Called as `module(*inputs, rows=r)`; gives a tuple of tensors of the first r rows, all where r is None.
        inputs: Tensors with the same number of rows.
        whole: Run all rows as one batch, for modules in which rows meet (batch norm while training).
    """
    count = len(inputs[0])
    if inputs[0].device.type != "cpu":
        return module(*inputs, rows=None)
    if whole or count <= LARGEST:
        return _filled_up(module, inputs)
    pieces = [_filled_up(module, piece) for piece in zip(*(x.split(LARGEST) for x in inputs), strict=True)]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def _filled_up(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    count = len(inputs[0])
    missing = _size_for(count) - count
    if not missing:
        return module(*inputs, rows=None)
    return module(*(functional.pad(x, (0, 0) * (x.ndim - 1) + (0, missing)) for x in inputs), rows=count)


def _size_for(count: int) -> int:
    """The next size: up to 4 all, then 6, 8, 12, 16, 24, 32, ...: never more than half as much again."""
    size = 1 << max(count - 1, 0).bit_length()
    return 3 * size // 4 if size > 2 and count <= 3 * size // 4 else size
