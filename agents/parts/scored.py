"""Agents that decide by scores: a table or approximators, trained by gradients."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from routing_gym.agents.base.options import AgentConfig, positive
from routing_gym.agents.parts.arrangement import LearningAgent, LearningConfig, chosen_in
from routing_gym.agents.parts.scores import TableScores, make_scores
from routing_gym.blocks import Adam
from routing_gym.envs import Observation, Step


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

    def chosen(self, step: Step) -> tuple[Tensor, Tensor]:
        """Recompute a step, with graph.

        Returns:
            `(B,)`, the log-probability of what was chosen, and `(B,)`, the entropy of the policy; both summed over the
            tensors that chose.
        """
        log_policy = self.preferences(step.observation, self.agent_at(step)).log_softmax(-1)
        log_chosen = log_policy.gather(-1, chosen_in(step).unsqueeze(-1)).squeeze(-1)
        # 0 · (−inf) of what is not legal counts as 0.
        least = torch.finfo(log_policy.dtype).min
        entropy = -(log_policy.exp() * log_policy.clamp(min=least)).sum(-1)
        if self.max_tensors is not None:
            return log_chosen, entropy
        return log_chosen.where(step.choosing, 0).sum(-1), entropy.where(step.choosing, 0).sum(-1)

    def descend(self, loss: Tensor) -> None:
        """Take one step down a loss."""
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def preference_macs(self) -> float:
        """Return what an approximator costs; 0 for a table."""
        return self.scores.macs()
