"""What CoDiNet says in words and by the order of its tables, judged by recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.papers.codinet.labels import (
    CONSISTENT,
    DEPTHS,
    GAMMAS,
    MARGINS,
    RELAXATIONS,
    RESNET,
    VANILLA,
    WITH_BOTH,
    with_depth,
    with_gamma,
    with_margin,
)
from routing_gym.experiments.papers.codinet.tables import gflops_of
from routing_gym.experiments.papers.judging import Verdict, all_of, errs_less, sign_of, spread_of_means
from routing_gym.experiments.papers.reproduction import Claim

Judged = tuple[Verdict, str]


def claims(records: Sequence[Record]) -> list[Claim]:
    """Judge all claims.

    Args:
        records: All trained in one way; see `record_of` for what they hold.
    """

    def runs(label: str) -> list[Record]:
        return [record for record in records if record["label"] == label]

    def less(first: str, second: str) -> Judged:
        return errs_less(first, runs(first), second, runs(second))

    def more(what: str, unit: str, value: Callable[[Record], float], first: str, second: str) -> Judged:
        return _more(what, unit, value, (first, runs(first)), (second, runs(second)))

    def paths(first: str, second: str) -> Judged:
        return more("paths", "", lambda run: run["paths"], first, second)

    swept = [WITH_BOTH, *map(with_gamma, GAMMAS[1:])]
    margins = [WITH_BOTH if margin == 0.5 else with_margin(margin) for margin in MARGINS]
    gumbel, softmax, sampling = (RELAXATIONS[name] for name in ("gumbel", "softmax", "sampling"))
    return [
        all_of("Table 2: consistency alone lets images take fewer paths", [paths(VANILLA, CONSISTENT)]),
        all_of("Table 2: with consistency alone more images are classified wrong", [less(VANILLA, CONSISTENT)]),
        all_of("Table 2: with diversity there are more paths than without both", [paths(WITH_BOTH, VANILLA)]),
        all_of("Table 2: with both losses fewer are than with neither", [less(WITH_BOTH, VANILLA)]),
        all_of(
            "Section 4.4.1: with both losses more images keep their path when they are augmented",
            [more("kept", " %", _percent_kept, WITH_BOTH, VANILLA)],
        ),
        all_of(
            "Fig. 10: with consistency predictions of augmented images are nearer to the original ones",
            [more("KL", " nats", lambda run: run["compared_paths"]["kl"], VANILLA, CONSISTENT)],
        ),
        all_of(
            "Table 5: the larger gamma, the fewer operations",
            [more("GFLOPs", "", gflops_of, less, greater) for less, greater in zip(swept, swept[1:], strict=False)],
        ),
        all_of(
            "Table 5: operations are worth something: gamma = 0 errs less than gamma = 0.1", [less(swept[0], swept[-1])]
        ),
        all_of(
            "Table 6: CoDiNet errs less than the ResNet it skips blocks of",
            [
                less(with_depth(WITH_BOTH, depth, data), with_depth(RESNET, depth, data))
                for data in ("CIFAR-10", "CIFAR-100")
                for depth in DEPTHS
                if runs(with_depth(WITH_BOTH, depth, data))
            ],
        ),
        all_of(
            "Table 8: the larger the margin of diversity, the more paths",
            [paths(larger, smaller) for smaller, larger in zip(margins, margins[1:], strict=False)],
        ),
        all_of(
            "Table 9: Gumbel-softmax errs less than softmax, and this less than sampling",
            [less(gumbel, softmax), less(softmax, sampling)],
        ),
    ]


def _percent_kept(record: Record) -> float:
    return 100 * record["compared_paths"]["kept"]


def _more(
    what: str,
    unit: str,
    value: Callable[[Record], float],
    first: tuple[str, Sequence[Record]],
    second: tuple[str, Sequence[Record]],
) -> Judged:
    """Judge whether some quantity is larger in some runs than in others: with several seeds, by more than they vary."""
    (name, ours), (other, theirs) = first, second
    if not ours or not theirs:
        return "not enough", f"Needs both: {name}; {other}."
    above, below = ([value(run) for run in several] for several in (ours, theirs))
    numbers = f"{what}: {name} {np.mean(above):.4g}{unit}, {other} {np.mean(below):.4g}{unit}."
    return sign_of(float(np.mean(above) - np.mean(below)), spread_of_means(above, below)), numbers
