"""Routes that are tried on a batch's instances besides those the blocks learn on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from routing_gym.blocks import eval_mode
from routing_gym.envs import Trajectory, rollout

if TYPE_CHECKING:
    from routing_gym.agents.base.agent import Agent


class Trials:
    """Episodes of instances that have just been routed, without a gradient and without the blocks noticing.

    Running averages of batch norms do not take in what is only tried.

    Raises:
        ValueError: Several processes share batches; or the price of computation is drawn anew for every episode, so
            that those of one instance could not be compared.
    """

    def __init__(self, agent: Agent) -> None:
        env, self._agent = agent.env, agent
        if env.ranks.count > 1:
            raise ValueError(f"agent {agent.name!r} tries routes on batches of its own: it trains in one process")
        if len(env.config.prices) > 1:
            raise ValueError(
                f"agent {agent.name!r} compares routes of an instance, which needs one price: give one k_cpt, got "
                f"{env.config.k_cpt!r}"
            )
        self.env = env.sibling(env.num_envs, train=False, autoreset_mode="disabled", render_mode=None)

    @torch.no_grad()
    def of(self, instance: Tensor, count: int) -> list[Trajectory]:
        """So many episodes of instances `(B,)`, each along routes drawn anew."""
        with eval_mode(self.env.network):
            return [self._one(instance) for _ in range(count)]

    def _one(self, instance: Tensor) -> Trajectory:
        # The collaboration reward goes by what has been learned on, whatever was tried meanwhile.
        self.env.rewards.share.total.copy_(self._agent.env.rewards.share.total)
        return rollout(self._agent, self.env, instances=instance)
