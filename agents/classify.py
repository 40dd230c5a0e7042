"""Classifying images with a trained agent and its network, and nothing around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from routing_gym.envs import PRICED_MACS, Context

if TYPE_CHECKING:
    from routing_gym.agents.base import Agent


@torch.no_grad()
def classify(agent: Agent, images: Tensor, task: Tensor | None = None, *, k_cpt: float | None = None) -> Tensor:
    """Route images by an agent's best choices and return what the network makes of them.

    No environment runs along, so little but blocks and router takes time: rows that have left are not looked at again.
    The agent's environment, its episodes and random numbers are not touched, nor are modes once it has returned.

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
    network, device = agent.env.network, agent.env.device
    images = images.to(device)
    if images.dtype == torch.uint8:
        images = agent.env.dataset.normalized(images)
    task = torch.zeros(len(images), dtype=torch.int64, device=device) if task is None else task.to(device)
    if len(task) and not bool(((task >= 0) & (task < agent.num_tasks)).all()):
        raise ValueError(f"tasks are 0 to {agent.num_tasks - 1}, got {sorted(set(task.tolist()))}")
    price = agent.price_seen(k_cpt)
    modes = [(part, part.training) for module in (network, agent) for part in module.modules() if part.training]
    for part, _ in modes:
        part.training = False
    generator = agent.generator.get_state()
    try:
        state = network.start(images, task)
        logits = images.new_zeros(len(images), network.num_classes)
        carry: Tensor | None = None
        while state.waiting:
            observation = {"activation": network.observe(state), "task": task, "depth": state.at}
            if price is not None:
                observation["price"] = images.new_full((len(images), 1), PRICED_MACS * price)
            context = Context(state.active, network.action_mask(state), deterministic=True, carry=carry)
            state = network.advance(state, network.check_action_form(state, agent.act(observation, context)))
            carry = context.carry
        for exit in state.exits:
            own = exit.weight.unsqueeze(1) * exit.logits
            logits = logits + own if exit.rows is None else logits.index_add_(0, exit.rows, own)
        return logits
    finally:
        agent.generator.set_state(generator)
        for part, training in modes:
            part.training = training
