"""Mixture of depths (Raposo et al. 2024): every block is run for the rows that want it most, up to its capacity."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.agents.parts.assignments import among_highest, by_decision
from routing_gym.agents.parts.bases import stacked
from routing_gym.agents.parts.demands import RUN, SKIP, takes_skips
from routing_gym.agents.parts.gates import ScoredGate, ScoredGateConfig
from routing_gym.envs import Context, Observation, Trajectory
from routing_gym.options import not_negative, share


@dataclasses.dataclass(frozen=True)
class MixtureOfDepthsConfig(ScoredGateConfig):
    """Options of mixtures of depths.

    Attributes:
        capacity: Share of a batch's rows for which each block is run.
        prediction: Weight of the cross-entropy by which scores learn to say which rows a batch will choose.
    """

    arrangement: Literal["per_task", "single"] = "single"
    representation: Literal["table", "mlp"] = "mlp"
    capacity: float = share(0.5)
    prediction: float = not_negative(0.01)


class MixtureOfDepths(ScoredGate):
    """Mixture of depths: in training each block runs those rows of a batch that score highest, a fixed share of them.

    The score of a row is s = score of running less that of skipping; what a block adds is weighed by sigmoid(s), by
    which its router learns (Raposo et al. 2024, Eq. 1): the shortcut keeps the rest. So what a batch costs is known
    beforehand. Which rows are among the highest depends on the others; when deterministic a row runs a block where
    s > 0, which a cross-entropy against "was among the highest" teaches (section 3.5, the first of its two ways). A
    price is paid by sigmoid(s), whether or not a row was among them.

    Raises:
        ValueError: A network whose decisions are not to skip (0) or run (1).
    """

    Config = MixtureOfDepthsConfig
    config: MixtureOfDepthsConfig

    def _check_env(self) -> None:
        super()._check_env()
        takes_skips(self)
        self.in_one_process("chooses among the rows of a whole batch")

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Weights `(B, 2)` of skipping and running."""
        scores = self.scored(observation)
        wish = scores[:, RUN] - scores[:, SKIP]
        run = wish > 0
        if not context.deterministic:
            for here in by_decision(observation["depth"], context, self.num_decisions):
                capacity = capacity_of(here, self.config.capacity)
                run = torch.where(here, among_highest(wish.detach(), here, capacity), run)
            context.record["wish"], context.record["run"] = wish, run
            self.pays_by(scores.softmax(-1), context)  # also of rows that only the others have kept from running
        if self.shares_wanted:
            context.record["probabilities"] = functional.one_hot(run.long(), 2).to(wish.dtype)
        gate = wish.sigmoid() * run
        return torch.stack([1 - gate, gate], -1)

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """Cross-entropy of what scores predict, and the expected cost of computation where that has a price."""
        cost, steps = super().auxiliary_loss(trajectory), trajectory.steps
        if not self.config.prediction:
            return cost
        wish, run = (torch.stack([step.record[name] for step in steps]) for name in ("wish", "run"))
        active = stacked(steps, "active")
        wrong = functional.binary_cross_entropy_with_logits(wish, run.to(wish.dtype), reduction="none")
        loss = self.config.prediction * (wrong * active).sum() / active.shape[1]
        return loss if cost is None else cost + loss


def capacity_of(rows: Tensor, share: float) -> Tensor:
    """Share of some rows, `(B,)` bool, rounded up, 0-dimensional: 0.15 of 100 rows are 15, whatever rounding adds."""
    return (share * rows.sum().double() - 1e-9).ceil()
