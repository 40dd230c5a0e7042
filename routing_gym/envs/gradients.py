"""Gradients that several processes share, and whether they are finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from routing_gym.blocks import PartlyUsed
from routing_gym.ranks import Ranks


def exchange_gradients(
    module: nn.Module, parameters: Sequence[nn.Parameter], ranks: Ranks, sound: Tensor, doubtful: Tensor | None = None
) -> Tensor:
    """Replace gradients by their means over ranks, and what has been used by what any rank has used, at once.

    Returns:
        0-dimensional bool: a loss was not `sound`, or a batch was `doubtful`, of any rank.
    """
    parts = [part for part in module.modules() if isinstance(part, PartlyUsed)]
    nobody = torch.zeros((), dtype=sound.dtype, device=sound.device)
    flags = [
        ~sound | (nobody if doubtful is None else doubtful),
        *(nobody.new_full((), p.grad is not None) for p in parameters),
    ]
    flags += [part.used if part.used is not None else nobody.expand(part.num_parts) for part in parts]
    flags += [nobody.new_full((), part.used is not None) for part in parts]
    grads = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        elif parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()
        grads.append(parameter.grad)
    told = torch.cat([flag.flatten() for flag in flags]).to(grads[0].dtype if grads else torch.get_default_dtype())
    ranks.sum_([told, *grads])
    doubt, has, *_ = (told > 0).split([1, len(parameters), len(told) - 1 - len(parameters)])
    used, noted = (told > 0)[1 + len(parameters) :].split([sum(p.num_parts for p in parts), len(parts)])
    for parameter, there in zip(parameters, has.tolist(), strict=True):
        parameter.grad = parameter.grad.div_(ranks.count) if there and parameter.grad is not None else None
    masks = used.split([part.num_parts for part in parts])
    for part, mask, there in zip(parts, masks, noted.tolist(), strict=True):
        part.used = mask if there else None
    return doubt[0]


def finite_gradients(parameters: Iterable[nn.Parameter], *others: Tensor) -> Tensor:
    """Whether all gradients, and some other 0-dimensional numbers, are finite: a 0-dimensional bool."""
    # A sum is not finite where one of its terms is not.
    terms = [*others, *(parameter.grad.sum() for parameter in parameters if parameter.grad is not None)]
    return torch.stack(terms).sum().isfinite() if terms else torch.tensor(True, device="cpu")
