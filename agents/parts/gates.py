"""Gates: agents whose weights of blocks have a gradient, trained in the blocks' backward pass."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from torch import Tensor

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import ScoringAgent, TrainedConfig
from routing_gym.agents.parts.scores import ArrangedScores, Arrangement, make_scores
from routing_gym.envs import Context, Observation, Trajectory
from routing_gym.networks import Action


class Gate(ScoringAgent):
    """An agent whose weights have a gradient, with an optimiser of its own."""

    action_type = "weights"
    needs_gradients = True

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """Expected cost of computation, mean over instances, where that has a price: the blocks' loss knows of none."""
        return (trajectory.price * trajectory.expected_macs).mean() if self.env.rewards.priced else None

    def takes_no_outcomes(self, why: str) -> None:
        """Refuse a network that shares outcomes out: its weights have to sum to 1."""
        if self.env.network.shares_outcomes:
            raise ValueError(f"agent {self.name!r}: this network shares outcomes out by weights that sum to 1, {why}")


@dataclasses.dataclass(frozen=True)
class ScoredGateConfig(TrainedConfig):
    """Options of every gate that goes by scores; Adam's step size is 0.1 on a table and 0.003 on approximators.

    Attributes:
        arrangement: `"per_task"`, one gate per task, or `"single"`, one for all.
        representation: `"table"`, or `"mlp"`, two-layer approximators that see activation and task.
    """

    arrangement: Literal["per_task", "single"] = "per_task"
    representation: Literal["table", "mlp"] = "table"


class ScoredGate(Gate):
    """A gate that goes by scores, of which `num_outputs` are learned for a row; by default by their softmax."""

    Config: ClassVar[type[AgentConfig]] = ScoredGateConfig
    config: Any  # with an arrangement and a representation
    scores: ArrangedScores

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        kind, single = (self.config.arrangement, self.config.representation), self.max_tensors is not None
        self.arrangement = Arrangement(self.env, *kind, single=single)
        self.scores = make_scores(self.arrangement, self.config.seed, outputs=self.num_outputs)
        self.train_by(self.scores, self.DEFAULT_RATES[self.config.representation])

    @property
    def num_outputs(self) -> int | None:
        """How many numbers are learned for a row; None for a score of every choice."""
        return None

    def scored(self, observation: Observation) -> Tensor:
        """Scores `(B, ..., A)`, −inf where a choice is not legal; or `(B, outputs)`."""
        return self.scores(observation, self.arrangement.agent_of(observation["task"]))

    def act(self, observation: Observation, context: Context) -> Action:
        """Weights `(B, A)`, the softmax of the scores, the same in training and evaluation."""
        return self.noted(self.scored(observation).softmax(-1), context)
