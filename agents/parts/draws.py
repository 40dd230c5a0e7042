"""Random numbers of agents: of one, or of several whose rows are routed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from routing_gym.ranks import Ranks


class Generators(torch.Generator):
    """The generators of several agents, for the rows of each in turn (`Population`); `drawn` knows of them."""

    parts: Sequence[torch.Generator]
    sharing = False
    expected: Tensor | None = None

    def __new__(cls, parts: Sequence[torch.Generator]) -> Self:
        """Generator on the device of the parts."""
        self = torch.Generator.__new__(cls, parts[0].device)  # type: ignore[call-arg]
        self.parts = parts
        return self


class OfRanks(torch.Generator):
    """A generator that every process of a group has; in a batch they share `drawn` gives each its part of a draw."""

    ranks: Ranks
    sharing = False
    expected: Tensor | None = None

    def __new__(cls, device: torch.device, ranks: Ranks) -> Self:
        """Generator on a device."""
        self = torch.Generator.__new__(cls, device)  # type: ignore[call-arg]
        self.ranks = ranks
        return self


@contextmanager
def shared_draws(generator: Any) -> Iterator[None]:
    """Let all be drawn by `drawn` meanwhile, where rows of several processes or agents are routed together.

    Raises:
        ValueError: Something was drawn from the generator itself, whose numbers would be the same for other rows.
    """
    if not isinstance(generator, Generators | OfRanks):
        yield
        return
    before, generator.expected = generator.get_state(), None
    generator.sharing = True
    try:
        yield
    finally:
        generator.sharing = False
    expected = before if generator.expected is None else generator.expected
    if not torch.equal(generator.get_state(), expected):
        raise ValueError(
            "an agent whose rows are routed with those of others draws by drawn(torch.empty(...), 'uniform_', "
            "self.generator) (routing_gym.agents.parts.draws), not from self.generator itself"
        )


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
    if isinstance(generator, OfRanks) and generator.sharing:
        whole = torch.cat([empty] * generator.ranks.count)
        getattr(whole, how)(generator=generator)
        generator.expected = generator.get_state()
        return empty.copy_(generator.ranks.own(whole))
    parts = generator.parts if isinstance(generator, Generators) else (generator,)
    for rows, own in zip(empty.chunk(len(parts)), parts, strict=True):
        getattr(rows, how)(generator=own)
    return empty
