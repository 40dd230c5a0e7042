"""Actor learning (McGill and Perona 2017, section 4.1)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from routing_gym.agents.parts.multipath import ExactMultipath, MultipathConfig
from routing_gym.envs import Trajectory
from routing_gym.options import not_negative


@dataclasses.dataclass(frozen=True)
class ActorConfig(MultipathConfig):
    """Options of actors.

    Attributes:
        decisiveness: k_dec of Eq. 10: penalty on the squared scores, in proportion to how likely instances are at their
            decision; it keeps other paths being tried.
        regularized_policy: Let the penalties' gradient go on into the probabilities that weigh them (Fig. 5).
    """

    decisiveness: float = not_negative(0.01)
    regularized_policy: bool = False


class Actor(ExactMultipath):
    """Actor: minimises the expected cost of inference under the training policy, exactly (Eqs. 3, 4 and 10).

    L = E[c_err + k_cpt n_ops] + E[k_L2 Σ w² + k_dec Σ ‖s_j‖²]: every path is run, and the gradient of the first
    expectation goes through its probabilities. n_ops counts columns, the routers passed and the classifier used.
    """

    Config = ActorConfig
    config: ActorConfig

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor:
        """Expected cost of computation and penalties, 0-dimensional; the expected error is the blocks' own loss."""
        through = self.config.regularized_policy
        computed, squares = trajectory.expected_macs, torch.zeros_like(trajectory.loss)
        for step in trajectory.steps:
            reach = step.record["reach"] * step.active
            computed = computed + reach * self._scores_macs.index_select(0, step.decision)
            reach = reach if through else reach.detach()
            squares = squares + reach * step.record["scores"].square().sum(-1)
        penalties = self.weight_penalty(trajectory, through) + self.config.decisiveness * squares.mean()
        return (trajectory.price * computed).mean() + penalties

    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Report temperature and expected multiply-accumulates."""
        return {**super().update(trajectory), "expected_macs": trajectory.expected_macs.detach().mean()}
