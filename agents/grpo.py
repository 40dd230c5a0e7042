"""Group-relative policy optimisation (Shao et al. 2024) and REINFORCE leave-one-out (Kool et al. 2019)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torch import Tensor

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import ScoredAgent, ScoredConfig, mean_of_steps, stacked
from routing_gym.agents.parts.losses import clipped_surrogate_loss, group_advantages
from routing_gym.agents.parts.trials import Trials
from routing_gym.envs import Trajectory
from routing_gym.options import count, not_negative, positive


@dataclasses.dataclass(frozen=True)
class GRPOConfig(ScoredConfig):
    """Options of GRPO.

    `gamma` discounts action rewards; the final reward is not discounted.

    Attributes:
        group: How many routes of every instance are compared, G, at least 2. Each costs one pass without a gradient.
        advantage: `"grpo"`, (R − mean) / standard deviation over the group; `"rloo"`, R less the mean of the other
            routes (leave-one-out); or `"mean"`, R − mean (Liu et al. 2025, "Dr. GRPO").
        epochs: Steps taken on each group; from the second on the ratio of new to old policy is clipped.
        clip: ε, how far that ratio may be from 1 and still be paid for.
        entropy: Weight of the policy's entropy in the loss.
    """

    group: int = count(4, least=2)
    advantage: Literal["grpo", "rloo", "mean"] = "grpo"
    epochs: int = count(1)
    clip: float = positive(0.2)
    entropy: float = not_negative(0.0)


class GRPO(ScoredAgent):
    """GRPO: raises the log-probability of those of an instance's routes that earned more than its others.

    After the blocks' step the batch goes through the network G times more, without a gradient, along routes drawn from
    the policy. The advantage of a route, the same at all of its decisions, is its return less that of the instance's
    other routes: what an instance is worth by itself, which a baseline by task cannot know, cancels out, and no critic
    is needed (Shao et al. 2024, Eq. 3; the penalty on the distance from a reference policy is left out, since there is
    none, and routes are not weighed by their length, as by Liu et al. 2025). Where several tensors choose, the policy
    is the probability of their joint choice.
    """

    by_task = True
    Config = GRPOConfig
    config: GRPOConfig
    max_tensors = None

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self._trials = Trials(self, self.config.group)

    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Compare routes of the batch's instances, and take `epochs` steps."""
        config = self.config
        tried = self.as_seen(self._trials.of(trajectory.instance), detach=True)
        returns = tried.returns(config.gamma)[0].view(-1, config.group)
        advantages = group_advantages(returns, config.advantage).flatten()
        active = stacked(tried.steps, "active").to(returns.dtype)
        old: Tensor | None = None
        for _ in range(config.epochs):
            log_chosen, entropy = self.chosen(tried.steps)
            old = log_chosen.detach() if old is None else old
            loss = clipped_surrogate_loss(
                log_chosen, old, advantages, entropy, active, clip=config.clip, entropy_weight=config.entropy
            )
            self.descend(loss)
        return {"policy_entropy": mean_of_steps(entropy.detach(), active), "group_spread": returns.std(1).mean()}
