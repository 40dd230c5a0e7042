"""Classifying images with a trained agent and its network, and nothing around them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from routing_gym.blocks import eval_mode
from routing_gym.envs import Asked, Manner, take_turn
from routing_gym.networks import RoutingState, Waiting
from routing_gym.networks.state import COLUMNS
from routing_gym.tasks.checking import integer_tensor, to_tensor

if TYPE_CHECKING:
    from routing_gym.agents.base.agent import Agent


@torch.no_grad()
def classify(agent: Agent, images: Tensor, task: Tensor | None = None, *, k_cpt: float | None = None) -> Tensor:
    """Logits `(B, num_classes)` of images, routed by an agent's best choices; weighted over the exits of an instance.

    No environment runs along, so little but blocks and router takes time: rows that have left are not looked at again.
    The agent's environment, its episodes and random numbers are not touched, nor are modes once it has returned: a
    network or an agent in training is in eval mode meanwhile.

    Args:
        agent: Decides; its environment holds the network.
        images: `(B, C, H, W)` uint8, normalised here as the data the agent was trained on; or floating point,
            normalised already.
        task: `(B,)` int64; all 0 by default.
        k_cpt: What a multiply-accumulate costs now; for agents that see the price, see `Agent.predict`.

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
    task = (
        torch.zeros(len(images), dtype=torch.int64, device="cpu") if task is None else integer_tensor("task", task)
    ).to(device)
    if len(task) and not bool(((task >= 0) & (task < agent.num_tasks)).all()):
        raise ValueError(f"tasks are 0 to {agent.num_tasks - 1}, got {sorted(set(task.tolist()))}")
    price = agent.price_seen(k_cpt)
    generator = agent.generator.get_state()
    try:
        # Looking at every part takes longer than deciding once: what is in eval mode as a whole is not searched.
        with eval_mode(*(module for module in (network, agent) if module.training)):
            return _route(agent, images, task, price)
    finally:
        agent.generator.set_state(generator)


_Group = tuple[RoutingState, Tensor | None]
"""Rows that go on together, all at one decision or shared out, and what the agent carries for them."""


def _route(agent: Agent, images: Tensor, task: Tensor, price: float | None) -> list[RoutingState]:
    """Route a batch until all have left: rows that go on together leave behind those that have left."""
    network, merge = agent.env.network, agent.env.config.merge_blocks
    manner = Manner(price=price is not None, validate=None, merge_blocks=merge)
    waiting: dict[int, list[_Group]] = defaultdict(list)
    left: list[RoutingState] = []

    def go(state: RoutingState, carry: Tensor | None) -> None:
        """Let rows choose until they have left or go different ways; rows that are shared out stay together."""
        shared = False
        while state.waiting:
            asked = Asked(agent, network, deterministic=True, carry=carry)
            state, carry = take_turn(network, state, asked, manner).after, asked.carry
            places = sum(map(len, state.waiting.values())) + sum(len(exit.weight) for exit in state.exits)
            shared = shared or places > len(state)
            if state.exits:
                left.append(dataclasses.replace(state, waiting={}))
            if not shared and state.sole is None:
                for number, rows in state.waiting.items():
                    waiting[number].append(_alone(state, number, rows, carry))
                return
            state = dataclasses.replace(state, exits=()) if state.exits else state

    place = torch.arange(len(images), device=images.device)
    prices = None if price is None else images.new_full((len(images),), price)
    go(network.start(images, task, instance=place, price=prices), None)
    while waiting:
        groups = waiting.pop(min(waiting))  # no row comes to the earliest decision any more
        if len(groups) > 1:
            carries = [carry for _, carry in groups if carry is not None]
            groups = [(RoutingState.merge([state for state, _ in groups]), torch.cat(carries) if carries else None)]
        go(*groups[0])
    return left


def _alone(state: RoutingState, number: int, waiting: Waiting, carry: Tensor | None) -> _Group:
    """Rows at one decision without the others; what waits there is not copied."""
    rows = waiting.rows
    assert rows is not None, "all rows wait here, so there are no others"
    columns: dict[str, Any] = {name: getattr(state, name).index_select(0, rows) for name in COLUMNS}
    alone = dataclasses.replace(state, **columns, waiting={number: dataclasses.replace(waiting, rows=None)}, exits=())
    return alone, None if carry is None else carry.index_select(0, rows)
