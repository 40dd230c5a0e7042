"""What the first runs of a protocol tell of it: whether they train long enough, and what more seeds will show."""

from __future__ import annotations

import math

import numpy as np

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import by_label
from routing_gym.experiments.engine.statistics import half_width
from routing_gym.experiments.papers.reproduction import Judged, Runs

SEEDS = (3, 5)


def flatness(records: Runs) -> str:
    """Say how flat the curves of some rows are at their end."""
    gains = sorted((late_gain(runs), label) for label, runs in by_label(records).items())
    splits = " and ".join(sorted({record["curve"]["judged_on"] for record in records}))
    least, most = (f"{gain:+.2f} ({label})" for gain, label in (gains[0], gains[-1]))
    return f"Points of accuracy gained in the last fifth of the epochs, {splits} split: from {least} to {most}."


def late_gain(runs: Runs) -> float:
    """Accuracy gained in the last fifth of the epochs, in points, mean over runs: near 0 where a curve is flat."""
    curves = ACCURACY.curves(runs)
    epochs = curves.shape[1]
    return float(100 * np.mean(curves[:, -1] - curves[:, epochs - math.ceil(epochs / 5) - 1]))


def outlook(part: Judged) -> str:
    """Say how sure more seeds will be of a part of a claim; nothing where nothing tells.

    One seed tells by counting its test images (binomial, two rows taken as independent): a guess, too small by what
    training differs from seed to seed, and too large as rows that are judged by the same images err on the same ones.
    """
    if part.found is None or part.spread is None:
        return ""
    errors = [(seeds, part.spread / math.sqrt(seeds)) for seeds in SEEDS]
    widths = [f"{half_width(error, seeds):.2g}{part.unit} (standard error {error:.2g})" for seeds, error in errors]
    expected = " and ".join(f"±{width} with {seeds} seeds" for width, seeds in zip(widths, SEEDS, strict=True))
    what, _, _ = part.numbers.partition(": ")
    known = "as these do" if part.found.seeds > 1 else "as the choice of test images alone would make them, a guess"
    return f"What the 95 % interval of `{what}` would be: {expected}, if seeds differ {known}."
