"""The one way through a network: who decides is asked, the action is checked, the chosen blocks run, until all left.

`Seen` is what a batch looks like at a decision, `Turn` what came of it, and `Context` what a router is told besides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from routing_gym.networks import Action, Exit, RoutedNetwork, RoutingState, accept

PRICED_MACS = 1e7
"""`observation["price"]` is the cost of so many multiply-accumulates."""

Observation = Mapping[str, Tensor]
"""`activation (B, D)`, `task (B,)`, `depth (B,)`: the decision each row waits at, N for rows that have left."""


@dataclasses.dataclass(frozen=True)
class Manner:
    """How a batch is driven through a network.

    Attributes:
        graph: Keep the graph of the forward pass.
        differentiable: Keep the graph of observations too.
        precision: `"float32"`, or `"bfloat16"` for `torch.autocast`: parameters and their gradients stay float32.
        price: Show the price of computation.
        action_type: `"discrete"` or `"weights"`, if only one of them will do.
        first_legal: Replace a masked integer choice by the first legal one.
        validate: Check values of actions at once, which on a GPU waits for the device; None: only their form, of
            those who are known to choose legally.
        training, dense_backward, merge_blocks: How the network runs, see `RoutedNetwork`; None: as it did before.
    """

    graph: bool = False
    differentiable: bool = False
    precision: str = "float32"
    price: bool = False
    action_type: str | None = None
    first_legal: bool = False
    validate: bool | None = True
    training: bool | None = None
    dense_backward: bool | None = None
    merge_blocks: bool | None = None

    def set_up(self, network: RoutedNetwork) -> None:
        """Let a network, which several environments may share, run as this one asks."""
        if self.training is not None and network.training is not self.training:
            network.train(self.training)
        if self.dense_backward is not None and network.dense_backward is not self.dense_backward:
            network.dense_backward = self.dense_backward
        if self.merge_blocks is not None and network.merge_blocks is not self.merge_blocks:
            network.merge_blocks = self.merge_blocks

    def forward_pass(self, device: torch.device, graph: bool) -> AbstractContextManager:
        """Context in which a network runs; not for a backward pass, nor for what is computed from its logits."""
        exact = self.precision == "float32"
        trains = graph and torch.is_inference_mode_enabled()
        if exact and not trains and not torch.is_autocast_enabled(device.type):
            return torch.set_grad_enabled(graph)
        both = ExitStack()
        if trains:
            both.enter_context(torch.inference_mode(False))
        both.enter_context(torch.set_grad_enabled(graph))
        both.enter_context(torch.autocast(device.type, dtype=torch.bfloat16, enabled=not exact))
        return both


class Seen(Mapping[str, Tensor]):
    """Observation of a batch at a decision, with what goes with it.

    A mapping, as `Observation` says, with `price (B, 1)` where it is shown. Activations and masks are computed when
    they are first asked for; once the batch has gone on, only those that somebody has looked at are left.

    Attributes:
        sole: The decision all rows wait at, in order, known on the host; None where they are spread or some have left.
        cost: `(B,)` price of one multiply-accumulate.
        decision: `(B,)` int64, N for rows that have left.
        active: `(B,)` bool: rows that are in the network.
        reach: `(B,)`, detached: the share of each instance that is at its decision, 0 where it has left.
        looked_at: Parts of the observation that somebody has asked for, and their versions at first.
    """

    def __init__(self, network: RoutedNetwork, state: RoutingState, manner: Manner) -> None:
        self.network, self._manner = network, manner
        self._state: RoutingState | None = state
        self.task, self.cost = state.task, state.price
        self.sole, self.decision, self.active, self.reach = state.sole, state.at, state.active, state.reach
        self.looked_at: dict[str, tuple[Tensor, int]] = {}

    @property
    def state(self) -> RoutingState:
        """Where the rows stand, while they do."""
        if self._state is None:
            raise LookupError("the batch has gone on from here: what was not looked at in time cannot be seen any more")
        return self._state

    @cached_property
    def choosing(self) -> Tensor:
        """`(B, M)` bool: the tensors that choose; none in rows that have left."""
        return self.active.unsqueeze(1) if self.network.num_tensors == 1 else self.network.choosing(self.state)

    @cached_property
    def mask(self) -> Tensor:
        """`(B, M, A)` bool: legal choices; all True for rows that have left."""
        return self.network.action_mask(self.state)

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.looked_at:
            value = self._look(key)
            self.looked_at[key] = value, version_of(value)
        return self.looked_at[key][0]

    def _look(self, key: str) -> Tensor:
        if key == "task":
            return self.task
        if key == "depth":
            return self.decision
        if key == "price" and self._manner.price:
            return PRICED_MACS * self.cost.unsqueeze(1)
        if key != "activation" or self._state is None:
            raise KeyError(f"{key}: nobody looked at it in time" if key == "activation" else key)
        with self._manner.forward_pass(self.task.device, self._manner.differentiable):
            activation = self.network.observe(self._state)
        return activation if self._manner.differentiable else activation.detach()

    def __iter__(self) -> Iterator[str]:
        if self._state is not None or "activation" in self.looked_at:
            yield "activation"
        yield from ("task", "depth", *(("price",) if self._manner.price else ()))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def close(self) -> None:
        """Let the activations go, since the batch goes on."""
        _ = self.choosing  # needs the state
        self._state = None

    def passed(self, count: int) -> list[Seen]:
        """The same rows at each of the first decisions, which all of them have been at in order, as it is left."""
        self.close()
        passed = [Seen.__new__(Seen) for _ in range(count)]
        for number, seen in enumerate(passed):
            decision = torch.full_like(self.task, number)
            vars(seen).update(vars(self), sole=number, decision=decision, looked_at={})
        return passed


def version_of(value: Tensor) -> int:
    """How often a tensor has been written into; 0 of those of `torch.inference_mode`, which do not keep count."""
    return 0 if value.is_inference() else value._version


class Turn(NamedTuple):
    """One decision of every row of a batch, and where it has led.

    Attributes:
        seen: The observation.
        action: Choices `(B, M)` int64, weights `(B, M, A)`, or a pair `(indices, weights)`.
        macs: `(B,)` multiply-accumulates executed by it, detached.
        exits: Where rows have left.
        after: Where the others stand; of routes followed at once, where all have come in the end.
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

QUIETLY = Manner()  # without a graph


def take_turn(network: RoutedNetwork, state: RoutingState, decide: Decide, manner: Manner = QUIETLY) -> Turn:
    """Let one decision be made for every row of a batch, some of which wait, and carry all of them on by it."""
    seen = Seen(network, state, manner)
    device = state.task.device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        given = decide(seen)
    for key, (value, version) in seen.looked_at.items():
        if version_of(value) != version:
            raise ValueError(f"act has written into its observation, {key!r}, which others need: write into a copy")
    accepted = accept(
        network,
        state,
        given,
        mask=lambda: seen.mask,
        action_type=manner.action_type,
        first_legal=manner.first_legal,
        validate=manner.validate,
    )
    seen.close()
    manner.set_up(network)
    with manner.forward_pass(state.task.device, manner.graph):
        after = network.advance(state, accepted.action)
    macs = (after.macs - state.macs).detach()
    return Turn(seen, accepted.action, macs, after.exits, after, accepted.replaced, accepted.doubtful)


def drive(network: RoutedNetwork, state: RoutingState, decide: Decide, manner: Manner = QUIETLY) -> Iterator[Turn]:
    """Carry a batch through a network until every row has left, turn by turn; arguments as of `take_turn`."""
    while state.waiting:
        turn = take_turn(network, state, decide, manner)
        state = turn.after
        yield turn


def along(plan: Tensor) -> Decide:
    """Decide by routes known beforehand, `(B, N, ...)`: the action of each row at each decision."""

    def decide(seen: Seen) -> Tensor:
        if seen.sole is not None:
            return plan[:, seen.sole]
        rows = torch.arange(len(plan), device=plan.device)
        return plan[rows, seen.decision.clamp(max=plan.shape[1] - 1)]

    return decide


@dataclasses.dataclass(eq=False)
class Context:
    """Context of an observation; masks are computed when they are looked at.

    Attributes:
        single: Masks are without the axis M.
        deterministic: The agent is being evaluated and should take its best action.
        carry: `(B, ...)` that the agent may set and gets back at the next decision of the episode; None at the first.
        begins: `(B,)` bool: rows whose episode begins here while others are under way; None where nobody's does, or
            everybody's (`carry` is None then).
        record: Tensors that the agent wants to find again in the trajectory; the collaboration reward needs
            `"probabilities"` of the shape of `mask`; `"macs"`, `(B,)`, are what the agent has spent on each row where
            that depends on more than the decision.
    """

    seen: Seen | Known = dataclasses.field(repr=False)
    single: bool = False
    deterministic: bool = False
    carry: Tensor | None = None
    begins: Tensor | None = None
    record: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def active(self) -> Tensor:
        """`(B,)` bool: rows that are still in the network; what is chosen for the others is ignored."""
        return self.seen.active

    @property
    def mask(self) -> Tensor:
        """`(B, A)` bool, `(B, M, A)` where the agent chooses for M tensors: legal choices."""
        return self.seen.mask[:, 0] if self.single else self.seen.mask

    @property
    def sole(self) -> int | None:
        """The decision at which all rows are, known without asking the device; None where they are spread."""
        return self.seen.sole


@dataclasses.dataclass(frozen=True)
class Known:
    """What `Seen` knows, `active (B,)`, `mask (B, M, A)` and `sole`, of an observation that has come from outside."""

    active: Tensor
    mask: Tensor
    sole: int | None = None


class Router(Protocol):
    """Anything that decides."""

    def act(self, observation: Observation, context: Context) -> Action:
        """Action of every row."""


def is_single(router: Any, network: RoutedNetwork) -> bool:
    """Whether a router sees no axis M: where M = 1, all but those who say that they choose for any number."""
    return network.num_tensors == 1 and getattr(router, "max_tensors", 1) is not None


class Asked:
    """A router that is asked at every decision of a batch: `Decide`.

    Attributes:
        single: Whether it sees no axis M.
        carry: `Context.carry` for the next decision, `before` for the last one.
        context: Context of the last one.
    """

    before: Tensor | None
    context: Context

    def __init__(
        self, router: Router, network: RoutedNetwork, deterministic: bool, carry: Tensor | None = None
    ) -> None:
        self.router, self.deterministic, self.carry = router, deterministic, carry
        self.single = is_single(router, network)

    def __call__(self, seen: Seen) -> Action:
        """Action of every row."""
        self.before = self.carry
        self.context = Context(seen, single=self.single, deterministic=self.deterministic, carry=self.carry)
        action = self.router.act(seen, self.context)
        self.carry = self.context.carry
        return action
