"""Products of sorted rows with the matrices of their blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.blocks.fast.groups import Groups, on_host

GROUPED_DTYPES = (torch.float32, torch.bfloat16)
ALIGNMENT_BYTES = 16
MANY_ROWS = 128
"""Rows per block from which on, on a CPU, one call per block is worth its overhead."""
FEW_NUMBERS = 8192
"""Numbers copied per block up to which, on a CPU, one padded product is faster than a product for every block."""
PADS = ContextVar("pads", default=True)
"""Whether products may be padded: not where somebody counts their multiply-accumulates."""


def affine(x: Tensor, weight: Tensor, bias: Tensor, groups: Groups) -> Tensor:
    """Outputs `x @ weight[c] + bias[c]` for rows sorted by their block c."""
    if not on_host(x) or (len(x) < MANY_ROWS * len(weight) and x.dtype in GROUPED_DTYPES):
        return products(x, weight, groups).add_(bias.index_select(0, groups.block))
    # A bias gathered for every row costs more than a call per block that adds it on the way.
    y = x.new_empty(len(x), weight.shape[2])
    for block, rows in _runs(groups.ends):
        torch.addmm(bias[block], x[rows], weight[block], out=y[rows])
    return y


def products(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """Products `(B, o)` of each run of sorted rows `(B, i)` and its own matrix, `(k, i, o)`."""
    inputs, outputs = weight.shape[1:]
    ends, tiles = groups.ends, groups.tiles
    if tiles is not None and not _grouped_is_free(x):
        return tiles.products(x, weight)
    pad_in, pad_out = _missing(inputs, x), _missing(outputs, x)
    copied = weight.numel() * (pad_in + pad_out > 0) + x.numel() * (pad_in > 0)
    if _goes_by_block(x, copied, len(weight)):
        y = x.new_empty(len(x), outputs)
        for block, rows in _runs(ends):
            torch.mm(x[rows], weight[block], out=y[rows])
        return y
    if pad_in or pad_out:
        x, weight = functional.pad(x, (0, pad_in)), functional.pad(weight, (0, pad_out, 0, pad_in))
    y = functional.grouped_mm(x, weight, offs=ends)
    return y[:, :outputs] if pad_out else y


def outer_products(x: Tensor, grad: Tensor, groups: Groups) -> Tensor:
    """Products `(k, i, o)` of each run of sorted x `(B, i)`, transposed, and the run of grad `(B, o)`."""
    inputs, outputs = x.shape[1], grad.shape[1]
    ends, tiles = groups.ends, groups.tiles
    if tiles is not None and not _grouped_is_free(x):
        return tiles.outer(x, grad, len(ends))
    pad_in, pad_out = _missing(inputs, x), _missing(outputs, x)
    copied = (x.numel() + len(ends) * inputs * outputs) * (pad_in > 0) + grad.numel() * (pad_out > 0)
    if _goes_by_block(x, copied, len(ends)):
        product = x.new_zeros(len(ends), inputs, outputs)
        for block, rows in _runs(ends):
            torch.mm(x[rows].t(), grad[rows], out=product[block])
        return product
    if pad_in or pad_out:
        x, grad = functional.pad(x, (0, pad_in)), functional.pad(grad, (0, pad_out))
    product = functional.grouped_mm(x.t(), grad, offs=ends)
    return product[:, :inputs, :outputs] if pad_in or pad_out else product


def _grouped_is_free(x: Tensor) -> bool:
    """Whether `grouped_mm` neither waits for the groups' sizes nor goes wrong on empty ones: in bfloat16 on an H100.

    Everywhere else it is a loop over the groups; on a B200 gradients of empty groups hold anything (PyTorch 2.13).
    """
    return x.dtype == torch.bfloat16 and x.is_cuda and _capability(x.device) == (9, 0)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if torch.version.cuda else (0, 0)


def _goes_by_block(x: Tensor, copied: int, num_blocks: int) -> bool:
    """Whether to run a product per block: of what `grouped_mm` refuses, and on a CPU where padding copies much."""
    dear = copied > FEW_NUMBERS * num_blocks or (copied > 0 and not PADS.get())
    return not len(x) or x.dtype not in GROUPED_DTYPES or (dear and on_host(x))


def _missing(width: int, like: Tensor) -> int:
    """Number of columns missing for rows to start at multiples of 16 bytes, as `grouped_mm` wants them."""
    return -width % (ALIGNMENT_BYTES // like.element_size())


def _runs(ends: Tensor) -> Iterator[tuple[int, slice]]:
    """Every block that has rows, and which; read on the host."""
    start = 0
    for block, end in enumerate(ends.tolist()):
        if end > start:
            yield block, slice(start, end)
        start = end
