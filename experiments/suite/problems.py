"""Problems of the suite: environments, their knobs, and how long they are trained on."""

from __future__ import annotations

import dataclasses
import functools
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
    judgements: int = 25
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


_groups = functools.partial(Problem, "routing_gym/HiddenGroups-v0", batch_size=144)
_RATE = {"learning_rate": 4e-3}

PROBLEMS: dict[str, Problem] = {
    # Eight tasks of each of three groups: a task alone has too few images, and paths drawn at random mix the groups.
    "hidden-groups": _groups(
        ability="finding relatives",
        knobs={"images_per_task": (30, 10, 5)},
        passes=300,
        options=_RATE,
        batch_size=120,
    ),
    # Where words do not recur a task has no twin: only the block of each letter can be shared.
    "compositions": Problem(
        env="routing_gym/Compositions-v0",
        ability="reusing parts at each depth",
        knobs={"recurrence": (1.0, 0.5, 0.0), "images_per_task": (24, 16, 8)},
        passes=200,
        options={**_RATE, "num_tasks": 27, "width": 10},
        batch_size=216,
    ),
    # One task, so that tables of policies by task have nothing to go by; the oracle is told the cluster.
    "clusters": Problem(
        env="routing_gym/Clusters-v0",
        ability="routing by the instance",
        knobs={"separation": (16.0, 8.0, 3.0)},
        passes=100,
        options={**_RATE, "num_clusters": 8, "width": 8},
        oracle_options={"told": True},
        batch_size=240,
    ),
    # Blocks are given, every route but one is at chance: a reward is for all decisions or for none.
    "credit": Problem(
        env="routing_gym/Credit-v0",
        ability="credit over depth",
        knobs={"depth": (2, 4, 6)},
        passes=50,
        batch_size=100,
    ),
    # Hidden groups, with ever more tasks and blocks to choose from.
    "crowd": _groups(
        ability="scale",
        knobs={"num_tasks": (24, 100, 300), "num_groups": (4, 16, 64)},
        passes=100,
        options={**_RATE, "images_per_task": 24},
    ),
    # Rewards are for wrong labels, too: a policy must not settle on what a few instances say.
    "noise": _groups(
        ability="patience",
        knobs={"label_noise": (0.1, 0.35, 0.5)},
        passes=150,
        options={**_RATE, "images_per_task": 24},
    ),
    # What groups ask for stays, who is in which does not: a policy that has settled is wrong from then on.
    "drift": _groups(
        ability="changing one's mind",
        knobs={"drift_at": (0.1, 0.5, 0.9)},
        passes=150,
        options={**_RATE, "images_per_task": 24, "passes": 150},
    ),
    # Easy instances do as well at the first exit, hard ones are worth the price; the oracle is told which is which.
    "budget": Problem(
        env="routing_gym/Budget-v0",
        ability="paying only what is needed",
        knobs={"k_cpt": (4e-6, 1.2e-5, 2e-5)},
        passes=12,
        judgements=12,
        options={"learning_rate": 1e-2, "schedule": "cosine", "schedule_epochs": 12},
        oracle_options={"told": True},
        scored="cost",
        batch_size=150,
    ),
    # By itself the late task can learn little from its images; its relatives, which find one another, have the block.
    "late-task": _groups(
        ability="transfer",
        knobs={"late_images": (24, 8, 5), "late_at": (0.5, 0.95, 0.98)},
        passes=150,
        options={**_RATE, "images_per_task": 24, "passes": 150},
        scored="late_task",
    ),
    # Tasks of few images are seldom seen, and a mean over instances says little about them.
    "imbalance": _groups(
        ability="fairness",
        knobs={"imbalance": (2.0, 8.0, 32.0)},
        passes=200,
        options=_RATE,
        scored="worst_task",
    ),
    # The same with images that have to be downloaded; there is less to see in them.
    "hidden-groups-mnist": _groups(
        ability="finding relatives",
        knobs={"images_per_task": (50, 12, 5)},
        passes=300,
        options={"source": "mnist"},
    ),
    "hidden-groups-cifar-100": _groups(
        ability="finding relatives",
        knobs={"images_per_task": (160, 80, 40)},
        passes=50,
        options={
            **{"source": "cifar-100", "network": "simple-convnet", "layers": 3, "width": 48},
            "learning_rate": 1e-3,
        },
        batch_size=240,
    ),
}
"""Problems by name: the suite, and those beside it whose data have to be downloaded."""
