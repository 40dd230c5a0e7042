"""Proximal policy optimisation (Schulman et al. 2017), on whole batches of routes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from routing_gym.agents.actor_critic import ActorCritic, ActorCriticConfig
from routing_gym.agents.parts.bases import mean_of_steps, stacked
from routing_gym.agents.parts.losses import LEAST_SPREAD, clipped_surrogate_loss, squared_td_error
from routing_gym.envs import Trajectory
from routing_gym.options import count, positive, share


@dataclasses.dataclass(frozen=True)
class PPOConfig(ActorCriticConfig):
    """Options of PPO.

    Attributes:
        epochs: Steps taken on each batch, K.
        clip: ε, how far the ratio of new to old policy may be from 1 and still be paid for.
        normalize: Divide a batch's advantages by their standard deviation, their mean subtracted.
    """

    gae_lambda: float = share(0.95)
    epochs: int = count(4)
    clip: float = positive(0.2)
    normalize: bool = True


class PPO(ActorCritic):
    """PPO: several steps on every batch, each kept from moving the policy far.

    Of the advantages A of `actor-critic`, fixed before the first step, the loss is the mean over instances of
    Σ_i −min(ρ_i A_i, clip(ρ_i, 1 − ε, 1 + ε) A_i) + critic · (A_i + V_old(s_i) − V(s_i))² − entropy · H(π(· | s_i)),
    with the ratio ρ_i = π(a_i | s_i) / π_old(a_i | s_i) (Schulman et al. 2017, Eqs. 7 and 9).
    """

    by_task = False  # a batch's advantages are normalised over all of its tasks
    Config = PPOConfig
    config: PPOConfig

    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Take `epochs` steps of actor and critic."""
        config, steps = self.config, trajectory.steps
        counting = stacked(steps, "active").to(trajectory.loss.dtype)
        with torch.no_grad():
            fixed, (old, _) = self.values_at(steps), self.chosen(steps)
            advantages = self.advantages(trajectory, fixed)
            target, gains = advantages + fixed, advantages
            if config.normalize:
                gains = advantages - (counting * advantages).sum() / counting.sum()
                gains = gains / (((counting * gains.square()).sum() / counting.sum()).sqrt() + LEAST_SPREAD)
        for _ in range(config.epochs):
            log_chosen, entropy = self.chosen(steps)
            actor = clipped_surrogate_loss(
                log_chosen, old, gains, entropy, counting, clip=config.clip, entropy_weight=config.entropy
            )
            self.descend(actor + config.critic * squared_td_error(target, self.values_at(steps), counting))
        drift = mean_of_steps(old - log_chosen.detach(), counting)
        return {"policy_entropy": mean_of_steps(entropy.detach(), counting), "policy_drift": drift}
