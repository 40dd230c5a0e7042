"""ReLU routing (Wang et al. 2024, "ReMoE")."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.demands import offers
from routing_gym.agents.parts.gates import ScoredGate, ScoredGateConfig
from routing_gym.envs import Context, Observation, Trajectory
from routing_gym.options import positive, rate

LEAST, MOST = 1e-30, 1e6
"""λ stays between: from 0 it could not rise again, nor in time from much less; squares of much more are infinite."""


@dataclasses.dataclass(frozen=True)
class ReMoEConfig(ScoredGateConfig):
    """Options of ReLU routing.

    Attributes:
        k: How many blocks a row is to be mixed from, on average.
        penalty: λ at first: weight of the sum of a row's weights.
        penalty_step: α: after every batch λ is multiplied by it where more than k blocks were used, divided where fewer
            were.
        balance: Weigh a block's part of the penalty by how often it was used, times legal blocks / k (Eq. 12).
    """

    k: float = positive(1.0)
    penalty: float = rate(1e-8)
    penalty_step: float = positive(1.2)
    balance: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty_step <= 1:
            raise ValueError(
                f"{self.owner()}penalty_step must be above 1, got {self.penalty_step}: λ would fall where too many "
                "blocks are on"
            )


class ReMoE(ScoredGate):
    """ReLU routing: a block's weight is the ReLU of its score, so that which blocks run changes continuously.

    The weights are relu(1 / n + s) of n legal choices: all run at first, evenly. The penalty λ Σ_i relu(...)_i, mean
    over rows and decisions, switches them off, and λ follows how many are on: λ ← λ α^sign(used − k) (Wang et al. 2024,
    Eqs. 7 to 9; there the networks are residual and scores begin around 0). Where all of a row's weights would be 0 its
    best choice weighs 1, with the gradient of its score: these networks have nothing else to carry the row on. Its
    cost has the gradient of the softmax.

    Raises:
        ValueError: k is larger than the number of choices of any decision; or a network that shares outcomes out, which
            takes weights that sum to 1.
    """

    Config = ReMoEConfig
    config: ReMoEConfig

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        offers(self, self.config.k)
        self.takes_no_outcomes("the weights of ReLU routing sum to anything")
        self.penalty = nn.Buffer(torch.tensor(self.config.penalty, dtype=torch.float64, device=self.env.device))

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Weights `(B, A)`, the same in training and evaluation."""
        scores = self.scored(observation)
        weights = functional.relu(scores + 1 / scores.isfinite().sum(-1, keepdim=True))
        context.record["relu"] = weights
        best, score = scores.argmax(-1), scores.amax(-1, keepdim=True)
        hard, on = functional.one_hot(best, self.num_choices).to(scores.dtype), weights.detach().sum(-1, keepdim=True)
        if self.env.rewards.priced:
            policy = scores.softmax(-1)
            self.pays_by(torch.where(on > 0, weights, hard + policy - policy.detach()), context)
        weights = torch.where(on > 0, weights, hard * (1 + score - score.detach()))
        if self.shares_wanted:
            context.record["probabilities"] = (weights / weights.sum(-1, keepdim=True)).detach()
        return weights

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor:
        """The penalty, and the expected cost of computation where that has a price."""
        ranks, rows = self.env.ranks, torch.zeros_like(trajectory.loss)
        for step in trajectory.steps:
            weights = step.record["relu"] * step.active.unsqueeze(-1)
            if self.config.balance:
                used = ranks.gathered((weights.detach() > 0).to(weights.dtype)).mean(0)
                blocks = self.arrangement.legal.sum(-1).index_select(0, step.decision).unsqueeze(-1)
                weights = weights * used * blocks / self.config.k
            rows = rows + weights.sum(-1)
        penalty = self.penalty.to(trajectory.loss.dtype) * (rows / self.num_decisions).mean()
        cost = super().auxiliary_loss(trajectory)
        return penalty if cost is None else cost + penalty

    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Move λ, and report it and how many blocks a row was mixed from."""
        on = torch.stack([(step.record["relu"].detach() > 0).sum(-1) * step.active for step in trajectory.steps])
        active = torch.stack([step.active for step in trajectory.steps])
        used = on.sum() / active.sum()
        step = self.config.penalty_step ** torch.sign(used - self.config.k).to(self.penalty.dtype)
        self.penalty.mul_(step).clamp_(LEAST, MOST)
        return {"blocks_on": used, "penalty": self.penalty.clone()}
