"""Expert choice (Zhou et al. 2022): blocks choose their rows."""

from __future__ import annotations

import dataclasses
from typing import Literal

from routing_gym.agents.top_k import TopK, TopKConfig
from routing_gym.options import not_negative


@dataclasses.dataclass(frozen=True)
class ExpertChoiceConfig(TopKConfig):
    """Options of `top-k`, of which those are others by default that expert choice makes superfluous."""

    choice: Literal["row", "expert"] = "expert"
    noise: bool = False
    balance: float = not_negative(0.0)


class ExpertChoice(TopK):
    """Expert choice: in training every block takes the rows that like it best, as many as every other block.

    So blocks are used evenly by construction, without noise or losses, and a row gets k of them on average; see the
    function `expert_choice`. When deterministic rows choose, so that no row's route depends on the others.
    """

    Config = ExpertChoiceConfig
