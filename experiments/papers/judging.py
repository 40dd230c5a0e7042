"""Judging what papers say in words by differences that may be mere noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.papers.reproduction import Claim, Runs, among

Verdict = Literal["holds", "does not hold", "not enough"]
Judged = tuple[Verdict, str]
"""A verdict, and what it is based on."""


def judged(claims: Mapping[str, Sequence[Judged]]) -> list[Claim]:
    """Put claims together that hold if all their parts do: what each says, and the parts."""
    order: tuple[Verdict, ...] = ("does not hold", "not enough", "holds")
    found = []
    for text, parts in claims.items():
        verdict = min((verdict for verdict, _ in parts), key=order.index, default=order[1])
        found.append(Claim(text, verdict, " ".join(dict.fromkeys(numbers for _, numbers in parts)) or "Needs runs."))
    return found


class Judge:
    """Judges what is said of rows by their runs.

    Args:
        records: All trained in one way.
        by: What of a record is the name of its row.
        **facts: What is true of all runs that count.
    """

    def __init__(self, records: Runs, by: str = "label", **facts: str) -> None:
        self._records, self._by, self._facts = records, by, facts

    def runs(self, name: str) -> list[Record]:
        """The runs of a row."""
        return among(self._records, **{self._by: name}, **self._facts)

    def less(self, better: str, worse: str) -> Judged:
        """Judge whether the mean error of a row is below that of another.

        The standard error is that of counting, or that of the means over seeds where it is larger.
        """
        runs, others = self.runs(better), self.runs(worse)
        if not runs or not others:
            return "not enough", f"Needs both: {better}; {worse}."
        ours, theirs = ([1 - run["test_accuracy"] for run in several] for several in (runs, others))
        instances = int(np.sum(runs[0]["exits"]))
        noise = standard_error((np.mean(ours) + np.mean(theirs)) / 2, instances, min(len(runs), len(others)))
        noise = max(noise, _spread_of_means(ours, theirs))
        errors = f"{better} {100 * np.mean(ours):.2f} %, {worse} {100 * np.mean(theirs):.2f} %"
        return sign_of(float(np.mean(theirs) - np.mean(ours)), noise), f"Error: {errors} (± {100 * noise:.2f})."

    def in_order(self, *names: str) -> list[Judged]:
        """Judge whether each of some rows errs less than the next."""
        return [self.less(better, worse) for better, worse in pairwise(names)]

    def more(self, what: str, unit: str, value: Callable[[Record], float], first: str, second: str) -> Judged:
        """Judge whether some quantity is larger in one row than in another: with several seeds, by more than noise."""
        ours, theirs = self.runs(first), self.runs(second)
        if not ours or not theirs:
            return "not enough", f"Needs both: {first}; {second}."
        above, below = ([value(run) for run in several] for several in (ours, theirs))
        numbers = f"{what}: {first} {np.mean(above):.4g}{unit}, {second} {np.mean(below):.4g}{unit}."
        return sign_of(float(np.mean(above) - np.mean(below)), _spread_of_means(above, below)), numbers


def standard_error(error: float, instances: int, networks: int = 1) -> float:
    """Return that of the difference of two errors, each the mean of several networks' on as many test instances."""
    return float(np.sqrt(2 * error * (1 - error) / (instances * networks)))


def _spread_of_means(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the standard error of the difference of two means over seeds; 0 where either is of one seed."""
    if min(len(first), len(second)) < 2:
        return 0.0
    return float(np.sqrt(np.var(first, ddof=1) / len(first) + np.var(second, ddof=1) / len(second)))


def sign_of(difference: float, noise: float) -> Verdict:
    """Judge a difference that should be above 0: one as small as its standard error decides nothing."""
    if abs(difference) <= noise:
        return "not enough"
    return "holds" if difference > 0 else "does not hold"
