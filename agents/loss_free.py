"""Balance without a loss (Wang et al. 2024): a bias on every block's score."""

from __future__ import annotations

import dataclasses

from routing_gym.agents.top_k import TopK, TopKConfig
from routing_gym.options import not_negative


@dataclasses.dataclass(frozen=True)
class LossFreeConfig(TopKConfig):
    """Options of `top-k`, with balance by biases instead of losses and noise by default."""

    noise: bool = False
    balance: float = not_negative(0.0)
    bias_rate: float = not_negative(0.001)


class LossFree(TopK):
    """Balance without a loss: blocks that rows took less often than the mean become easier to choose.

    b_i ← b_i + u · sign(mean use − use of i) after every batch (Wang et al. 2024, Algorithm 1). The bias counts for
    what is chosen and not for the weights, so that no gradient pulls a row away from the block that is best for it.
    """

    Config = LossFreeConfig
