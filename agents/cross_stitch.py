"""Cross-stitch (Misra et al. 2016)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import ScoringAgent, TrainedConfig
from routing_gym.envs import Context, Observation
from routing_gym.options import share


@dataclasses.dataclass(frozen=True)
class CrossStitchConfig(TrainedConfig):
    """Options of cross-stitch; Adam's step size is 0.01.

    Attributes:
        own: What a column takes of its own activation at first; the others share the rest.
    """

    own: float = share(0.9)


class CrossStitch(ScoringAgent):
    """Cross-stitch (Misra et al. 2016): a column per task, each fed with a learned mixture of all columns.

    input_j = Σ_i w_ij v_i before every routed layer, w free real numbers (Rosenbaum et al. 2018, section 4). Its
    environment is made with `form="columns"`: as many columns as blocks, and the task's own column gives the answer.
    """

    Config = CrossStitchConfig
    config: CrossStitchConfig
    action_type = "weights"
    needs_gradients = True
    max_tensors = None
    env_kwargs = {"form": "columns"}

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        columns, own = self.num_choices, self.config.own
        if self.num_tasks > columns:
            raise ValueError(
                f"agent {self.name!r} needs a column for each of the {self.num_tasks} tasks, this network has {columns}"
            )
        others = (1 - own) / (columns - 1) if columns > 1 else 0.0
        weight = torch.full((columns, columns), others).fill_diagonal_(own)
        # One row more, for rows that have left.
        self.weight = nn.Parameter(weight.repeat(self.num_decisions + 1, 1, 1))
        self.train_by(self, 0.01)

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Weights `(B, M, M)`: how much of each column goes to each, the same in training and evaluation."""
        return self.weight.index_select(0, observation["depth"])
