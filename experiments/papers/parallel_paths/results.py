"""The tables of Tissera et al., ensembles of what was trained, and what is said in words, judged by recorded runs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from routing_gym.experiments.engine.instances import accuracy_together
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.engine.run import LOGITS
from routing_gym.experiments.papers.judging import Judge, Judged, judged, sign_of
from routing_gym.experiments.papers.parallel_paths import rows
from routing_gym.experiments.papers.parallel_paths.rows import BASE, CROSSES, DATA, PATHS, RESNET, on, routed
from routing_gym.experiments.papers.reproduction import Claim, Runs, among, distinct, mean_of
from routing_gym.experiments.papers.tables import MACS, Column, beside, error, judged_on, millions, router_share, table

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
    runs: dict[str, dict[int, Record]] = {label: {} for label in (BASE, rows.WIDE, rows.DEEP)}
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


def _live(runs: Runs) -> str:
    live = np.mean([run["live_paths"] for run in runs], 0) if "live_paths" in runs[0] else []
    return " ".join(f"{paths:.2f}" for paths in live)


PARAMETERS: Column = "parameters, M", lambda runs: beside(millions("parameters")(runs), _printed(runs).parameters)
GATES = router_share("gates', %", 3)
TABLE_2: tuple[Column, ...] = (
    PARAMETERS,
    ("error %", lambda runs: beside(error(runs), _printed(runs).error, ".2f")),
    ("after 350 epochs", lambda runs: beside("", _printed(runs).longer, ".2f")),
    MACS,
    GATES,
)
HARD: tuple[Column, ...] = (
    ("error %", error),
    ("parameters, M", millions("parameters")),
    MACS,
    router_share("agent's, %", 3),
    ("live paths", _live),
    ("routes", lambda runs: f"{mean_of(runs, 'paths'):.0f}"),
)


def cnns(records: Runs) -> list[str]:
    """Show Table 2, in the order of the paper: parameters and error of every network, and what it costs."""
    runs_of = by_label([*records, *ensembles(records)])
    lines = table(TABLE_2, (runs_of[label] for label in rows.CNNS if label in runs_of))
    return [*lines, "", " ".join([judged_on(records), *missing_members(records)])]


def resnets(records: Runs) -> list[str]:
    """Show Table 3: a line for every network, with its error on each data set; costs are those on the first."""
    named = [{**record, "label": record["series"]} for record in records]

    def on_data(data: str) -> Column:
        def show(first: Runs) -> str:
            runs = among(named, label=first[0]["label"], part=data)
            return beside(error(runs) if runs else "", _printed(first).error_on(data), ".2f")

        return f"{data} error %", show

    firsts = (among(runs, part=min(distinct(runs, "part"), key=DATA.index)) for runs in by_label(named).values())
    return [*table((PARAMETERS, *map(on_data, DATA), MACS, GATES), firsts), "", judged_on(records)]


def hard_routes(records: Runs) -> list[str]:
    """Show networks of hard routes, below those whose tensors are shared out: error, cost, and how many paths live."""
    how = (
        "Live paths are how many paths an image runs on average, decision by decision; where tensors are shared out "
        "it runs all. Routes are the different ones that test images took. Agents that are told the coarse class know "
        "part of the answer, vehicle or animal."
    )
    return [*table(HARD, by_label(records).values()), "", f"{how} {judged_on(records)}"]


SIMILAR = 0.005
"""By how much more networks may err that do similarly; the paper's own pairs differ by up to 0.21 points."""


def claims(records: Runs) -> list[Claim]:
    """Judge all claims by records that were trained in one way."""
    judge = Judge([*records, *ensembles(records)])

    def routed_ones(paths: int, *others: str) -> list[Judged]:
        return [judge.less(routed(paths, cross), other) for cross in CROSSES for other in others]

    twos = {
        "the one path": (BASE,),
        "one of twice the width": (rows.WIDE,),
        "a deeper one": (rows.DEEP,),
        "squeeze and excitation": (rows.SQUEEZED, rows.DEEP_SQUEEZED),
        "cross-stitch": (rows.STITCHED,),
    }
    resnets = [[on(routed(n, cross, RESNET), data) for n in PATHS] for data in DATA for cross in CROSSES]
    said: dict[str, list[Judged]] = {
        **{f"Table 2: two routed paths err less than {what}": routed_ones(2, *others) for what, others in twos.items()},
        "Table 2: three routed paths err less than three without routing": routed_ones(3, rows.UNROUTED),
        "Table 2: three routed paths err less than ensembles": routed_ones(3, rows.BASE_ENSEMBLE, rows.ALL_ENSEMBLE),
        "Table 2: the third path helps less than the second": [
            _helps_less(judge, BASE, routed(2, cross), routed(3, cross)) for cross in CROSSES
        ],
        "Table 2: cross-connections do about as well as cross-predictions, with fewer parameters": [
            _as_good(judge, routed(paths, "CC"), routed(paths, "CP")) for paths in PATHS
        ],
        "Table 3: ResNets of two routed paths err less than of one": [
            judge.less(on(routed(2, cross, RESNET), data), on(RESNET, data)) for data in DATA for cross in CROSSES
        ],
        "Table 3: the more routed paths, the fewer errors": [
            judge.less(more, fewer) for networks in resnets for fewer, more in pairwise(networks)
        ],
    }
    return judged(said)


def _error(runs: Runs) -> tuple[float, float]:
    """Return the mean error of some runs and its variance: that of counting, or that over seeds where it is larger."""
    errors = [1 - run["test_accuracy"] for run in runs]
    mean, instances = float(np.mean(errors)), int(np.sum(runs[0]["exits"]))
    counting = mean * (1 - mean) / (instances * len(runs))
    return mean, max(counting, float(np.var(errors, ddof=1)) / len(runs) if len(runs) > 1 else 0.0)


def _helps_less(judge: Judge, *labels: str) -> Judged:
    """Judge whether the step from the second network to the third saves fewer errors than that from the first."""
    if not all(map(judge.runs, labels)):
        return "not enough", f"Needs all: {'; '.join(labels)}."
    (one, first), (two, second), (three, third) = (_error(judge.runs(label)) for label in labels)
    noise = float(np.sqrt(first + 4 * second + third))
    shown = ", ".join(f"{label} {100 * error:.2f} %" for label, error in zip(labels, (one, two, three), strict=True))
    return sign_of((one - two) - (two - three), noise), f"Error: {shown} (± {100 * noise:.2f})."


def _as_good(judge: Judge, smaller: str, larger: str) -> Judged:
    """Judge whether a network with fewer parameters errs no more than `SIMILAR` more than another."""
    if not judge.runs(smaller) or not judge.runs(larger):
        return "not enough", f"Needs both: {smaller}; {larger}."
    (ours, first), (theirs, second) = _error(judge.runs(smaller)), _error(judge.runs(larger))
    noise = float(np.sqrt(first + second))
    size, limit = (mean_of(judge.runs(label), "parameters") for label in (smaller, larger))
    numbers = (
        f"Error: {smaller} {100 * ours:.2f} % with {size / 1e6:.2f} M, {larger} {100 * theirs:.2f} % with "
        f"{limit / 1e6:.2f} M (± {100 * noise:.2f}; {100 * SIMILAR:g} points more would do)."
    )
    return "does not hold" if size >= limit else sign_of(SIMILAR - (ours - theirs), noise), numbers
