"""What a decision is, and where every instance of a batch stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from routing_gym.blocks import SortedRows, plain

EXIT = -1
"""In `Decision.next`: the choice leads out of the network."""

Activation = tuple[Tensor | SortedRows, ...]
"""What waits at a decision: tensors whose first axis is the rows, or rows still in the order of their blocks."""

COLUMNS = ("task", "instance", "price", "macs", "expected_macs")
"""What a `RoutingState` holds of every row, `(B,)` each."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """A place in a routed network where the way on is chosen.

    Attributes:
        name: Name, for pictures and messages.
        macs: Multiply-accumulates of one row by each choice: all that runs until the next decision or the exit.
        next: For each choice the number of the decision it leads to, or `EXIT`.
        mixing: What weights mean. `"activation"`: they mix the outputs of choices that all lead to the same place.
            `"outcome"`: they share the instance out among the places the choices lead to.
        m: Number of tensors that arrive here, each of which chooses (an m x n gate); 1 for an ordinary decision.
        width: Width of the observation here.
    """

    name: str
    macs: tuple[float, ...]
    next: tuple[int, ...]
    mixing: Literal["activation", "outcome"] = "activation"
    m: int = 1
    width: int = 1

    @cached_property
    def n(self) -> int:
        """Number of choices."""
        return len(self.next)

    @cached_property
    def ways(self) -> tuple[int, ...]:
        """Targets of the ways on: of each choice, or the one of all choices where activations are mixed."""
        return self.next if self.mixing == "outcome" else self.next[:1]


def _check(decisions: Sequence[Decision]) -> None:
    """Refuse decisions that do not form a routed network."""
    if not decisions:
        raise ValueError("a routed network needs at least one decision")
    for number, decision in enumerate(decisions):
        where = f"decision {number} ({decision.name!r})"
        if decision.mixing not in ("activation", "outcome"):
            raise ValueError(f"{where}: mixing must be 'activation' or 'outcome', got {decision.mixing!r}")
        if decision.n < 2 and decision.mixing == "outcome":
            raise ValueError(f"{where}: a place with a single way on is no decision")
        sizes = decision.n, decision.m, decision.width
        if min(sizes) < 1:
            got = ", ".join(map(str, sizes))
            raise ValueError(f"{where}: choices, tensors and width must be at least 1, got {got}")
        if len(decision.macs) != decision.n:
            raise ValueError(f"{where}: needs one cost per choice ({decision.n}), got {len(decision.macs)}")
        for target in decision.next:
            if target != EXIT and not number < target < len(decisions):
                raise ValueError(
                    f"{where}: a choice leads to EXIT or to a later decision (below {len(decisions)}), got {target}"
                )
        if decision.mixing == "activation" and len(set(decision.next)) != 1:
            raise ValueError(
                f"{where}: activations can be mixed only where all choices lead to one place, got {decision.next}"
            )
        if decision.mixing == "outcome" and decision.m != 1:
            raise ValueError(f"{where}: outcomes are shared out for one tensor, got m = {decision.m}")


def ways_out(decisions: Sequence[Decision]) -> list[tuple[int, int]]:
    """Pairs `(decision, choice)` by which instances leave a network."""
    return [(i, choice) for i, at in enumerate(decisions) for choice, way in enumerate(at.ways) if way == EXIT]


def legal_table(decisions: Sequence[Decision], masks: Tensor | None) -> Tensor:
    """Legal choices `(N + 1, M, A)` bool at each of N decisions; the last row, for instances that have left, is True.

    Args:
        decisions: N decisions.
        masks: `(N, M, A)` bool, further restrictions; None for none.

    Raises:
        ValueError: The decisions do not form a routed network, or the masks are of the wrong form or leave a tensor no
            choice.
    """
    _check(decisions)
    tensors, choices = max(d.m for d in decisions), max(d.n for d in decisions)
    # On the host whatever the default device: its values are looked at here.
    table = torch.zeros(len(decisions) + 1, tensors, choices, dtype=torch.bool, device="cpu")
    if masks is not None and (masks.dtype != torch.bool or masks.shape != table[:-1].shape):
        raise ValueError(
            f"masks must be bool of shape {tuple(table[:-1].shape)}, got {masks.dtype} of {tuple(masks.shape)}"
        )
    for number, decision in enumerate(decisions):
        table[number, :, : decision.n] = True
        if masks is not None:
            table[number] &= masks[number]
        table[number, decision.m :] = True  # tensors that do not exist here: every choice legal and ignored
        if empty := (~table[number].any(-1)).nonzero().flatten().tolist():
            raise ValueError(f"decision {number} ({decision.name!r}): the mask leaves tensor {empty[0]} no choice")
    table[-1] = True
    return table


@dataclasses.dataclass(frozen=True)
class Waiting:
    """Rows that wait at one decision.

    Attributes:
        rows: `(r,)` int64 row numbers, or None for every row of the batch in order: nothing is grouped or copied then.
        activation: Tensors whose first axis is r; how many and of which shape is the decision's own affair.
        reach: `(r,)` share of each instance that arrived here: the product of the outcome weights on the way.
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

    @staticmethod
    def join(groups: Sequence[Waiting]) -> Waiting:
        """Groups of a batch that wait at one decision, one after the other."""
        if len(groups) == 1:
            return groups[0]
        rows = [group.rows for group in groups if group.rows is not None]
        assert len(rows) in (0, len(groups)), "a row cannot wait twice at one decision"
        return Waiting(
            rows=torch.cat(rows) if rows else None,
            activation=tuple(
                torch.cat([plain(part) for part in parts])
                for parts in zip(*(group.activation for group in groups), strict=True)
            ),
            reach=torch.cat([group.reach for group in groups]),
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

    @cached_property
    def sole(self) -> int | None:
        """The decision at which every row acts, in order; None where rows are spread or some have left."""
        first = min(self.waiting, default=None)
        return first if first is not None and self.waiting[first].rows is None else None

    @cached_property
    def at(self) -> Tensor:
        """`(B,)` int64: the earliest decision each row waits at, N where it has left."""
        at = torch.full_like(self.task, self.num_decisions if self.sole is None else self.sole)
        if self.sole is None:
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
        for _, group, _ in self.acting:
            value = group.reach.detach()
            reach = value if group.rows is None else reach.index_copy(0, group.rows, value)
        return reach

    def without_graph(self) -> RoutingState:
        """The state of rows that have all left, detached."""
        return dataclasses.replace(self, macs=self.macs.detach(), expected_macs=self.expected_macs.detach())

    def task_of(self, rows: Tensor | None) -> Tensor:
        """Tasks `(r,)` of some rows (None: of all)."""
        return self.task if rows is None else self.task.index_select(0, rows)

    @cached_property
    def acting(self) -> list[tuple[int, Waiting, Waiting | None]]:
        """Rows of each decision that act there now, and those that wait there for a later turn.

        A softly routed row can wait at several decisions and acts at the earliest.
        """
        if not self.waiting:
            return []
        if self.sole is not None:
            return [(self.sole, self.waiting[self.sole], None)]
        (first, earliest), *later = sorted(self.waiting.items())
        groups: list[tuple[int, Waiting, Waiting | None]] = [(first, earliest, None)]
        for decision, waiting in later:
            now = (self.at if waiting.rows is None else self.at.index_select(0, waiting.rows)) == decision
            acting = now.nonzero().flatten()
            if len(acting) == len(waiting):
                groups.append((decision, waiting, None))
            elif len(acting):
                groups.append((decision, waiting.pick(acting), waiting.pick((~now).nonzero().flatten())))
        return groups

    def select(self, rows: Tensor) -> RoutingState:
        """State of some rows, `(r,)` int64, each at most once: renumbered in the order given, without exits."""
        place = torch.full((len(self),), -1, device=self.task.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        waiting = {}
        for decision, group in self.waiting.items():
            if group.rows is None:
                waiting[decision] = dataclasses.replace(group.pick(rows), rows=None)
            elif len(kept := (place[group.rows] >= 0).nonzero().flatten()):
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
        together = all(state.sole == states[0].sole is not None and len(state.waiting) == 1 for state in states)
        groups: dict[int, list[Waiting]] = {}
        for state, start in zip(states, [0, *accumulate(map(len, states))], strict=False):
            for decision, group in state.waiting.items():
                if not together:
                    own = torch.arange(len(state), device=state.task.device) if group.rows is None else group.rows
                    group = dataclasses.replace(group, rows=start + own)
                groups.setdefault(decision, []).append(group)
        waiting = {decision: Waiting.join(groups[decision]) for decision in sorted(groups)}
        columns: dict[str, Any] = {name: torch.cat([getattr(state, name) for state in states]) for name in COLUMNS}
        return dataclasses.replace(states[0], **columns, waiting=waiting, exits=())
