"""Classifying images with a trained agent and its network, and nothing around them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from routing_gym.blocks import eval_mode
from routing_gym.envs import Asked, Manner, take_turn
from routing_gym.networks import RoutingState, Waiting
from routing_gym.tasks.checking import integer_tensor, to_tensor

if TYPE_CHECKING:
    from routing_gym.agents.base.agent import Agent


@torch.no_grad()
def classify(agent: Agent, images: Tensor, task: Tensor | None = None, *, k_cpt: float | None = None) -> Tensor:
    """Logits `(B, num_classes)` of images, routed by an agent's best choices.

    No environment runs along, so little but blocks and router takes time: rows that have left are not looked at again.
    The agent's environment, its episodes and random numbers are not touched, nor are modes once it has returned: a
    network or an agent in training is in eval mode meanwhile.

    Args:
        agent: The agent; `agent.env.network` is the network.
        images: `(B, C, H, W)` uint8, normalised here as the data the agent was trained on; or floating point,
            normalised already.
        task: `(B,)` int64; all 0 by default.
        k_cpt: What a multiply-accumulate costs now; for agents that see the price, see `Agent.predict`.

    Returns:
        `(B, num_classes)` logits, weighted over the exits where an instance was shared out.

    Raises:
        ValueError: Images of another shape, a task that is not there, a price that means nothing to the agent.
    """
    logits: Tensor | None = None
    for state in route_out(agent, images, task, k_cpt=k_cpt):
        for exit in state.exits:
            own = exit.weight.unsqueeze(1) * exit.logits
            rows = state.instance if exit.rows is None else state.instance.index_select(0, exit.rows)
            if logits is None:
                logits = own.new_zeros(len(images), own.shape[1])
            logits.index_add_(0, rows, own)
    if logits is None:  # no images
        return torch.zeros(len(images), agent.env.network.num_classes, device=agent.env.device)
    return logits


@torch.no_grad()
def route_out(
    agent: Agent, images: Tensor, task: Tensor | None = None, *, k_cpt: float | None = None
) -> list[RoutingState]:
    """Route images by an agent's best choices until all have left; takes and raises what `classify` does.

    Returns:
        States after each step that let rows out, with the exits of that step alone: `instance` has the places of their
        rows in `images`, `macs` their multiply-accumulates so far.
    """
    network, device = agent.env.network, agent.env.device
    images = to_tensor("images", images).to(device)
    if images.dtype == torch.uint8:
        images = agent.env.dataset.normalized(images)
    elif images.is_floating_point():
        images = images.float()
    else:
        raise ValueError(f"images must be uint8, or floating point and normalised already, got {images.dtype}")
    task = torch.zeros(len(images), dtype=torch.int64) if task is None else integer_tensor("task", task)
    task = task.to(device)
    if len(task) and not bool(((task >= 0) & (task < agent.num_tasks)).all()):
        raise ValueError(f"tasks are 0 to {agent.num_tasks - 1}, got {sorted(set(task.tolist()))}")
    price = agent.price_seen(k_cpt)
    generator = agent.generator.get_state()
    try:
        # Looking at every part takes longer than deciding once: what is in eval mode as a whole is not searched.
        with eval_mode(*(module for module in (network, agent) if module.training)):
            return _Way(agent, price).out(images, task)
    finally:
        agent.generator.set_state(generator)


@dataclasses.dataclass(frozen=True)
class _Group:
    """Rows that go on together, and what the agent carries for them: all at one decision, or shared out."""

    state: RoutingState
    carry: Tensor | None


class _Way:
    """The way of a batch through a network: rows that go on together leave behind those that have left."""

    def __init__(self, agent: Agent, price: float | None) -> None:
        self.agent, self.network, self.price = agent, agent.env.network, price
        self.manner = Manner(price=price is not None, validate=None)
        self.waiting: dict[int, list[_Group]] = defaultdict(list)
        self.left: list[RoutingState] = []

    def out(self, images: Tensor, task: Tensor) -> list[RoutingState]:
        """Route a batch until all have left."""
        place = torch.arange(len(images), device=images.device)
        price = None if self.price is None else images.new_full((len(images),), self.price)
        self._go(_Group(self.network.start(images, task, instance=place, price=price), None))
        while self.waiting:
            self._go(self._gathered(min(self.waiting)))  # no row comes to the earliest decision any more
        return self.left

    def _gathered(self, decision: int) -> _Group:
        """Take all that wait at a decision, as one group."""
        groups = self.waiting.pop(decision)
        if len(groups) == 1:
            return groups[0]
        carries = [group.carry for group in groups if group.carry is not None]
        return _Group(RoutingState.merge([group.state for group in groups]), torch.cat(carries) if carries else None)

    def _go(self, group: _Group) -> None:
        """Let rows choose until they have left or go different ways; rows that are shared out stay together."""
        shared = False
        while group.state.waiting:
            asked = Asked(self.agent, self.network, deterministic=True, carry=group.carry)
            state = take_turn(self.network, group.state, asked, self.manner).after
            if state.exits:
                self.left.append(dataclasses.replace(state, waiting={}))
            places = sum(map(len, state.waiting.values())) + sum(len(exit.weight) for exit in state.exits)
            shared = shared or places > len(state)
            if not shared and state.sole is None:
                for number, rows in state.waiting.items():
                    self.waiting[number].append(_alone(state, number, rows, asked.carry))
                return
            group = _Group(dataclasses.replace(state, exits=()) if state.exits else state, asked.carry)


def _alone(state: RoutingState, number: int, waiting: Waiting, carry: Tensor | None) -> _Group:
    """Rows at one decision without the others; what waits there is not copied."""
    rows = waiting.rows
    assert rows is not None, "all rows wait here, so there are no others"
    return _Group(
        RoutingState(
            state.task.index_select(0, rows),
            state.instance.index_select(0, rows),
            state.price.index_select(0, rows),
            state.macs.index_select(0, rows),
            state.expected_macs.index_select(0, rows),
            {number: dataclasses.replace(waiting, rows=None)},
            (),
            state.num_decisions,
        ),
        None if carry is None else carry.index_select(0, rows),
    )
