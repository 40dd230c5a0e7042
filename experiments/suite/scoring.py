"""Scores of agents on the suite: 0 for random frozen paths, 1 for the oracle; and what they add up to."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from routing_gym.experiments.engine import statistics
from routing_gym.experiments.engine.metrics import METRICS, Record
from routing_gym.experiments.engine.statistics import MISTAKES, Difference, paired_difference
from routing_gym.experiments.suite.problems import DIFFICULTIES, Problem
from routing_gym.forms import check_form

EQUAL_MACS = 1.02
"""An agent that spends more than this times the oracle's multiply-accumulates may beat it: it is marked."""

Score = dict[str, Any]
"""What a run scored, an entry of `scores.json`."""
FORM: dict[str, Any] = {
    **dict.fromkeys(("agent", "problem", "difficulty", "scored", "commit", "processor", "torch"), str),
    **dict.fromkeys(("value", "accuracy", "oracle", "random", "score", "seconds"), int | float),
    **dict.fromkeys(("alignment", "effective_blocks", "settled"), int | float | None),
    **{"seed": int, "more_macs": bool},
}
"""What an entry of `scores.json` holds at least, besides what may be None."""
OF_SCALE: dict[str, Any] = {
    **dict.fromkeys(("problem", "difficulty", "scored", "env"), str),
    **dict.fromkeys(("oracle", "random", "env_options"), dict),
    "macs": int | float,
}
"""What an entry of `scales.json` holds."""


def check_place(written: Mapping[str, Any], where: str) -> None:
    """Refuse, by a `ValueError`, a difficulty or a metric that there is none of, or a number that is not finite."""
    for name, known in (("difficulty", DIFFICULTIES), ("scored", METRICS)):
        if written[name] not in known:
            raise ValueError(f"{where}.{name}: expected one of {', '.join(known)}, got {written[name]!r}")
    for name, value in written.items():
        if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
            raise ValueError(f"{where}.{name}: expected a finite number")


@dataclasses.dataclass(frozen=True)
class Scale:
    """The scale of a problem at a difficulty.

    Attributes:
        problem: Its name.
        difficulty: Its difficulty.
        scored: Name of the metric that is scored; more of it is better, or less.
        oracle: What the oracle reached, by seed.
        random: What random frozen paths reached, by draw.
        macs: Multiply-accumulates of the oracle, per instance.
        env: Id of the environment.
        env_options: Its options, those of random frozen paths.
    """

    problem: str
    difficulty: str
    scored: str
    oracle: Mapping[int, float]
    random: Mapping[int, float]
    macs: float
    env: str
    env_options: Mapping[str, Any]

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Scale:
        """Scale that `dataclasses.asdict` has taken apart and JSON has changed; a `ValueError` where it is none."""
        check_form(written, OF_SCALE, "scale")
        check_place(written, "scale")
        for name in ("oracle", "random"):
            check_form(written[name], dict.fromkeys(written[name], int | float), f"scale.{name}")
        by_number = {
            name: {int(seed): float(value) for seed, value in written[name].items()} for name in ("oracle", "random")
        }
        for name, values in by_number.items():
            if not values or not np.isfinite(list(values.values())).all():
                raise ValueError(f"scale.{name}: expected finite numbers by seed, at least one")
        return cls(**{**written, **by_number})

    @property
    def ends(self) -> tuple[float, float]:
        """What 0 and 1 stand for: the means of random frozen paths and of the oracle."""
        return float(np.mean(list(self.random.values()))), float(np.mean(list(self.oracle.values())))

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return -1 if METRICS[self.scored].better == "less" else 1

    @property
    def separated(self) -> Difference:
        """How much the oracle is better than random frozen paths, over common data."""
        return self.ahead(self.oracle, self.random)

    def ahead(self, a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
        """How much better one is than another, in the units of the metric, over common seeds."""
        return paired_difference(*({seed: self.sign * value for seed, value in of.items()} for of in (a, b)))

    @property
    def upright(self) -> bool:
        """Whether the oracle is better than random frozen paths at all: else there is nothing to score by."""
        zero, one = self.ends
        return self.sign * (one - zero) > 0

    def score(self, value: float) -> float:
        """Score of a value of the metric, on a scale that is `upright`."""
        zero, one = self.ends
        return (value - zero) / (one - zero)


def scale_of(name: str, difficulty: str, problem: Problem, oracle: Sequence[Record], random: Sequence[Record]) -> Scale:
    """Scale of a problem, from records of the oracle and of random frozen paths; seeds are those of the data."""
    metric = METRICS[problem.scored]
    best, drawn = (
        {record["asked"]["env_options"]["data_seed"]: metric.value(record) for record in records}
        for records in (oracle, random)
    )
    macs = float(np.mean([record["macs"] for record in oracle]))
    options = {name: value for name, value in random[0]["asked"]["env_options"].items() if name != "data_seed"}
    return Scale(name, difficulty, problem.scored, best, drawn, macs, problem.env, options)


def score_of(record: Record, scale: Scale) -> Score:
    """What a run scored, with what it is known by."""
    value, (zero, one), asked = METRICS[scale.scored].value(record), scale.ends, record["asked"]
    more_macs = record["macs"] - record["router_macs"] > EQUAL_MACS * scale.macs
    return {
        **{"agent": record["label"], "problem": scale.problem, "difficulty": scale.difficulty, "seed": record["seed"]},
        **{"scored": scale.scored, "value": value, "accuracy": METRICS["accuracy"].value(record)},
        **{"oracle": one, "random": zero, "score": scale.score(value), "more_macs": more_macs},
        **{name: record[name] for name in ("alignment", "alignments", "effective_blocks", "macs", "parameters")},
        "settled": None if record["settled"] is None else (record["settled"] - 1) / record["epochs"],
        **{name: record[name] for name in ("epochs", "seconds")},
        "passes": record["epochs"] * asked.get("epoch_passes", 1),
        **{"env": record["env"], "agent_options": asked["agent_options"]},
        **{name: record[name] for name in ("commit", "processor", "torch")},
    }


@dataclasses.dataclass(frozen=True)
class Standing:
    """How an agent stands in the suite.

    Attributes:
        agent: The agent.
        scores: Its scores by problem and seed.
        rank: Mean over problems of its rank by mean score among the agents there, 1 for the best.
        seconds: Training time of one seed on all of them.
    """

    agent: str
    scores: Mapping[str, Mapping[int, float]]
    rank: float
    seconds: float

    @property
    def iqm(self) -> float:
        """Interquartile mean over all runs on all problems it was able to run; NaN without a seed that all have."""
        matrix = self.matrix(self.scores)
        return statistics.iqm(matrix) if matrix.size else float("nan")

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of that mean, None where problems have fewer than three common seeds."""
        matrix = self.matrix(self.scores)
        return statistics.iqm_interval(matrix) if len(matrix) >= statistics.FEWEST_SEEDS else None

    def matrix(self, problems: Iterable[str]) -> np.ndarray:
        """Scores `(seeds, problems)`, of the seeds that all these problems have."""
        seeds = sorted(set.intersection(*(set(self.scores[problem]) for problem in problems)))
        return np.array([[self.scores[problem][seed] for problem in problems] for seed in seeds])


def standings(scores: Iterable[Score]) -> list[Standing]:
    """How agents stand, the best first; those with holes in the order of what they were able to run."""
    by_agent: dict[str, dict[str, dict[int, Score]]] = {}
    for score in scores:
        by_agent.setdefault(score["agent"], {}).setdefault(score["problem"], {})[score["seed"]] = score
    means = {
        agent: {problem: float(np.mean([run["score"] for run in runs.values()])) for problem, runs in problems.items()}
        for agent, problems in by_agent.items()
    }
    found = []
    for agent, problems in by_agent.items():
        values = {
            problem: {seed: run["score"] for seed, run in sorted(runs.items())} for problem, runs in problems.items()
        }
        ranks = [
            1 + sum(other[problem] > mean for other in means.values() if problem in other)
            for problem, mean in means[agent].items()
        ]
        seconds = sum(float(np.mean([run["seconds"] for run in runs.values()])) for runs in problems.values())
        found.append(Standing(agent, values, float(np.mean(ranks)), seconds))
    return sorted(found, key=lambda standing: (-len(standing.scores), -np.nan_to_num(standing.iqm, nan=-np.inf)))


def improvement(a: Standing, b: Standing) -> float | None:
    """Probability that a run of `a` is better than one of `b`, on a problem both were able to run; None without one."""
    common = [problem for problem in a.scores if problem in b.scores]
    ours, theirs = (of.matrix(common) if common else np.empty(0) for of in (a, b))
    return statistics.probability_of_improvement(ours, theirs) if ours.size and theirs.size else None


def broken(scales: Iterable[Scale], scores: Iterable[Score]) -> list[str]:
    """What is wrong with problems, a line each: an oracle below random frozen paths, or one that is beaten.

    Who beats it at its own multiply-accumulates has found a bug of the problem. That is judged by paired differences
    over seeds, at 5 % divided by the number of pairs that are looked at (Bonferroni).
    """
    runs: dict[tuple[str, str, str], dict[int, float]] = {}
    for score in scores:
        if not score["more_macs"] and score["agent"] != "oracle":
            key = score["agent"], score["problem"], score["difficulty"]
            runs.setdefault(key, {})[score["seed"]] = score["value"]
    by_problem = {(scale.problem, scale.difficulty): scale for scale in scales}
    lines = [
        f"the oracle of {scale.problem} ({scale.difficulty}) is not above random frozen paths in {scale.scored}, so "
        "that nobody has a score there: train for longer, or mend the problem"
        for scale in by_problem.values()
        if not scale.upright
    ]
    for (agent, problem, difficulty), values in runs.items():
        scale = by_problem[problem, difficulty]
        if not values.keys() & scale.oracle.keys():
            continue
        found = scale.ahead(values, scale.oracle)
        if found.verdict == "better" and found.p < MISTAKES / len(runs):
            lines.append(
                f"{agent} beats the oracle of {problem} ({difficulty}) by {abs(found.mean):.3g} in {scale.scored} over "
                f"{found.seeds} seeds, at no more multiply-accumulates: what is planted there is not the best routing"
            )
    return lines
