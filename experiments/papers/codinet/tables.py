"""The tables of CoDiNet, with the paper's figures behind ours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.codinet.rows import PRINTED, Printed
from routing_gym.experiments.papers.reproduction import Runs
from routing_gym.experiments.papers.tables import (
    EFFORT,
    LABEL,
    Column,
    accuracy,
    beside,
    judged_on,
    millions,
    router_share,
    table,
)


def gflops_of(record: Record) -> float:
    """Return the mean cost of a test image in the paper's measure."""
    return 2 * record["macs"] / 1e9


def _printed(runs: Runs) -> Printed:
    return PRINTED.get(runs[0]["label"], Printed())


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
    LABEL,
    ("accuracy %", lambda runs: beside(accuracy(runs), _printed(runs).accuracy, ".2f")),
    ("GFLOPs", _gflops_beside),
    router_share("routers', %"),
    ("K", lambda runs: beside(_length(runs), _printed(runs).length)),
    ("paths", lambda runs: beside(_paths(runs), _printed(runs).paths)),
    ("kept %", _kept_beside),
    ("KL", _compared("kl", ".3f")),
    ("parameters, M", millions("parameters", 3)),
    *EFFORT,
)


def paths_and_cost(records: Runs) -> list[str]:
    """Show accuracy, cost, and what is known of paths."""
    return [*table(COLUMNS, by_label(records).values()), "", judged_on(records)]
