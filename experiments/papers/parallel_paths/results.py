"""The tables of Tissera et al., ensembles of what was trained, and what is said in words, judged by recorded runs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from routing_gym.experiments.engine.instances import accuracy_together
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.engine.run import LOGITS
from routing_gym.experiments.papers.judging import Judge, error_of, judged
from routing_gym.experiments.papers.parallel_paths import rows
from routing_gym.experiments.papers.parallel_paths.rows import BASE, CROSSES, DATA, PATHS, RESNET, on, routed
from routing_gym.experiments.papers.reproduction import Claim, Judged, Runs, among, distinct, mean_of
from routing_gym.experiments.papers.tables import (
    MACS,
    Column,
    beside,
    by_row,
    error,
    judged_on,
    millions,
    router_share,
    table,
)

MEMBERS = 3
"""Of an ensemble of BaseCNNs, which differ by their seeds."""
NEEDED = {
    rows.BASE_ENSEMBLE: f"{MEMBERS} seeds of {BASE}",
    rows.ALL_ENSEMBLE: f"one seed of {', '.join((BASE, rows.WIDE, rows.DEEP))}",
}
"""What must have been trained for an ensemble."""


def ensembles(records: Runs) -> list[Record]:
    """Return records of the ensembles of which all members have kept their logits, see `NEEDED`.

    The accuracy is that of the averaged class probabilities; parameters, operations and seconds are summed. There is
    an ensemble for every seed that its members have in common; of BaseCNNs, for every `MEMBERS` seeds, from 0 on.

    Args:
        records: All trained in one way, each with the `folder` its logits lie in.
    """
    there = sorted((run for run in records if (Path(run["folder"]) / LOGITS).exists()), key=lambda run: run["seed"])
    base = among(there, label=BASE)
    made = [
        _together(rows.BASE_ENSEMBLE, base[start : start + MEMBERS], start // MEMBERS)
        for start in range(0, len(base) - MEMBERS + 1, MEMBERS)
    ]
    for run in base:
        others = [among(there, label=label, seed=run["seed"]) for label in (rows.WIDE, rows.DEEP)]
        if all(others):
            made.append(_together(rows.ALL_ENSEMBLE, [run, *(other for (other,) in others)], run["seed"]))
    return made


def _together(label: str, members: Runs, seed: int) -> Record:
    summed = {key: sum(member[key] for member in members) for key in ("parameters", "macs", "router_macs", "seconds")}
    accuracy = accuracy_together([Path(member["folder"]) / LOGITS for member in members])
    return {**members[0], "label": label, "series": label, "seed": seed, "test_accuracy": accuracy, **summed}


def by_series(records: Runs) -> list[Record]:
    """Return records whose label is the name of their network or agent alone."""
    return [{**record, "label": record["series"]} for record in records]


def _printed(runs: Runs) -> rows.Printed:
    """Return what the paper prints of a network of one of its tables."""
    return {**rows.CNNS, **rows.RESNETS}[runs[0]["series"]]


def _live(runs: Runs) -> str:
    live = np.mean([run["live_paths"] for run in runs], 0) if "live_paths" in runs[0] else []
    return " ".join(f"{paths:.2f}" for paths in live)


PARAMETERS: Column = "parameters, M", lambda runs: beside(millions("parameters")(runs), _printed(runs).parameters)
GATES = router_share("gates', %", 3)
TABLE_2: tuple[Column, ...] = (
    PARAMETERS,
    ("error %", lambda runs: beside(error(runs), _printed(runs).error, ".2f")),
    ("paper, after 350 epochs", lambda runs: beside("", _printed(runs).longer, ".2f")),
    MACS,
    GATES,
)
hard_routes = by_row(
    ("error %", error),
    ("parameters, M", millions("parameters")),
    MACS,
    router_share("agent's, %", 3),
    ("live paths", _live),
    ("routes", lambda runs: f"{mean_of(runs, 'paths'):.0f}"),
    note="Live paths are how many paths an image runs on average, decision by decision; where tensors are shared out "
    "it runs all. Routes are the different ones that test images took. Agents that are told the coarse class know "
    "part of the answer, vehicle or animal.",
)


def cnns(records: Runs) -> list[str]:
    """Show Table 2, in the order of the paper: parameters and error of every network, and what it costs."""
    runs_of = by_label([*records, *ensembles(records)])
    lines = table(TABLE_2, (runs_of[label] for label in rows.CNNS if label in runs_of))
    missing = [f"{label} is not there: it needs {what}." for label, what in NEEDED.items() if label not in runs_of]
    return [*lines, "", " ".join([judged_on(records), *missing])]


def resnets(records: Runs) -> list[str]:
    """Show Table 3: a line for every network, with its error on each data set; costs are those on the first."""
    named = by_series(records)

    def on_data(data: str) -> Column:
        def show(first: Runs) -> str:
            runs = among(named, label=first[0]["label"], part=data)
            return beside(error(runs) if runs else "", _printed(first).error_on(data), ".2f")

        return f"{data} error %", show

    firsts = (among(runs, part=min(distinct(runs, "part"), key=DATA.index)) for runs in by_label(named).values())
    return [*table((PARAMETERS, *map(on_data, DATA), MACS, GATES), firsts), "", judged_on(records)]


SIMILAR = 0.5
"""How many points more networks may err that do similarly; the paper's own pairs differ by up to 0.21 points."""


def claims(records: Runs) -> list[Claim]:
    """Judge all claims by records that were trained in one way."""
    judge = Judge([*records, *ensembles(records)])

    def routed_ones(paths: int, *others: str) -> list[Judged]:
        return [judge.less(routed(paths, cross), other) for cross in CROSSES for other in others]

    def third_helps_less(cross: str) -> Judged:
        what = "error that the second path saves, less that of the third"
        return judge.positive(what, _second_less_third, BASE, routed(2, cross), routed(3, cross), unit=" points")

    def as_good(paths: int) -> Judged:
        what = f"what {routed(paths, 'CC')} might err more, of {SIMILAR:g} above {routed(paths, 'CP')}"
        return judge.positive(what, _to_spare, routed(paths, "CC"), routed(paths, "CP"), unit=" points")

    resnets = [[on(routed(n, cross, RESNET), data) for n in PATHS] for data in DATA for cross in CROSSES]
    said: dict[str, list[Judged]] = {
        "Table 2: two routed paths err less than the one path": routed_ones(2, BASE),
        "Table 2: two routed paths err less than one of twice the width": routed_ones(2, rows.WIDE),
        "Table 2: two routed paths err less than a deeper one": routed_ones(2, rows.DEEP),
        "Table 2: two routed paths err less than squeeze and excitation": routed_ones(
            2, rows.SQUEEZED, rows.DEEP_SQUEEZED
        ),
        "Table 2: two routed paths err less than cross-stitch": routed_ones(2, rows.STITCHED),
        "Table 2: three routed paths err less than three without routing": routed_ones(3, rows.UNROUTED),
        "Table 2: three routed paths err less than ensembles": routed_ones(3, rows.BASE_ENSEMBLE, rows.ALL_ENSEMBLE),
        "Table 2: the third path helps less than the second": [third_helps_less(cross) for cross in CROSSES],
        "Table 2: cross-connections do about as well as cross-predictions, with fewer parameters": [
            as_good(paths) for paths in PATHS
        ],
        "Table 3: ResNets of two routed paths err less than of one": [
            judge.less(on(routed(2, cross, RESNET), data), on(RESNET, data)) for data in DATA for cross in CROSSES
        ],
        "Table 3: the more routed paths, the fewer errors": [
            judge.less(more, fewer) for networks in resnets for fewer, more in pairwise(networks)
        ],
    }
    return judged(said)


def _second_less_third(*networks: Runs) -> float:
    """Return how many points more a network of two paths saves against one than a network of three against two."""
    one, two, three = (error_of(runs[0]) for runs in networks)
    return (one - two) - (two - three)


def _to_spare(smaller: Runs, larger: Runs) -> float:
    """Return how many points more the smaller network might err; less than none if it is no smaller."""
    spare = SIMILAR - (error_of(smaller[0]) - error_of(larger[0]))
    return spare if smaller[0]["parameters"] < larger[0]["parameters"] else -SIMILAR - abs(spare)
