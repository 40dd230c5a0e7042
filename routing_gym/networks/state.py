"""Where every instance of a batch stands in a routed network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from routing_gym.blocks import SortedRows, plain

Activation = tuple[Tensor | SortedRows, ...]
"""What waits at a decision: tensors whose first axis is the rows, or rows still in the order of their blocks."""


COLUMNS = ("task", "instance", "price", "macs", "expected_macs")
"""What a `RoutingState` holds of every row, `(B,)` each."""


def joined(activations: Iterable[Activation]) -> Activation:
    """Activations of one decision one after the other."""
    return tuple(torch.cat([plain(part) for part in parts]) for parts in zip(*activations, strict=True))


@dataclasses.dataclass(frozen=True)
class Waiting:
    """Rows that wait at one decision.

    Attributes:
        rows: `(r,)` int64 row numbers, or None for every row of the batch in order: nothing is grouped or copied then.
        activation: Tensors whose first axis is r; how many and of which shape is the decision's own affair.
        reach: `(r,)` share of each instance that arrived here: 1 under hard routing, else the product of the outcome
            weights on the way.
    """

    rows: Tensor | None
    activation: Activation
    reach: Tensor

    def __len__(self) -> int:
        return len(self.reach)

    def pick(self, positions: Tensor) -> Waiting:
        """Some of these rows, by their position here."""
        return Waiting(
            rows=positions if self.rows is None else self.rows.index_select(0, positions),
            activation=tuple(tensor.index_select(0, positions) for tensor in self.activation),
            reach=self.reach.index_select(0, positions),
        )


@dataclasses.dataclass(frozen=True)
class Exit:
    """Rows that left the network at one place in one step.

    Attributes:
        decision: The decision they left from.
        choice: The choice that led out (0 where all choices do).
        rows: `(r,)` int64 row numbers, or None for every row in order.
        logits: `(r, num_classes)`.
        weight: `(r,)` share of each instance that left here; those of one instance sum to 1 over its exits.
    """

    decision: int
    choice: int
    rows: Tensor | None
    logits: Tensor
    weight: Tensor


@dataclasses.dataclass(frozen=True)
class RoutingState:
    """A batch of B instances on their way.

    Attributes:
        task: `(B,)` int64.
        instance: `(B,)` int64 row numbers in the data set, -1 where unknown.
        price: `(B,)` cost of one multiply-accumulate for each instance.
        macs: `(B,)` multiply-accumulates executed so far.
        expected_macs: `(B,)` sum of reach times weight times cost; differentiable where the weights are.
        waiting: For each decision with rows waiting: which, with what activation and reach.
        exits: Where rows have left in the step that led here.
        num_decisions: N; `at` is N for rows that have left.
    """

    task: Tensor
    instance: Tensor
    price: Tensor
    macs: Tensor
    expected_macs: Tensor
    waiting: dict[int, Waiting]
    exits: tuple[Exit, ...]
    num_decisions: int

    def __len__(self) -> int:
        return len(self.task)

    @property
    def sole(self) -> int | None:
        """The decision at which every row waits, in order; None where rows are spread or some have left."""
        if len(self.waiting) == 1:
            ((decision, waiting),) = self.waiting.items()
            if waiting.rows is None:
                return decision
        return None

    @cached_property
    def at(self) -> Tensor:
        """`(B,)` int64: the earliest decision each row waits at, N where it has left."""
        if self.sole is not None:
            return torch.full((len(self),), self.sole, device=self.task.device)
        at = torch.full((len(self),), self.num_decisions, device=self.task.device)
        for decision in sorted(self.waiting, reverse=True):
            rows = self.waiting[decision].rows
            at = torch.full_like(at, decision) if rows is None else at.index_fill(0, rows, decision)
        return at

    @cached_property
    def active(self) -> Tensor:
        """`(B,)` bool: which rows are still in the network."""
        return self.at < self.num_decisions

    @cached_property
    def reach(self) -> Tensor:
        """`(B,)`, detached: the share of each instance that is at the decision it acts at, 0 where it has left."""
        if self.sole is not None:
            return self.waiting[self.sole].reach.detach()
        reach = torch.zeros_like(self.macs)
        for _, group, _ in self.acting():
            value = group.reach.detach()
            reach = value if group.rows is None else reach.index_copy(0, group.rows, value)
        return reach

    def acting(self) -> list[tuple[int, Waiting, Waiting | None]]:
        """Rows of each decision that act there now, and those that wait there for a later turn.

        A softly routed row can wait at several decisions and acts at the earliest.
        """
        if self.sole is not None:
            return [(self.sole, self.waiting[self.sole], None)]
        groups: list[tuple[int, Waiting, Waiting | None]] = []
        for decision, waiting in sorted(self.waiting.items()):
            at = self.at if waiting.rows is None else self.at.index_select(0, waiting.rows)
            now = (at == decision).nonzero().flatten()
            if len(now) == len(waiting):
                groups.append((decision, waiting, None))
            elif len(now):
                later = (at != decision).nonzero().flatten()
                groups.append((decision, waiting.pick(now), waiting.pick(later)))
        return groups

    def select(self, rows: Tensor) -> RoutingState:
        """State of some rows, `(r,)` int64, each at most once: renumbered in the order given, without exits."""
        place = torch.full((len(self),), -1, device=self.task.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        waiting = {}
        for decision, group in self.waiting.items():
            if group.rows is None:
                waiting[decision] = dataclasses.replace(group.pick(rows), rows=None)
                continue
            kept = (place[group.rows] >= 0).nonzero().flatten()
            if len(kept):
                waiting[decision] = dataclasses.replace(group.pick(kept), rows=place[group.rows[kept]])
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in COLUMNS}
        return dataclasses.replace(self, **columns, waiting=waiting, exits=())

    def restarted(self, rows: Tensor, fresh: RoutingState) -> RoutingState:
        """State with other instances, those of `fresh`, in some rows, `(r,)` int64, each at most once."""
        gone = torch.zeros(len(self), dtype=torch.bool, device=rows.device)
        gone[rows] = True
        others = (~gone).nonzero().flatten()
        back_in_place = torch.argsort(torch.cat([others, rows]))
        return RoutingState.merge([self.select(others), fresh]).select(back_in_place)

    @staticmethod
    def merge(states: Sequence[RoutingState]) -> RoutingState:
        """State of one batch in which those of several stand one after the other, without exits."""
        starts = [0, *accumulate(map(len, states))]
        device = states[0].task.device
        together = states[0].sole is not None and all(state.sole == states[0].sole for state in states)

        def numbered(state: RoutingState, start: int, rows: Tensor | None) -> Tensor:
            return start + (torch.arange(len(state), device=device) if rows is None else rows)

        waiting = {}
        for decision in sorted({decision for state in states for decision in state.waiting}):
            there = [(state, start) for state, start in zip(states, starts, strict=False) if decision in state.waiting]
            groups = [state.waiting[decision] for state, _ in there]
            rows = [numbered(state, start, group.rows) for (state, start), group in zip(there, groups, strict=True)]
            waiting[decision] = Waiting(
                rows=None if together else torch.cat(rows),
                activation=joined(group.activation for group in groups),
                reach=torch.cat([group.reach for group in groups]),
            )
        columns: dict[str, Any] = {name: torch.cat([getattr(state, name) for state in states]) for name in COLUMNS}
        return dataclasses.replace(states[0], **columns, waiting=waiting, exits=())


def add(total: Tensor, rows: Tensor | None, amount: Tensor) -> Tensor:
    """Sums `(B,)` of `total (B,)` and, in some rows (None: in all), `amount (r,)`."""
    return total + amount if rows is None else total.index_add(0, rows, amount)


def join(groups: list[Waiting]) -> Waiting:
    """Groups that wait at one decision as one."""
    if len(groups) == 1:
        return groups[0]
    rows = [group.rows for group in groups if group.rows is not None]
    assert len(rows) == len(groups), "a row cannot wait twice at one decision"
    return Waiting(
        rows=torch.cat(rows),
        activation=joined(group.activation for group in groups),
        reach=torch.cat([group.reach for group in groups]),
    )
