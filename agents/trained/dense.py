"""Network and agent as one plain computation, in which everything runs and decisions weigh: to be exported."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from routing_gym.blocks import PartlyUsed
from routing_gym.envs import Asked, Manner, Seen, drive
from routing_gym.networks import Normalize
from routing_gym.networks.actions import dense

if TYPE_CHECKING:
    from routing_gym.agents.base.agent import Agent


class Dense(nn.Module):
    """Images `(B, C, H, W)`, and tasks `(B,)` where there are several, to logits `(B, num_classes)`.

    All rows go all ways by the agent's best choices as weights, most of them 0: the logits are those of
    `Agent.classify`, and no value decides what is computed. Network and agent are copies.
    """

    def __init__(self, agent: Agent, *, normalize: bool, price: float | None) -> None:
        super().__init__()
        env = agent.env
        whole = {id(part): part for part in (env, agent.generator, agent.optimizer)}  # not copied
        self.network, self.agent = copy.deepcopy((env.network, agent), whole)
        self.normalize = Normalize(env.dataset.mean, env.dataset.std) if normalize else nn.Identity()
        self.price, self.several = price, agent.num_tasks > 1
        for part in self.modules():
            if isinstance(part, PartlyUsed):
                part.dense = True
        self.eval()

    def forward(self, images: Tensor, task: Tensor | None = None) -> Tensor:
        """Logits `(B, num_classes)`."""
        x = self.normalize(images)
        if task is None:
            if self.several:
                raise ValueError("this network has several tasks: give the task of every image, (B,) int64")
            task = x.new_zeros(x.shape[:1], dtype=torch.int64)
        price = None if self.price is None else x.new_full(task.shape, self.price)
        graph = torch.is_grad_enabled()  # as outside: a change would be exported
        manner = Manner(graph=graph, differentiable=graph, price=price is not None, validate=None)
        asked = Asked(self.agent, self.network, deterministic=True)

        def weigh(seen: Seen) -> Tensor:
            return dense(asked(seen), self.network.num_choices)

        turns = drive(self.network, self.network.start(x, task, price=price), weigh, manner)
        return torch.stack([exit.weight.unsqueeze(1) * exit.logits for turn in turns for exit in turn.exits]).sum(0)
