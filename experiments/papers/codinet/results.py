"""The tables of CoDiNet, and what it says in words and by their order, judged by recorded runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.codinet import rows
from routing_gym.experiments.papers.codinet.rows import CONSISTENT, RESNET, VANILLA, WITH_BOTH, with_depth
from routing_gym.experiments.papers.judging import Judge, Judged, judged
from routing_gym.experiments.papers.reproduction import Claim, Runs
from routing_gym.experiments.papers.tables import Column, accuracy, beside, judged_on, millions, router_share, table


def gflops_of(record: Record) -> float:
    """Return the mean cost of a test image in the paper's measure."""
    return 2 * record["macs"] / 1e9


def _printed(runs: Runs) -> rows.Printed:
    return rows.PRINTED.get(runs[0]["label"], rows.Printed())


def _compared(name: str, form: str, scale: float = 1.0) -> Callable[[Runs], str]:
    """Return what shows something known of paths; nothing where it is not known of all runs."""

    def show(runs: Runs) -> str:
        values = [run["compared_paths"].get(name) for run in runs if "compared_paths" in run]
        return format(scale * np.mean(values), form) if values and None not in values else ""

    return show


_length, _paths, _kept = _compared("length", ".1f"), _compared("paths", ".0f"), _compared("kept", ".1f", 100)


def _kept_beside(runs: Runs) -> str:
    kept = _printed(runs).kept
    return beside(_kept(runs), None if kept is None else 100 * kept, ".1f")


def _gflops_beside(runs: Runs) -> str:
    return beside(f"{np.mean([gflops_of(run) for run in runs]):.4f}", _printed(runs).gflops, ".2f")


COLUMNS: tuple[Column, ...] = (
    ("accuracy %", lambda runs: beside(accuracy(runs), _printed(runs).accuracy, ".2f")),
    ("GFLOPs", _gflops_beside),
    router_share("routers', %"),
    ("K", lambda runs: beside(_length(runs), _printed(runs).length)),
    ("paths", lambda runs: beside(_paths(runs), _printed(runs).paths)),
    ("kept %", _kept_beside),
    ("KL", _compared("kl", ".3f")),
    ("parameters, M", millions("parameters", 3)),
)


def paths_and_cost(records: Runs) -> list[str]:
    """Show accuracy, cost, and what is known of paths, the paper's figures behind ours."""
    return [*table(COLUMNS, by_label(records).values()), "", judged_on(records)]


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

    swept = [WITH_BOTH, *map(rows.with_gamma, rows.GAMMAS[1:])]
    margins = [WITH_BOTH if margin == 0.5 else rows.with_margin(margin) for margin in rows.MARGINS]
    by_depth = [
        less(with_depth(WITH_BOTH, depth, data), with_depth(RESNET, depth, data))
        for data in ("CIFAR-10", "CIFAR-100")
        for depth in rows.DEPTHS
        if judge.runs(with_depth(WITH_BOTH, depth, data))
    ]
    said: dict[str, list[Judged]] = {
        "Table 2: consistency alone lets images take fewer paths": [paths(VANILLA, CONSISTENT)],
        "Table 2: with consistency alone more images are classified wrong": [less(VANILLA, CONSISTENT)],
        "Table 2: with diversity there are more paths than without both": [paths(WITH_BOTH, VANILLA)],
        "Table 2: with both losses fewer are than with neither": [less(WITH_BOTH, VANILLA)],
        "Section 4.4.1: with both losses more images keep their path when they are augmented": [
            kept(WITH_BOTH, VANILLA)
        ],
        "Fig. 10: with consistency predictions of augmented images are nearer to the original ones": [
            kl(VANILLA, CONSISTENT)
        ],
        "Table 5: the larger gamma, the fewer operations": [gflops(a, b) for a, b in pairwise(swept)],
        "Table 5: operations are worth something: gamma = 0 errs less than gamma = 0.1": [less(swept[0], swept[-1])],
        "Table 6: CoDiNet errs less than the ResNet it skips blocks of": by_depth,
        "Table 8: the larger the margin of diversity, the more paths": [
            paths(larger, smaller) for smaller, larger in pairwise(margins)
        ],
        "Table 9: Gumbel-softmax errs less than softmax, and this less than sampling": judge.in_order(
            *(rows.RELAXATIONS[name] for name in ("gumbel", "softmax", "sampling"))
        ),
    }
    return judged(said)
