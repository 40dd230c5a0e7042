"""Judging what papers say in words by differences that may be mere noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

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


def sign_of(difference: float, noise: float) -> Verdict:
    """Judge a difference that should be above 0: one as small as its standard error decides nothing."""
    if abs(difference) <= noise:
        return "not enough"
    return "holds" if difference > 0 else "does not hold"
