"""REINFORCE (Williams 1992), on a table or on approximators (Rosenbaum et al. 2018, section 3.1.2)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

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

    `gamma` discounts action rewards; the final reward is not discounted. Below the default step sizes nothing is
    learned on DIGITS-MTL in 20 epochs, four times above them it is the same.

    Attributes:
        baseline: Subtracted from returns: `"average"`, each agent's running mean at each decision, or `"none"`.
        entropy: Weight of the policy's entropy in the loss. 0.2 is worth 10 to 15 points where blocks are scarce
            (HiddenGroups-v0), but on DIGITS-MTL nothing is learned with it in 20 epochs (90.0 instead of 99.4 %).
        into_blocks: Let the gradient of approximators go on into the blocks that made what they see (end of section
            3.1.2; the paper found no advantage). The environment must have been made with `differentiable=True`.
    """

    baseline: Literal["average", "none"] = "average"
    entropy: float = not_negative(0.0)
    into_blocks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.into_blocks and self.representation == "table":
            raise ValueError(f"{self.owner()}into_blocks is for representation='mlp': a table sees no activation")


class Reinforce(ScoredAgent):
    """REINFORCE: raises the log-probability of what it chose in proportion to what came of it.

    The gradient of −mean over instances of Σ_i (R_i − b) log π(a_i | s_i) + entropy · H(π(· | s_i)), recomputed from
    the recorded observations; b is the running average before this batch. Where several tensors choose, π is the
    probability of their joint choice, the product over those that chose.
    """

    by_task = capturable = True
    Config = ReinforceConfig
    config: ReinforceConfig
    max_tensors = None

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.average = nn.Buffer(torch.zeros(self.arrangement.num_agents, self.arrangement.num_rows))
        self.needs_gradients = self.config.into_blocks
        if self.needs_gradients and not self.env.config.differentiable:
            raise ValueError(f"agent {self.name!r}: into_blocks=True needs an environment with differentiable=True")

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """Loss of the policy gradient where it goes on into the blocks."""
        if not self.config.into_blocks:
            return None
        seen = self.as_seen(trajectory, detach=False)
        return self._loss(seen, seen.returns(self.config.gamma), self.cells(seen))[0]

    def _loss(self, trajectory: Trajectory, returns: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, 0-dimensional, and mean entropy of the policy."""
        gains = returns - self.average.flatten()[cells] if self.config.baseline == "average" else returns
        active = stacked(trajectory.steps, "active").to(gains.dtype)
        log_chosen, entropy = self.chosen(trajectory.steps)
        loss = policy_gradient_loss(log_chosen, gains, entropy, active, self.config.entropy)
        return loss, mean_of_steps(entropy.detach(), active)

    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Take one step along the policy gradient of a batch, unless that has been taken with the blocks'."""
        returns, cells, average = trajectory.returns(self.config.gamma), self.cells(trajectory), self.average.flatten()
        with torch.set_grad_enabled(not self.config.into_blocks):  # else the next step would find use noted by this one
            loss, entropy = self._loss(trajectory, returns, cells)
        if not self.config.into_blocks:
            self.descend(loss)
        visits, mean = visits_and_means(cells, returns, average.numel())
        moved = torch.where(visits > 0, average + BASELINE_RATE * (mean - average), average)
        self.average.copy_(moved.view_as(self.average))
        return {"policy_entropy": entropy}
