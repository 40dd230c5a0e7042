"""The tables of CoDiNet, and what it says in words and by their order, judged by recorded runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.papers.codinet import rows
from routing_gym.experiments.papers.codinet.rows import CONSISTENT, RESNET, VANILLA, WITH_BOTH, with_depth
from routing_gym.experiments.papers.judging import Judge, judged
from routing_gym.experiments.papers.reproduction import Claim, Judged, Runs
from routing_gym.experiments.papers.tables import Column, accuracy, beside, by_row, millions, router_share


def gflops_of(record: Record) -> float:
    """Return the mean cost of a test image in the paper's measure."""
    return 2 * record["macs"] / 1e9


def _compared(name: str, form: str, scale: float = 1.0) -> Callable[[Runs], str]:
    """Return what shows something known of paths; nothing of agents whose paths are not compared."""

    def show(runs: Runs) -> str:
        values = [run["compared_paths"][name] for run in runs if "compared_paths" in run]
        return format(scale * np.mean(values), form) if values else ""

    return show


def _printed(heading: str, ours: Callable[[Runs], str], name: str, form: str = "") -> Column:
    """Return the column of something that the paper prints as well."""
    return heading, lambda runs: beside(ours(runs), rows.PRINTED.get(runs[0]["label"], {}).get(name), form)


paths_and_cost = by_row(
    _printed("accuracy %", accuracy, "accuracy", ".2f"),
    _printed("GFLOPs", lambda runs: f"{np.mean([gflops_of(run) for run in runs]):.4f}", "gflops", ".2f"),
    router_share("routers', %"),
    _printed("K", _compared("length", ".1f"), "length"),
    _printed("paths", _compared("paths", ".0f"), "paths"),
    _printed("kept %", _compared("kept_rotated", ".1f", 100), "kept"),
    ("kept as in training %", _compared("kept", ".1f", 100)),
    ("KL", _compared("kl", ".3f")),
    ("parameters, M", millions("parameters", 3)),
)


def claims(records: Runs) -> list[Claim]:
    """Judge all claims by records that were trained in one way."""
    judge = Judge(records)
    less = judge.less

    def paths(more: str, fewer: str) -> Judged:
        return judge.more("paths", lambda run: run["paths"], more, fewer)

    def kept(run: Record) -> float:
        return 100 * run["compared_paths"]["kept_rotated"]

    def kl(run: Record) -> float:
        return run["compared_paths"]["kl"]

    swept = [WITH_BOTH, *map(rows.with_gamma, rows.GAMMAS[1:])]
    margins = [WITH_BOTH if margin == 0.5 else rows.with_margin(margin) for margin in rows.MARGINS]
    skipping = [(depth, data) for data in ("CIFAR-10", "CIFAR-100") for depth in rows.DEPTHS]
    said: dict[str, list[Judged]] = {
        "Table 2: consistency alone lets images take fewer paths": [paths(VANILLA, CONSISTENT)],
        "Table 2: with consistency alone more images are classified wrong": [less(VANILLA, CONSISTENT)],
        "Table 2: with diversity there are more paths than without both": [paths(WITH_BOTH, VANILLA)],
        "Table 2: with both losses fewer images are classified wrong than with neither": [less(WITH_BOTH, VANILLA)],
        "Section 4.4.1: with both losses more images keep their path when they are augmented": [
            judge.more("kept", kept, WITH_BOTH, VANILLA, " percentage points")
        ],
        "Fig. 10: with consistency predictions of augmented images are nearer to the original ones": [
            judge.more("KL", kl, VANILLA, CONSISTENT, " nats")
        ],
        "Table 5: the larger gamma, the fewer operations": [
            judge.more("GFLOPs", gflops_of, lower, higher) for lower, higher in pairwise(swept)
        ],
        "Table 5: operations are worth something: gamma = 0 errs less than gamma = 0.1": [less(swept[0], swept[-1])],
        "Table 6: CoDiNet errs less than the ResNet it skips blocks of": [
            less(with_depth(WITH_BOTH, *which), with_depth(RESNET, *which))
            for which in skipping
            if judge.runs(with_depth(WITH_BOTH, *which))
        ],
        "Table 8: the larger the margin of diversity, the more paths": [
            paths(larger, smaller) for smaller, larger in pairwise(margins)
        ],
        "Table 9: Gumbel-softmax errs less than softmax, and this less than sampling": judge.in_order(
            *(rows.RELAXATIONS[name] for name in ("gumbel", "softmax", "sampling"))
        ),
    }
    return judged(said)
