"""Soft mixtures of all blocks (Rosenbaum et al. 2018, section 4)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from routing_gym.agents.parts.bases import TrainedConfig
from routing_gym.agents.parts.gates import ScoredGate


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

    @property
    def representation(self) -> str:
        """Of the weights, see `Arrangement`."""
        return "mlp" if self.conditioned else "table"


class SoftMixture(ScoredGate):
    """Soft mixture (soft-mixture-fc): all blocks run, and their outputs are mixed by softmax weights.

    Rosenbaum et al. (2018), section 4: every block of a layer gets the same mixture of what came before.
    """

    by_task = True
    Config = SoftMixtureConfig
    config: SoftMixtureConfig
    DEFAULT_RATES = {"table": 0.01, "mlp": 0.001}
