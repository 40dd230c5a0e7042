"""What CoDiNet says in words and by the order of its tables, judged by recorded runs."""

from __future__ import annotations

from itertools import pairwise

from routing_gym.experiments.papers.codinet.rows import (
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
from routing_gym.experiments.papers.judging import Judge, Judged, all_of
from routing_gym.experiments.papers.reproduction import Claim, Runs


def claims(records: Runs) -> list[Claim]:
    """Judge all claims by records that were trained in one way."""
    judge = Judge(records)
    less = judge.less

    def paths(first: str, second: str) -> Judged:
        return judge.more("paths", "", lambda run: run["paths"], first, second)

    def kept(first: str, second: str) -> Judged:
        return judge.more("kept", " %", lambda run: 100 * run["compared_paths"]["kept"], first, second)

    def kl(first: str, second: str) -> Judged:
        return judge.more("KL", " nats", lambda run: run["compared_paths"]["kl"], first, second)

    def gflops(first: str, second: str) -> Judged:
        return judge.more("GFLOPs", "", gflops_of, first, second)

    swept = [WITH_BOTH, *map(with_gamma, GAMMAS[1:])]
    margins = [WITH_BOTH if margin == 0.5 else with_margin(margin) for margin in MARGINS]
    by_depth = [
        less(with_depth(WITH_BOTH, depth, data), with_depth(RESNET, depth, data))
        for data in ("CIFAR-10", "CIFAR-100")
        for depth in DEPTHS
        if judge.runs(with_depth(WITH_BOTH, depth, data))
    ]
    return [
        all_of("Table 2: consistency alone lets images take fewer paths", paths(VANILLA, CONSISTENT)),
        all_of("Table 2: with consistency alone more images are classified wrong", less(VANILLA, CONSISTENT)),
        all_of("Table 2: with diversity there are more paths than without both", paths(WITH_BOTH, VANILLA)),
        all_of("Table 2: with both losses fewer are than with neither", less(WITH_BOTH, VANILLA)),
        all_of(
            "Section 4.4.1: with both losses more images keep their path when they are augmented",
            kept(WITH_BOTH, VANILLA),
        ),
        all_of(
            "Fig. 10: with consistency predictions of augmented images are nearer to the original ones",
            kl(VANILLA, CONSISTENT),
        ),
        all_of("Table 5: the larger gamma, the fewer operations", *(gflops(a, b) for a, b in pairwise(swept))),
        all_of(
            "Table 5: operations are worth something: gamma = 0 errs less than gamma = 0.1", less(swept[0], swept[-1])
        ),
        all_of("Table 6: CoDiNet errs less than the ResNet it skips blocks of", *by_depth),
        all_of(
            "Table 8: the larger the margin of diversity, the more paths",
            *(paths(larger, smaller) for smaller, larger in pairwise(margins)),
        ),
        all_of(
            "Table 9: Gumbel-softmax errs less than softmax, and this less than sampling",
            *judge.in_order(*(RELAXATIONS[name] for name in ("gumbel", "softmax", "sampling"))),
        ),
    ]
