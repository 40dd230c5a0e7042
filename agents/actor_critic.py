"""Advantage actor-critic (Mnih et al. 2016) with generalised advantages (Schulman et al. 2016)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import ScoredAgent, ScoredConfig, mean_of_steps, stacked
from routing_gym.agents.parts.losses import generalized_advantages, policy_gradient_loss, squared_td_error
from routing_gym.agents.parts.scores import make_scores
from routing_gym.envs import Step, Trajectory
from routing_gym.options import not_negative, share


@dataclasses.dataclass(frozen=True)
class ActorCriticConfig(ScoredConfig):
    """Options of the advantage actor-critic.

    `gamma` discounts the final reward too, by one power for every decision before it.

    Attributes:
        gae_lambda: How far an advantage looks ahead before it trusts the critic: 1 for the whole return, 0 for a step.
        critic: Weight of the critic's squared error in the loss.
        entropy: Weight of the policy's entropy in the loss.
    """

    gae_lambda: float = share(1.0)
    critic: float = not_negative(0.5)
    entropy: float = not_negative(0.0)


class ActorCritic(ScoredAgent):
    """Advantage actor-critic: REINFORCE whose baseline is a learned value of the state.

    δ_i = r_i + γ V(s_{i+1}) − V(s_i), with the final reward in place of γ V(s_{i+1}) where the instance leaves;
    A_i = δ_i + γ λ A_{i+1}; the loss is the mean over instances of
    Σ_i −A_i log π(a_i | s_i) + critic · (A_i + V_old(s_i) − V(s_i))² − entropy · H(π(· | s_i)).
    The critic has the representation of the actor: a table, or two layers of its own. Where several tensors choose, π
    is the probability of their joint choice, the product over those that chose, and V is one value of the whole state.
    """

    by_task = True
    Config = ActorCriticConfig
    config: ActorCriticConfig
    max_tensors = None

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.values = make_scores(self.arrangement, (self.config.seed + 1) % 2**64, outputs=1)
        self.train_by(nn.ModuleList([self.scores, self.values]), self.rate)

    def values_at(self, steps: Sequence[Step]) -> Tensor:
        """The critic's values of steps, `(S, B)`."""
        return self.scores_at(steps, self.values).squeeze(-1)

    def advantages(self, trajectory: Trajectory, values: Tensor) -> Tensor:
        """Generalised advantages `(S, B)`, given the critic's values of the steps, without graph."""
        rewards, active = stacked(trajectory.steps, "reward"), stacked(trajectory.steps, "active")
        discounts = {"gamma": self.config.gamma, "lambda_": self.config.gae_lambda}
        return generalized_advantages(rewards, values, trajectory.final_reward, active, **discounts)

    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Take one step of actor and critic."""
        config, steps = self.config, trajectory.steps
        active, values = stacked(steps, "active"), self.values_at(steps)
        fixed, counting = values.detach(), active.to(values.dtype)
        advantages = self.advantages(trajectory, fixed)
        log_chosen, entropy = self.chosen(steps)
        actor = policy_gradient_loss(log_chosen, advantages, entropy, counting, config.entropy)
        self.descend(actor + config.critic * squared_td_error(advantages + fixed, values, counting))
        value = (fixed * active).sum() / active.sum()
        return {"policy_entropy": mean_of_steps(entropy.detach(), counting), "value": value}
