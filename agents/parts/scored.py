"""Agents that decide by scores: a table or approximators, trained by gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from routing_gym.agents.base.options import AgentConfig
from routing_gym.agents.parts.arrangement import LearningAgent, LearningConfig, stacked
from routing_gym.agents.parts.losses import joint_choice
from routing_gym.agents.parts.scores import TableScores, make_scores
from routing_gym.blocks import Adam
from routing_gym.envs import Observation, Step
from routing_gym.options import positive


@dataclasses.dataclass(frozen=True)
class ScoredConfig(LearningConfig):
    """Options of every agent that decides by scores.

    Attributes:
        learning_rate: Step size of Adam on the scores' parameters; None for the default of the representation, best on
            DIGITS-MTL's validation split (`DEFAULT_RATES`).
    """

    learning_rate: float | None = positive(None)


class ScoredAgent(LearningAgent):
    """An agent whose preferences are scores.

    Attributes:
        scores: A number for every choice.
        rate: The learning rate.
    """

    Config = ScoredConfig
    config: ScoredConfig
    DEFAULT_RATES: ClassVar[dict[str, float]]

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        options = self.config
        inputs = self.env.network.observation_size
        self.rate = options.learning_rate or self.DEFAULT_RATES[options.representation]
        self.scores = make_scores(options.representation, self.arrangement, inputs, options.seed)
        self.optimizer = Adam(self.scores, lr=self.rate)

    def preferences(self, observation: Observation, agent: Tensor) -> Tensor:
        """Return the scores."""
        return self.scores(observation, agent)

    def preference_table(self) -> Tensor | None:
        """Return the scores, where they are in a table."""
        return self.scores.of_all_rows() if isinstance(self.scores, TableScores) else None

    def chosen(self, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
        """Log-probability of what was chosen and entropy of the policy, `(S, B)` each, recomputed with graph."""
        choosing = None if self.max_tensors is not None else stacked(steps, "choosing")
        return joint_choice(self.scores_at(steps).log_softmax(-1), stacked(steps, "action"), choosing)

    def scores_at(self, steps: Sequence[Step]) -> Tensor:
        """Scores `(S, B, ..., A)` of whoever decided at each step, recomputed with graph."""
        return torch.stack([self.scores(step.observation, self.agent_at(step)) for step in steps])

    def descend(self, loss: Tensor) -> None:
        """Take one step down a loss."""
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def preference_macs(self) -> float:
        """Return what an approximator costs; 0 for a table."""
        return self.scores.macs()
