"""The tables of Tissera et al., with the paper's figures behind ours, and ensembles of what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from routing_gym.experiments.engine.logits import accuracy_together
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.engine.run import LOGITS
from routing_gym.experiments.papers.parallel_paths import rows
from routing_gym.experiments.papers.parallel_paths.rows import BASE, DEEP, WIDE
from routing_gym.experiments.papers.reproduction import Runs, among, mean_of
from routing_gym.experiments.papers.tables import (
    EFFORT,
    LABEL,
    MACS,
    Column,
    beside,
    error,
    judged_on,
    millions,
    router_share,
    table,
)

MEMBERS = 3
"""Of the ensemble of BaseCNNs, which differ by their seeds."""


def ensembles(records: Runs) -> list[Record]:
    """Return records of the ensembles whose members are all there, see `missing_members`.

    The accuracy is that of the averaged class probabilities; parameters, operations and seconds are summed.

    Args:
        records: All trained in one way, each with the `folder` its logits lie in.
    """
    runs = _members(records)
    made = []
    if len(runs[BASE]) >= MEMBERS:
        made.append(_together(rows.BASE_ENSEMBLE, [runs[BASE][seed] for seed in sorted(runs[BASE])[:MEMBERS]]))
    for seed in sorted(set.intersection(*(set(of_label) for of_label in runs.values()))):
        made.append(_together(rows.ALL_ENSEMBLE, [of_label[seed] for of_label in runs.values()]))
    return made


def missing_members(records: Runs) -> list[str]:
    """Say of every ensemble that is not there what it lacks."""
    runs = _members(records)
    there = {record["label"] for record in ensembles(records)}
    lacking = {
        rows.BASE_ENSEMBLE: f"{MEMBERS} seeds of {BASE}, of which there are {len(runs[BASE])}",
        rows.ALL_ENSEMBLE: f"one seed of {', '.join(runs)}",
    }
    return [f"{label} is not there: it needs {what}." for label, what in lacking.items() if label not in there]


def _members(records: Runs) -> dict[str, dict[int, Record]]:
    """Return runs that have kept their logits, by label and seed."""
    runs: dict[str, dict[int, Record]] = {label: {} for label in (BASE, WIDE, DEEP)}
    for record in records:
        if record["label"] in runs and (Path(record["folder"]) / LOGITS).exists():
            runs[record["label"]][record["seed"]] = record
    return runs


def _together(label: str, members: Runs) -> Record:
    summed = {key: sum(member[key] for member in members) for key in ("parameters", "macs", "router_macs", "seconds")}
    accuracy = accuracy_together([Path(member["folder"]) / LOGITS for member in members])
    return {**members[0], "label": label, "series": label, "test_accuracy": accuracy, **summed}


def _printed(runs: Runs) -> rows.Printed:
    """Return what the paper prints of a network of one of its tables."""
    return {**rows.CNNS, **rows.RESNETS}[runs[0]["series"]]


def _first(runs: Runs) -> list[Record]:
    """Return those on the first data set there are any on."""
    return among(runs, part=min((run["part"] for run in runs), key=rows.DATA.index))


def _of_first(column: Column) -> Column:
    """Return a column of the runs on the first data set."""
    name, text = column
    return name, lambda runs: text(_first(runs))


def _error_on(data: str) -> Callable[[Runs], str]:
    def show(runs: Runs) -> str:
        own = among(runs, part=data)
        return beside(error(own) if own else "", _printed(runs).error_on(data), ".2f")

    return show


def _live(runs: Runs) -> str:
    live = np.mean([run["live_paths"] for run in runs], 0) if "live_paths" in runs[0] else []
    return " ".join(f"{paths:.2f}" for paths in live)


PARAMETERS: Column = "parameters, M", lambda runs: beside(millions("parameters")(runs), _printed(runs).parameters)
GATES = router_share("gates', %", 3)
TABLE_2: tuple[Column, ...] = (
    LABEL,
    PARAMETERS,
    ("error %", lambda runs: beside(error(runs), _printed(runs).error, ".2f")),
    ("after 350 epochs", lambda runs: beside("", _printed(runs).longer, ".2f")),
    MACS,
    GATES,
    *EFFORT,
)
TABLE_3: tuple[Column, ...] = (
    ("", lambda runs: runs[0]["series"]),
    _of_first(PARAMETERS),
    *((f"{data} error %", _error_on(data)) for data in rows.DATA),
    *map(_of_first, (MACS, GATES, *EFFORT)),
)
HARD: tuple[Column, ...] = (
    LABEL,
    ("error %", error),
    ("parameters, M", millions("parameters")),
    MACS,
    router_share("agent's, %", 3),
    ("live paths", _live),
    ("routes", lambda runs: f"{mean_of(runs, 'paths'):.0f}"),
    *EFFORT,
)


def cnns(records: Runs) -> list[str]:
    """Show Table 2, in the order of the paper: parameters and error of every network, and what it costs."""
    runs_of = by_label([*records, *ensembles(records)])
    lines = table(TABLE_2, (runs_of[label] for label in rows.CNNS if label in runs_of))
    return [*lines, "", " ".join([judged_on(records), *missing_members(records)])]


def resnets(records: Runs) -> list[str]:
    """Show Table 3: a line for every network, with its error on each data set; costs are those on the first."""
    by_series = by_label([{**record, "label": record["series"]} for record in records])
    return [*table(TABLE_3, by_series.values()), "", judged_on(records)]


def hard_routes(records: Runs) -> list[str]:
    """Show networks of hard routes, below those whose tensors are shared out: error, cost, and how many paths live."""
    how = (
        "Live paths are how many paths an image runs on average, decision by decision; where tensors are shared out "
        "it runs all. Routes are the different ones that test images took. Agents that are told the coarse class know "
        "part of the answer, vehicle or animal."
    )
    return [*table(HARD, by_label(records).values()), "", f"{how} {judged_on(records)}"]
