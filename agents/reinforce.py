"""REINFORCE (Williams 1992), on a table or on approximators (Rosenbaum et al. 2018, section 3.1.2)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import ScoredAgent, ScoredConfig, mean_of_steps, stacked
from routing_gym.agents.parts.losses import policy_gradient_loss
from routing_gym.agents.parts.scores import visits_and_means
from routing_gym.envs import Trajectory
from routing_gym.options import not_negative

BASELINE_RATE = 0.1
"""Rate of the running mean that is the baseline."""


@dataclasses.dataclass(frozen=True)
class ReinforceConfig(ScoredConfig):
    """Options of REINFORCE.

    `gamma` discounts action rewards; the final reward is not discounted.

    Attributes:
        baseline: Subtracted from returns: `"average"`, each agent's running mean at each decision, or `"none"`.
        entropy: Weight of the policy's entropy in the loss.
    """

    baseline: Literal["average", "none"] = "average"
    entropy: float = not_negative(0.0)


class Reinforce(ScoredAgent):
    """REINFORCE: raises the log-probability of what it chose in proportion to what came of it.

    The gradient of −mean over instances of Σ_i (R_i − b) log π(a_i | s_i) + entropy · H(π(· | s_i)), recomputed from
    the recorded observations; b is the running average before this batch. Where several tensors choose, π is the
    probability of their joint choice, the product over those that chose.
    """

    Config = ReinforceConfig
    config: ReinforceConfig
    max_tensors = None
    # Below these nothing is learned on DIGITS-MTL in 20 epochs, four times above it is the same.
    DEFAULT_RATES = {"table": 0.1, "mlp": 0.003}
    average: Tensor

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.register_buffer("average", torch.zeros(self.arrangement.num_agents, self.arrangement.num_rows))

    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Take one step along the policy gradient of a batch."""
        returns, cells = trajectory.returns(self.config.gamma), self.cells(trajectory)
        average = self.average.flatten()
        gains = returns - average[cells] if self.config.baseline == "average" else returns
        active = stacked(trajectory.steps, "active").to(gains.dtype)
        log_chosen, entropy = self.chosen(trajectory.steps)
        self.descend(policy_gradient_loss(log_chosen, gains, entropy, active, self.config.entropy))

        visits, mean = visits_and_means(cells, returns, average.numel())
        moved = torch.where(visits > 0, average + BASELINE_RATE * (mean - average), average)
        self.average.copy_(moved.view_as(self.average))
        return {"policy_entropy": mean_of_steps(entropy.detach(), active)}
