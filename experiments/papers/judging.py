"""Judging what papers say in words by differences that may be mere noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.papers.reproduction import Claim

Verdict = Literal["holds", "does not hold", "not enough"]


def all_of(text: str, parts: Sequence[tuple[Verdict, str]]) -> Claim:
    """Put a claim together that holds if all its parts do.

    Args:
        text: What it says.
        parts: The verdict on each, and what it is based on.
    """
    verdicts = [verdict for verdict, _ in parts]
    order: tuple[Verdict, ...] = ("does not hold", "not enough", "holds")
    verdict = next(kind for kind in order if kind in verdicts) if parts else "not enough"
    return Claim(text, verdict, " ".join(dict.fromkeys(numbers for _, numbers in parts)) or "Needs runs.")


def standard_error(error: float, instances: int, networks: int = 1) -> float:
    """Return that of the difference of two errors, each the mean of several networks' on as many test instances."""
    return float(np.sqrt(2 * error * (1 - error) / (instances * networks)))


def errs_less(better: str, runs: Sequence[Record], worse: str, others: Sequence[Record]) -> tuple[Verdict, str]:
    """Judge whether the mean error of some runs is below that of others.

    The standard error is that of counting, or that of the means over seeds where it is larger.

    Args:
        better: What those are called that should err less.
        runs: Their records.
        worse: What the others are called.
        others: Their records.
    """
    if not runs or not others:
        return "not enough", f"Needs both: {better}; {worse}."
    ours, theirs = ([1 - run["test_accuracy"] for run in several] for several in (runs, others))
    instances = int(np.sum(runs[0]["exits"]))
    noise = standard_error((np.mean(ours) + np.mean(theirs)) / 2, instances, min(len(runs), len(others)))
    noise = max(noise, spread_of_means(ours, theirs))
    numbers = (
        f"Error: {better} {100 * np.mean(ours):.2f} %, {worse} {100 * np.mean(theirs):.2f} % (± {100 * noise:.2f})."
    )
    return sign_of(float(np.mean(theirs) - np.mean(ours)), noise), numbers


def spread_of_means(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the standard error of the difference of two means over seeds; 0 where either is of one seed."""
    if min(len(first), len(second)) < 2:
        return 0.0
    return float(np.sqrt(np.var(first, ddof=1) / len(first) + np.var(second, ddof=1) / len(second)))


def sign_of(difference: float, noise: float) -> Verdict:
    """Judge a difference that should be above 0: one as small as its standard error decides nothing."""
    if abs(difference) <= noise:
        return "not enough"
    return "holds" if difference > 0 else "does not hold"
