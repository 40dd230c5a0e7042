"""The tables of Tissera et al., with the paper's figures behind ours, and ensembles of what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from routing_gym.experiments.engine.logits import accuracy_together
from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.engine.run import LOGITS
from routing_gym.experiments.papers.parallel_paths.labels import (
    ALL_ENSEMBLE,
    BASE,
    BASE_ENSEMBLE,
    CNNS,
    DATA,
    DEEP,
    RESNETS,
    WIDE,
    Printed,
)
from routing_gym.experiments.papers.tables import heading, line

MEMBERS = 3
"""Of the ensemble of BaseCNNs, which differ by their seeds."""


def ensembles(records: Sequence[Record]) -> list[Record]:
    """Return records of the ensembles whose members are all there, see `missing_members`.

    The accuracy is that of the averaged class probabilities; parameters, operations and seconds are summed.

    Args:
        records: All trained in one way, each with the `folder` its logits lie in.
    """
    runs = _members(records)
    made = []
    if len(runs[BASE]) >= MEMBERS:
        made.append(_together(BASE_ENSEMBLE, [runs[BASE][seed] for seed in sorted(runs[BASE])[:MEMBERS]]))
    for seed in sorted(set.intersection(*(set(of_label) for of_label in runs.values()))):
        made.append(_together(ALL_ENSEMBLE, [of_label[seed] for of_label in runs.values()]))
    return made


def missing_members(records: Sequence[Record]) -> list[str]:
    """Say of every ensemble that is not there what it lacks."""
    runs = _members(records)
    there = {record["label"] for record in ensembles(records)}
    lacking = {
        BASE_ENSEMBLE: f"{MEMBERS} seeds of {BASE}, of which there are {len(runs[BASE])}",
        ALL_ENSEMBLE: f"one seed of {', '.join(runs)}",
    }
    return [f"{label} is not there: it needs {what}." for label, what in lacking.items() if label not in there]


def _members(records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """Return runs that have kept their logits, by label and seed."""
    runs: dict[str, dict[int, Record]] = {label: {} for label in (BASE, WIDE, DEEP)}
    for record in records:
        if record["label"] in runs and (Path(record["folder"]) / LOGITS).exists():
            runs[record["label"]][record["seed"]] = record
    return runs


def _together(label: str, members: Sequence[Record]) -> Record:
    first = members[0]
    summed = {key: sum(member[key] for member in members) for key in ("parameters", "macs", "router_macs", "seconds")}
    return {
        **{key: first[key] for key in ("seed", "epochs", "exits", "dataset", "settings", "part")},
        "label": label,
        "series": label,
        "agent": first["agent"],
        "test_accuracy": accuracy_together([Path(member["folder"]) / LOGITS for member in members]),
        **summed,
    }


def cnns(records: Sequence[Record]) -> list[str]:
    """Show Table 2: parameters and error of every network, and what it costs."""
    lines = heading(["", "parameters, M", "error %", "after 350 epochs", "MACs, M", "gates', %", *EFFORT])
    runs_of = by_label([*records, *ensembles(records)])
    # In the order of the paper's table.
    for label in sorted(runs_of, key=[*CNNS].index):
        runs, printed = runs_of[label], CNNS[label]
        longer = "" if printed.longer is None else f"*{printed.longer:.2f}*"
        lines.append(
            line(
                [
                    label,
                    _parameters(runs, printed),
                    _error(runs, printed.error),
                    longer,
                    *_cost(runs),
                    *_effort(runs),
                ]
            )
        )
    return [*lines, "", " ".join([_judged_on(records), *missing_members(records)])]


def resnets(records: Sequence[Record]) -> list[str]:
    """Show Table 3: a line for every network, with its error on each data set; costs are those on the first."""
    lines = heading(["", "parameters, M", *(f"{data} error %" for data in DATA), "MACs, M", "gates', %", *EFFORT])
    for label in dict.fromkeys(record["series"] for record in records):
        printed = RESNETS[label]
        runs = {data: [r for r in records if (r["series"], r["part"]) == (label, data)] for data in DATA}
        first = next(found for found in runs.values() if found)
        errors = zip(runs.values(), (printed.error, printed.cifar100), strict=True)
        shown = [_error(found, theirs) for found, theirs in errors]
        lines.append(line([label, _parameters(first, printed), *shown, *_cost(first), *_effort(first)]))
    return [*lines, "", _judged_on(records)]


def hard_routes(records: Sequence[Record]) -> list[str]:
    """Show networks of hard routes, below those whose tensors are shared out: error, cost, and how many paths live."""
    lines = heading(["", "error %", "parameters, M", "MACs, M", "agent's, %", "live paths", "routes", *EFFORT])
    for label, runs in by_label(records).items():
        live = np.mean([run["live_paths"] for run in runs], 0) if "live_paths" in runs[0] else []
        lines.append(
            line(
                [
                    label,
                    _error(runs, None),
                    f"{_mean(runs, 'parameters') / 1e6:.2f}",
                    *_cost(runs),
                    " ".join(f"{paths:.2f}" for paths in live),
                    f"{_mean(runs, 'paths'):.0f}",
                    *_effort(runs),
                ]
            )
        )
    how = (
        "Live paths are how many paths an image runs on average, decision by decision; where tensors are shared out "
        "it runs all. Routes are the different ones that test images took. Agents that are told the coarse class know "
        "part of the answer, vehicle or animal."
    )
    return [*lines, "", f"{how} {_judged_on(records)}"]


EFFORT = ("epochs", "s per epoch", "seeds")


def _effort(runs: Sequence[Record]) -> list[str]:
    seconds = np.mean([run["seconds"] / run["epochs"] for run in runs])
    return [str(runs[0]["epochs"]), f"{seconds:.0f}", str(len(runs))]


def _cost(runs: Sequence[Record]) -> list[str]:
    share = np.mean([run["router_macs"] / run["macs"] for run in runs])
    return [f"{_mean(runs, 'macs') / 1e6:.2f}", f"{100 * share:.3f}"]


def _parameters(runs: Sequence[Record], printed: Printed) -> str:
    return f"{_mean(runs, 'parameters') / 1e6:.2f} *{printed.parameters}*"


def _error(runs: Sequence[Record], printed: float | None) -> str:
    ours = f"**{ACCURACY.text([1 - run['test_accuracy'] for run in runs])}**" if runs else ""
    return ours if printed is None else f"{ours} *{printed:.2f}*".strip()


def _mean(runs: Sequence[Record], key: str) -> float:
    return float(np.mean([run[key] for run in runs]))


def _judged_on(records: Sequence[Record]) -> str:
    """Say what data there was."""
    return f"On the test split of {'; '.join(sorted({record['dataset'] for record in records}))}."
