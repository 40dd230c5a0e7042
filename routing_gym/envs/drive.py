"""The one way through a network: who decides is asked, the action is checked, the chosen blocks run, until all left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from routing_gym.networks import Action, Exit, RoutedNetwork, RoutingState, accept

PRICED_MACS = 1e7
"""`observation["price"]` is the cost of so many multiply-accumulates."""

PRECISIONS = ("float32", "bfloat16")
"""What a network can compute in, see `Manner`."""


@dataclasses.dataclass(frozen=True)
class Manner:
    """How a batch is driven through a network.

    Attributes:
        graph: Keep the graph of the forward pass.
        differentiable: Keep the graph of observations too.
        precision: `"float32"`; or `"bfloat16"`, in which products and convolutions are computed, by `torch.autocast`:
            parameters and their gradients stay float32.
        price: Show the price of computation.
        action_type: `"discrete"` or `"weights"`, if only one of them will do.
        first_legal: Replace a masked integer choice by the first legal one.
        validate: Check values of actions at once, which on a GPU waits for the device; None for their form alone, from
            those who are known to choose what is legal.
    """

    graph: bool = False
    differentiable: bool = False
    precision: str = "float32"
    price: bool = False
    action_type: str | None = None
    first_legal: bool = False
    validate: bool | None = True

    @contextmanager
    def forward_pass(self, device: torch.device, graph: bool) -> Iterator[None]:
        """Let a network run on a device, with a graph or without.

        Nothing that is computed from its logits belongs in here, and no backward pass.
        """
        with torch.set_grad_enabled(graph):
            if self.precision == "float32":
                yield
            else:
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    yield


class Seen(Mapping[str, Tensor]):
    """What there is to see of a batch where it stands; each part is computed when it is first asked for.

    As a mapping it is the observation: `activation (B, D)`, `task (B,)`, `depth (B,)` (the decision each row waits at,
    N for rows that have left) and, where it is shown, `price (B, 1)`. Once the batch has gone on the activations are
    let go: of what waited there only what somebody has looked at can still be seen.

    Args:
        network: The network.
        state: Where the rows stand.
        manner: How they are driven.

    Attributes:
        sole: The decision at which all rows wait, in order, known without asking the device; None where they are
            spread, or some have left.
        task: `(B,)` int64.
        macs: `(B,)` multiply-accumulates executed so far.
    """

    def __init__(self, network: RoutedNetwork, state: RoutingState, manner: Manner) -> None:
        self.network, self._state, self._manner = network, state, manner
        self.sole = state.sole
        self.task, self.cost, self.macs = state.task, state.price, state.macs
        self._given: dict[str, tuple[Tensor, int]] = {}

    _state: RoutingState | None

    @property
    def state(self) -> RoutingState:
        """Where the rows stand.

        Raises:
            LookupError: They have gone on.
        """
        if self._state is None:
            raise LookupError("the batch has gone on from here: what was not looked at in time cannot be seen any more")
        return self._state

    # ------------------------------------------------------------------------------------------------- the observation

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._given:
            value = self._look(key)
            self._given[key] = value, value._version
        return self._given[key][0]

    def _look(self, key: str) -> Tensor:
        if key == "task":
            return self.task
        if key == "depth":
            return self.decision
        if key == "price" and self._manner.price:
            return PRICED_MACS * self.cost.unsqueeze(1)
        if key != "activation" or self._state is None:
            raise KeyError(key)
        with self._manner.forward_pass(self.task.device, self._manner.differentiable):
            activation = self.network.observe(self._state)
        return activation if self._manner.differentiable else activation.detach()

    def __iter__(self) -> Iterator[str]:
        if self._state is not None or "activation" in self._given:
            yield "activation"
        yield from ("task", "depth", *(("price",) if self._manner.price else ()))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def check_untouched(self) -> None:
        """Refuse that somebody has written into the observation.

        Raises:
            ValueError: Names what was written into.
        """
        for key, (value, version) in self._given.items():
            if value._version != version:
                raise ValueError(f"act has written into its observation, {key!r}, which others need: write into a copy")

    # --------------------------------------------------------------------------------------------- what goes with it

    @cached_property
    def decision(self) -> Tensor:
        """`(B,)` int64: the decision each row is at, N for rows that have left."""
        return self.state.at

    @cached_property
    def active(self) -> Tensor:
        """`(B,)` bool: rows that are in the network."""
        return self.state.active

    @cached_property
    def choosing(self) -> Tensor:
        """`(B, M)` bool: the tensors that choose; none in rows that have left."""
        return self.active.unsqueeze(1) if self.network.num_tensors == 1 else self.network.choosing(self.state)

    @cached_property
    def reach(self) -> Tensor:
        """`(B,)`, detached: the share of each instance that is at its decision, 0 where it has left."""
        return self.state.reach

    @cached_property
    def mask(self) -> Tensor:
        """`(B, M, A)` bool: what is legal; all True for rows that have left."""
        return self.network.action_mask(self.state)

    @classmethod
    def passed(
        cls, network: RoutedNetwork, state: RoutingState, manner: Manner, number: int, like: Seen | None
    ) -> Seen:
        """Return what is left to see of a decision at which all rows have been.

        Args:
            network: The network.
            state: Where they began.
            manner: How they are driven.
            number: The decision.
            like: Another decision they have all been at.
        """
        seen = cls(network, state, manner)
        seen.sole, seen.decision = number, torch.full_like(state.task, number)
        seen.active = torch.ones_like(state.task, dtype=torch.bool) if like is None else like.active
        seen.reach = torch.ones_like(state.macs) if like is None else like.reach
        seen.choosing = seen.active.unsqueeze(1) if like is None else like.choosing
        seen._state = None
        return seen

    def close(self) -> None:
        """Let the activations go, and keep what says where the rows were."""
        _ = self.decision, self.active, self.choosing, self.reach
        self._state = None


@dataclasses.dataclass(frozen=True)
class Turn:
    """One decision of every row of a batch, and where it has led.

    Attributes:
        seen: What there was to see.
        action: What was done: choices `(B, M)` int64, weights `(B, M, A)`, or a pair `(indices, weights)`.
        macs: `(B,)` multiply-accumulates executed by it, detached.
        exits: Where rows have left.
        after: Where the others stand.
        replaced: `(B,)` int8, 1 where a masked choice was replaced; None where that is not done.
        doubtful: 0-dimensional bool, see `Accepted`; None where values were checked.
    """

    seen: Seen
    action: Action
    macs: Tensor
    exits: tuple[Exit, ...]
    after: RoutingState
    replaced: Tensor | None
    doubtful: Tensor | None


Decide = Callable[[Seen], Any]
"""Whoever decides: returns an action for all rows, see `accept`."""


QUIETLY = Manner()
"""Without a graph."""


def take_turn(network: RoutedNetwork, state: RoutingState, decide: Decide, manner: Manner = QUIETLY) -> Turn:
    """Let one decision be made for every row, and carry all of them on by it.

    Args:
        network: The network.
        state: Where the rows stand; some wait.
        decide: Whoever decides.
        manner: How.

    Raises:
        ValueError: An action that is not allowed. `state` is as it was.
    """
    seen = Seen(network, state, manner)
    given = decide(seen)
    seen.check_untouched()
    accepted = accept(
        network,
        state,
        given,
        mask=lambda: seen.mask,
        action_type=manner.action_type,
        first_legal=manner.first_legal,
        validate=manner.validate,
    )
    with manner.forward_pass(state.task.device, manner.graph):
        after = network.advance(state, accepted.action)
    seen.close()
    macs = (after.macs - state.macs).detach()
    return Turn(seen, accepted.action, macs, after.exits, after, accepted.replaced, accepted.doubtful)


def drive(network: RoutedNetwork, state: RoutingState, decide: Decide, manner: Manner = QUIETLY) -> Iterator[Turn]:
    """Carry a batch through a network until every row has left, turn by turn; arguments as of `take_turn`."""
    while state.waiting:
        turn = take_turn(network, state, decide, manner)
        state = turn.after
        yield turn


def along(plan: Tensor) -> Decide:
    """Return who decides by routes that are known beforehand and looks at nothing.

    Args:
        plan: `(B, N, ...)`: the action of each row at each decision.
    """

    def decide(seen: Seen) -> Tensor:
        if seen.sole is not None:
            return plan[:, seen.sole]
        rows = torch.arange(len(plan), device=plan.device)
        return plan[rows, seen.decision.clamp(max=plan.shape[1] - 1)]

    return decide
