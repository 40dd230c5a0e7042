"""Problems of the suite: environments, their knobs, and how long they are trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

Difficulty = Literal["easy", "default", "hard"]
DIFFICULTIES: tuple[str, ...] = get_args(Difficulty)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem with a known best routing, which asks for one ability of whoever routes.

    Attributes:
        env: Id of its environment.
        ability: What it asks for, in a few words.
        knobs: Options of the environment by which it is made easier or harder, each with its values from easy to hard;
            the first is the knob its curve is drawn along.
        passes: Passes over the training split.
        judgements: How often it is judged on the way, a divisor of `passes`.
        options: Options of the environment besides.
        oracle_options: Options that the oracle has besides: what it is told.
        scored: Metric that is scored, by its name.
        batch_size: Instances routed and trained on together.
    """

    env: str
    ability: str
    knobs: Mapping[str, tuple[Any, Any, Any]]
    passes: int
    judgements: int = 30
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    oracle_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scored: str = "accuracy"
    batch_size: int = 256

    def options_at(self, difficulty: str) -> dict[str, Any]:
        """Options of the environment at a difficulty."""
        at = DIFFICULTIES.index(difficulty)
        return {**self.options, **{knob: values[at] for knob, values in self.knobs.items()}}

    @property
    def download(self) -> bool:
        """Whether its data have to be downloaded."""
        return self.options.get("source", "digits") != "digits"


PROBLEMS: dict[str, Problem] = {
    "hidden-groups": Problem(
        "routing_gym/HiddenGroups-v0", "finding relatives", {"images_per_task": (40, 12, 5)}, passes=150
    ),
    "credit": Problem("routing_gym/Credit-v0", "credit over depth", {"depth": (2, 4, 8)}, passes=20, judgements=10),
}
