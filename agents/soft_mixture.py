"""Soft mixtures of all blocks (Rosenbaum et al. 2018, section 4)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torch import Tensor

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import Gate, TrainedConfig
from routing_gym.agents.parts.scores import ArrangedScores, Arrangement, make_scores
from routing_gym.envs import Context, Observation


@dataclasses.dataclass(frozen=True)
class SoftMixtureConfig(TrainedConfig):
    """Options of soft mixtures; Adam's step size is 0.01, and 0.001 for approximators.

    Attributes:
        arrangement: `"single"`, the same weights for all tasks; or `"per_task"`, each its own: with a network made with
            `recurrent=True`, whose blocks are offered at every depth, soft ordering (Meyerson and Miikkulainen 2018).
        conditioned: Let approximators of (activation, task), one per decision, give the weights (Table 4); by default
            each decision has weights of its own, the same for all instances (section 4).
    """

    arrangement: Literal["single", "per_task"] = "single"
    conditioned: bool = False


class SoftMixture(Gate):
    """Soft mixture (soft-mixture-fc): all blocks run, and their outputs are mixed by softmax weights.

    Rosenbaum et al. (2018), section 4: every block of a layer gets the same mixture of what came before.
    """

    by_task = True
    Config = SoftMixtureConfig
    config: SoftMixtureConfig
    scores: ArrangedScores

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        representation, rate = ("mlp", 0.001) if self.config.conditioned else ("table", 0.01)
        self.arrangement = Arrangement(self.env, self.config.arrangement, representation)
        self.scores = make_scores(self.arrangement, self.config.seed)
        self.train_by(self.scores, rate)

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Weights `(B, A)`, the same in training and evaluation."""
        weights = self.scores(observation, self.arrangement.agent_of(observation["task"])).softmax(-1)
        if self.shares_wanted:
            context.record["probabilities"] = weights.detach()
        return weights
