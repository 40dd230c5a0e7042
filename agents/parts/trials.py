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
    """Episodes of instances that are being learned on, without a gradient and without the blocks noticing.

    `times` of every instance, one after the other, in one batch. Running averages of batch norms do not take in what is
    only tried.

    Raises:
        ValueError: Several processes share batches; or the price of computation is drawn anew for every episode, so
            that those of one instance could not be compared.
    """

    def __init__(self, agent: Agent, times: int) -> None:
        env, self._agent, self.times = agent.env, agent, times
        agent.in_one_process("tries routes on batches of its own")
        if len(env.config.prices) > 1:
            raise ValueError(
                f"agent {agent.name!r} compares routes of an instance, which needs one price: give one k_cpt, got "
                f"{env.config.k_cpt!r}"
            )
        self.env = env.sibling(times * env.num_envs, train=False, autoreset_mode="disabled", render_mode=None)

    @torch.no_grad()
    def of(self, instance: Tensor) -> Trajectory:
        """Episodes `(times * B,)` of instances, `(B,)`, each along a route drawn anew."""
        # The collaboration reward goes by what has been learned on, whatever was tried meanwhile.
        self.env.rewards.share.total.copy_(self._agent.env.rewards.share.total)
        with eval_mode(self.env.network):
            return rollout(self._agent, self.env, instances=instance.repeat_interleave(self.times))
