"""Random numbers of agents: of one, or of several whose rows are routed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from routing_gym.ranks import Ranks


class Generators(torch.Generator):
    """The generators of several agents, for the rows of each in turn (`Population`); `drawn` knows of them."""

    parts: Sequence[torch.Generator]

    def __new__(cls, parts: Sequence[torch.Generator]) -> Self:
        """Generator on the device of the parts."""
        self = torch.Generator.__new__(cls, parts[0].device)  # type: ignore[call-arg]
        self.parts = parts
        return self


class OfRanks(torch.Generator):
    """A generator that every process of a group has, for the rows of a whole batch; `drawn` takes a process's own."""

    ranks: Ranks

    def __new__(cls, device: torch.device, ranks: Ranks) -> Self:
        """Generator on a device."""
        self = torch.Generator.__new__(cls, device)  # type: ignore[call-arg]
        self.ranks = ranks
        return self


def running_sums(probabilities: Tensor) -> Tensor:
    """Running sums `(..., A)` along the last axis."""
    if probabilities.is_cpu:
        return probabilities.cumsum(-1)
    # The only form in which CUDA adds up in the same order every time.
    size = probabilities.shape[-1]
    return probabilities @ torch.ones(size, size, dtype=probabilities.dtype, device=probabilities.device).triu()


def drawn(empty: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """Fill a tensor `(B, ...)` by one of its methods, `uniform_` say, and return it.

    Of the generators of S agents each fills B / S rows, with the numbers that it would give that agent alone. A process
    of several has its part of the numbers that one would draw for all rows.
    """
    if isinstance(generator, OfRanks):
        whole = torch.cat([empty] * generator.ranks.count)
        getattr(whole, how)(generator=generator)
        return empty.copy_(generator.ranks.own(whole))
    parts = generator.parts if isinstance(generator, Generators) else (generator,)
    for rows, own in zip(empty.chunk(len(parts)), parts, strict=True):
        getattr(rows, how)(generator=own)
    return empty
