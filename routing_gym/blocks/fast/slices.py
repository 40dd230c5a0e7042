"""Slices of stacked parameters that an optimiser moves, as few tensors as can be."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from routing_gym.blocks.ownership import PartlyUsed

FEW_RUNS, FEW_NUMBERS = 8, 2048
"""On a CPU, of more runs of slices than these, with fewer numbers each, going over the whole stack is cheaper."""


class Slices:
    """The k slices of some stacked parameters; `places` has each owner's parts and the slices that belong to these."""

    def __init__(self, count: int, places: dict[PartlyUsed, tuple[list[int], list[int]]]) -> None:
        self.count = count
        self._places = [
            (owner, torch.tensor(parts), None if slices == list(range(count)) else torch.tensor(slices))
            for owner, (parts, slices) in places.items()
        ]

    def used(self, device: torch.device) -> Tensor | None:
        """Mask `(k,)` of the slices that have been used; None where all have, as far as the host can know it."""
        used = None
        for number, (owner, parts, slices) in enumerate(self._places):
            if owner.used is None:
                continue
            if parts.device != device:
                parts, slices = parts.to(device), None if slices is None else slices.to(device)
                self._places[number] = owner, parts, slices
            own = owner.used.index_select(0, parts)
            if slices is not None:  # some belong to no part, or to several
                own = torch.zeros(self.count, dtype=torch.int32, device=device).index_add_(0, slices, own.int()) > 0
            used = own if used is None else used & own
        return None if used is None or (device.type == "cpu" and used.numpy().all()) else used


@dataclasses.dataclass
class Plan:
    """Slices that take a step: the same for all stacks of these slices whose steps have been counted alike.

    Attributes:
        used: `(k,)` bool, the slices.
        steps: `(k,)` float32, the steps that each slice has taken before.
        factors: Those of `UsedOnly.move_rows`, once somebody has worked them out.
    """

    used: Tensor
    steps: Tensor
    factors: Any = None

    def goes_by_runs(self, stack: Tensor) -> bool:
        """Whether to move runs of slices of a stack `(k, n)`, rather than all rows at once."""
        return stack.is_cpu and (len(self.runs[1]) <= FEW_RUNS or stack.numel() >= FEW_NUMBERS * len(stack))

    @cached_property
    def runs(self) -> tuple[list[int], list[int], Tensor]:
        """Slices side by side that can be moved as one tensor: sizes of all runs, those used, and their steps."""
        steps, used = self.steps.numpy(), self.used.numpy()
        begins = np.ones(len(steps), dtype=bool)
        begins[1:] = (steps[1:] != steps[:-1]) | (used[1:] != used[:-1])
        starts = begins.nonzero()[0]
        chosen = used[starts].nonzero()[0]
        places = [*starts.tolist(), len(steps)]
        sizes = [after - before for before, after in zip(places, places[1:], strict=False)]
        return sizes, chosen.tolist(), torch.from_numpy(steps[starts[chosen]])


Wholes = dict[nn.Parameter, dict[PartlyUsed, list[int]]]
"""Parameters that belong to parts as a whole, and the numbers of these by owner."""


def by_part(owners: Iterable[PartlyUsed]) -> tuple[Wholes, dict[nn.Parameter, Slices]]:
    """Parameters that belong to parts as a whole, and stacks; stacks of the same parts share one `Slices`."""
    wholes: Wholes = {}
    places: dict[nn.Parameter, dict[PartlyUsed, tuple[list[int], list[int]]]] = {}
    for owner in owners:
        for number, part in enumerate(owner.parts()):
            for owned in part:
                if owned.index is None:
                    wholes.setdefault(owned.parameter, {}).setdefault(owner, []).append(number)
                else:
                    parts, slices = places.setdefault(owned.parameter, defaultdict(lambda: ([], [])))[owner]
                    parts.append(number)
                    slices.append(owned.index)
    together: dict[Any, Slices] = {}
    stacks = {}
    for parameter, owned_by in places.items():
        key = len(parameter), tuple((id(owner), *map(tuple, columns)) for owner, columns in owned_by.items())
        stacks[parameter] = together.setdefault(key, Slices(len(parameter), owned_by))
    return wholes, stacks
