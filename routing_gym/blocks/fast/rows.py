"""Taking rows out of a batch and putting them back, images whose channels are last in memory as such.

`index_select` alone would put their channels first, and pooling is ten times as slow then.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
