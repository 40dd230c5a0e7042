"""The report: one page, complete in itself, on the runs in some folders."""

from __future__ import annotations

import base64
import collections
import dataclasses
import functools
import gzip
import html
import itertools
import json
import math
import shlex
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from routing_gym.agents import read
from routing_gym.experiments.engine import statistics
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.folders import epochs_wanted, failures_in, runs_in
from routing_gym.experiments.engine.metrics import ACCURACY, Metric
from routing_gym.experiments.engine.records import (
    Record,
    flat_options,
    judged_on,
    metrics_of,
    read_arrays,
    read_results,
    read_runs,
    with_delta_m,
    write_text,
)
from routing_gym.experiments.engine.run import CONFIG, finite
from routing_gym.experiments.engine.settings import folder_name, repeated
from routing_gym.experiments.engine.training import CHECKPOINT, ROUTES
from routing_gym.forms import check_form

TABLES = "tables.json"
"""Tables for the report that a command leaves in its folder: `heading`, `note`, `heads` and `rows` of text each."""
MOST_NAMES = 6
"""Agents that a warning names."""
MOST_CELLS = 2_000_000
"""Numbers of routes, `(runs, E, T, N, A)`, above which epochs are left out of the maps, or labels of later seeds."""

COMPARED: dict[str, Callable[[Record], Any]] = {
    "environments": lambda record: record["env"],
    "splits": lambda record: record["asked"]["split"],
    "options of the data": lambda record: judged_on(record)[-1],
    "numbers of epochs": lambda record: record["asked"].get("epochs", record["epochs"]),
    "batch sizes": lambda record: record["batch_size"],
    "commits": lambda record: record["commit"],
    "processors": lambda record: record["processor"],
    "devices": lambda record: record["device"],
}
"""What should be the same in all runs that are compared."""

FACTS = {
    **{"env": "environment", "dataset": "data", "version": "record version"},
    **{name: name for name in ("device", "processor", "threads", "torch", "commit")},
}
"""What is told of every run, and what it is called; once where it is the same in all."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished run: its record, its folder (or that of all), the folder that was asked for, its agent's name."""

    record: Record
    folder: Path
    origin: Path
    label: str

    @property
    def judged_on(self) -> tuple[str, str, str, str]:
        """Environment, data, split, and the options of the data: runs of others are not compared."""
        return judged_on(self.record)


@dataclasses.dataclass
class Contents:
    """What there is to report: finished runs by what they were asked for, unfinished ones, what failed, and tables."""

    finished: dict[str, Finished] = dataclasses.field(default_factory=dict)
    unfinished: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    tables: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    twice: int = 0  # runs that were left out because they are there already

    def take(self, origin: Path) -> None:
        """Take what is in a folder of `train`, `compare` or `sweep`, or the tables of `suite`."""
        here: dict[str, Finished] = {}
        if (path := origin / TABLES).exists():
            form = {"heading": str, "note": str, "heads": list, "rows": list}
            try:
                self.tables += read_results(path, lambda table: check_form(table, form, "table"))
            except UsageError as error:
                self.failures.append(str(error))
        self.failures += failures_in(origin)
        for folder in (origin, *runs_in(origin)):
            if (path := folder / "results.json").exists():
                try:
                    for record in read_runs(path):
                        if epochs_wanted(folder) > record["asked"].get("epochs", record["epochs"]):  # it was lengthened
                            self.unfinished.append(_unfinished(folder))
                        key = json.dumps(record["asked"], sort_keys=True)
                        if key in here:  # the records of all hold more, such as the setting of a sweep
                            record = {**here[key].record, **record}
                        # What the agent is called: of a sweep its setting, which at worst the folder tells.
                        of_sweep = folder != origin and folder.parent.name != folder_name(record["agent"])
                        label = folder.parent.name if of_sweep else record["agent"]
                        label = str(record.get("label") or record.get("setting") or label)
                        here[key] = Finished(record, folder, origin, label)
                except UsageError as error:
                    self.failures.append(str(error))
            elif (folder / CHECKPOINT).exists() or (folder / CONFIG).exists():
                self.unfinished.append(_unfinished(folder))
        for key, run in here.items():
            commit = run.record["commit"]
            if key in self.finished and self.finished[key].record["commit"] != commit:  # both count
                key = f"{key} at {commit}"
            self.twice += key in self.finished
            self.finished.setdefault(key, run)


def _unfinished(folder: Path) -> dict[str, Any]:
    """What is known of a run that has no record yet, or one of fewer epochs."""
    known: dict[str, Any] = {"epochs": 0, "of": epochs_wanted(folder) or None, "damage": ""}
    try:
        if (folder / CHECKPOINT).exists():
            known["epochs"] = len(read(folder / CHECKPOINT)["extra"]["curve"]["epoch"])
    except Exception as error:  # a damaged file fails in many ways
        known |= {"epochs": None, "damage": " ".join(str(error).split())}
    return {"folder": str(folder), "command": _command(folder, "--resume"), **known}


def _command(folder: Path, *more: str) -> str | None:
    """Command line that repeats a run, or goes on with it; None where its configuration is not there."""
    path = (folder / CONFIG).resolve()
    if not path.exists():
        return None
    out = path.parent if more else path.parent.with_name(f"again-{path.parent.name}")
    return shlex.join(["routing-gym", "train", "--config", str(path), "--out", str(out), *more])


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ by the seed alone, in its order, under a name of their own: an agent of the report."""

    name: str
    runs: list[Finished]

    def by_seed(self, metric: Metric) -> dict[int, float]:
        """Values of a metric by seed, as they are shown, where it means something."""
        values = {run.record["seed"]: metric.value(run.record) for run in self.runs}
        return {seed: metric.scale * value for seed, value in values.items() if finite(value) is not None}


def groups_of(runs: Iterable[Finished]) -> list[Group]:
    """Group runs that differ by the seed alone, in order of first appearance; a seed that is there again, by folder."""
    alike: dict[str, list[Finished]] = {}
    for run in runs:
        options = {name: value for name, value in run.record["asked"].items() if name != "seed"}
        alike.setdefault(json.dumps([run.record.get("label"), options], sort_keys=True), []).append(run)
    groups: dict[tuple[str, Path | None], list[Finished]] = {}
    for key, group in alike.items():
        again = repeated(str(run.record["seed"]) for run in group)
        for run in group:
            groups.setdefault((key, None if again is None else run.origin), []).append(run)
    of_label = collections.Counter(group[0].label for group in groups.values())
    names: collections.Counter[str] = collections.Counter()
    found = []
    for group in groups.values():
        name, origin = group[0].label, group[0].origin.resolve().name
        name = f"{name} ({origin})" if of_label[name] > 1 else name
        names[name] += 1
        name = f"{name} {names[name]}" if names[name] > 1 else name
        found.append(Group(name, sorted(group, key=lambda run: run.record["seed"])))
    return found


def write_report(folders: Sequence[Path], path: Path) -> None:
    """Write the report of the runs in folders of `compare`, `train` or `sweep`, whole or not at all.

    The page holds its text, style, script, data and plotly.js, which it unpacks itself.

    Raises:
        UsageError: A folder is not there, or there is no run in any.
    """
    contents = Contents()
    for folder in dict.fromkeys(folders):
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}: name folders of compare, train or sweep")
        contents.take(folder)
    if not (contents.finished or contents.unfinished or contents.tables):
        why = "; ".join(contents.failures) or "name folders that compare, train or sweep have written"
        raise UsageError(f"there are no runs in {', '.join(map(str, folders))}: {why}")
    data = report_data(contents)
    part = {kind: Path(__file__).with_name(f"report_page.{kind}").read_text("utf-8") for kind in ("html", "css", "js")}
    # Where a script ends is decided before its content is looked at.
    block = json.dumps(finite(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {"title": html.escape(data["title"]), "css": part["css"], "js": part["js"], "data": block}
    write_text(path, string.Template(part["html"]).substitute(parts, plotly=packed_plotly()))


@functools.cache
def packed_plotly() -> str:
    """Base64 of plotly.js, compressed."""
    from plotly.offline import get_plotlyjs  # takes a while to import

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), compresslevel=6, mtime=0)).decode()


def report_data(contents: Contents) -> dict[str, Any]:
    """Everything the page shows, as plain values, rounded to what is shown."""
    there = list(contents.finished.values())
    told = with_delta_m([run.record for run in there])
    groups = groups_of(dataclasses.replace(run, record=of) for run, of in zip(there, told, strict=True))
    runs = [run for group in groups for run in group.runs]
    metrics = metrics_of(run.record for run in runs)
    facts = {name: {run.record[name]: None for run in runs} for name in FACTS}
    varying = [name for name, values in facts.items() if len(values) > 1]
    marks, mark = _marks(groups)
    options = [flat_options(group.runs[0].record["asked"]) for group in groups]
    for of in options:
        del of["agent"], of["seed"]
    differing = {name for of in options for name in of if len({other.get(name) for other in options}) > 1}
    routes = _routes(runs, contents.failures)
    splits = dict.fromkeys(run.record["asked"]["split"] for run in runs)
    judged = dict.fromkeys(run.record["curve"]["judged_on"] for run in runs)
    described = ("name", "heading", "digits", "unit", "table", "curve", "better", "of_split")
    return {
        "title": " and ".join(dict.fromkeys(run.record["env"] for run in runs))
        or next((table["heading"] for table in contents.tables), "Unfinished runs"),
        "warnings": _warnings(groups, contents.twice),
        "failures": contents.failures,
        "unfinished": contents.unfinished,
        "tables": contents.tables,
        "metrics": [
            {
                **{name: getattr(metric, name) for name in described},
                "split": "/".join(splits),
                "judged": "/".join(judged),
            }
            for metric in metrics
        ],
        "mark": mark,
        "accuracy": ACCURACY.name,
        "agents": [
            {
                "name": group.name,
                "mark": marks.get(group.name, ""),
                "seeds": [run.record["seed"] for run in group.runs],
                "values": {metric.name: _summary(group, metric) for metric in metrics},
                "curves": {metric.name: _curve(group, metric) for metric in metrics if metric.curve},
                "options": of,
            }
            for group, of in zip(groups, options, strict=True)
        ],
        "pairs": {
            metric.name: [[_pair(a, b, metric) for b in groups[i + 1 :]] for i, a in enumerate(groups)]
            for metric in metrics
            if metric.table and metric.better
        },
        "differing": sorted(differing),
        "common": {FACTS[name]: value for name, values in facts.items() if name not in varying for value in values},
        "varying": [FACTS[name] for name in varying],
        "runs": [
            {
                **{"agent": number, "seed": run.record["seed"], "epochs": run.record["epochs"]},
                **{"best": run.record.get("best_epoch"), "facts": [run.record[name] for name in varying]},
                **{"command": _command(run.folder), **routes[id(run)]},
            }
            for number, group in enumerate(groups)
            for run in group.runs
        ],
    }


def _shown(metric: Metric, *values: float | None) -> list[float | int | None]:
    """Numbers as they are shown, integers where there are no digits; None where there is none."""
    digits = metric.digits or None
    return [round(value, digits) + 0 if value is not None and math.isfinite(value) else None for value in values]


def _summary(group: Group, metric: Metric) -> list[Any]:
    """Mean over seeds as text, as a number, and the half of its 95 % interval, None where there is none."""
    values = list(group.by_seed(metric).values())
    mean = float(np.mean(values)) if values else None
    shown = _shown(metric, mean, statistics.half_interval(values))
    return [metric.text([value / metric.scale for value in values]), *shown]


def _curve(group: Group, metric: Metric) -> list[list[Any]]:
    """Mean, lowest and highest of the seeds that have an epoch, by epoch, and how many these are."""
    columns = []
    for values in itertools.zip_longest(*(metric.curve_of(run.record) for run in group.runs)):
        known = [metric.scale * value for value in values if finite(value) is not None]
        numbers = (float(np.mean(known)), min(known), max(known)) if known else (None, None, None)
        columns.append([*_shown(metric, *numbers), len(known)])
    return [list(column) for column in zip(*columns, strict=True)]


def _marks(groups: Sequence[Group]) -> tuple[dict[str, str], str]:
    """Mark of every agent, by accuracy, and what marks mean, in a sentence."""
    nobody = "Nobody is marked as the best: "
    if len({run.judged_on for group in groups for run in group.runs}) > 1:
        return {}, f"{nobody}the runs are of different environments, data or splits."
    try:
        best = statistics.best_and_alike({group.name: group.by_seed(ACCURACY) for group in groups})
    except ValueError:
        return {}, f"{nobody}there is no seed that all agents were trained with."
    if best.seeds < statistics.FEWEST_SEEDS:
        return {}, f"{nobody}it takes {statistics.FEWEST_SEEDS} seeds common to all, got {best.seeds}."
    return {best.agent: "best", **dict.fromkeys(best.alike, "alike")}, (
        "● is the agent with the highest mean accuracy over the seeds common to all "
        f"({best.seeds}), ○ marks all that cannot be told apart from it: paired t-tests, corrected for {len(groups)} "
        f"agents, so that at most {100 * statistics.MISTAKES:.0f} % of tables call an agent worse that is not."
    )


def _pair(a: Group, b: Group, metric: Metric) -> list[Any] | None:
    """Paired difference a - b: common seeds, mean, interval, p, and 1 for better or -1 for worse; None of two tasks."""
    if a.runs[0].judged_on != b.runs[0].judged_on:
        return None
    ours, theirs = a.by_seed(metric), b.by_seed(metric)
    if not ours.keys() & theirs.keys():
        return [0]
    found = statistics.paired_difference(ours, theirs)
    verdict = {"better": 1, "worse": -1, "not enough": 0}[found.verdict] * (-1 if metric.better == "less" else 1)
    return [found.seeds, *_shown(metric, found.mean, found.low, found.high), float(f"{found.p:.2g}"), verdict]


def _warnings(groups: Sequence[Group], twice: int) -> list[str]:
    """What makes a comparison of these runs unfair, in a sentence each."""
    found = [f"Runs that are there twice count once: {twice} were left out."] if twice else []
    for what, of in COMPARED.items():
        by_value: dict[str, dict[str, list[str]]] = {}
        for group in groups:
            for run in group.runs:
                by_value.setdefault(str(of(run.record)), {}).setdefault(group.name, []).append(str(run.record["seed"]))
        if len(by_value) > 1:
            all_of, parts = {group.name: len(group.runs) for group in groups}, []
            for value, seeds in by_value.items():
                names = [name + f", seeds {' '.join(own)}" * (len(own) < all_of[name]) for name, own in seeds.items()]
                more = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
                parts.append(f"{value} ({', '.join(names[:MOST_NAMES])}{more})")
            found.append(f"Runs are of different {what}: {'; '.join(parts)}.")
    return found


def _routes(runs: Sequence[Finished], failures: list[str]) -> dict[int, dict[str, Any]]:
    """Routes of every run: `final` by task, `labels` by label, `routes` by task after `epochs_kept`."""
    logs: dict[int, dict[str, np.ndarray]] = {}
    for run in runs:
        if run.folder.joinpath(ROUTES).exists():
            try:
                log = read_arrays(run.folder / ROUTES, epoch=1, routes=4)
                logs[id(run)] = {name: rows[log["epoch"] <= run.record["epochs"]] for name, rows in log.items()}
            except UsageError as error:
                failures.append(str(error))
    stride = -(-sum(log["routes"].size for log in logs.values()) // MOST_CELLS) or 1
    maps: dict[int, dict[str, Any]] = {}
    for run in runs:
        final, labels = (np.array(run.record[name]) for name in ("routes", "routes_by_label"))
        names = [decision.get("name", "") for decision in run.record["decisions"]]
        maps[id(run)] = {"decisions": names, "choices": final.shape[-1], "final": cells(final)}
        maps[id(run)]["tasks"] = run.record.get("task_names", [])
        if len(runs) * labels.size <= MOST_CELLS or run.record["seed"] == runs[0].record["seed"]:
            maps[id(run)]["labels"] = cells(labels)
        if (kept := logs.get(id(run))) and len(kept["epoch"]):
            epochs, routes = (kept[name][::-1][::stride][::-1] for name in ("epoch", "routes"))  # the last in any case
            maps[id(run)] |= {"epochs_kept": epochs.tolist(), "routes": [cells(counts) for counts in routes]}
    return maps


def cells(counts: np.ndarray) -> list[list[Any]]:
    """Cells of a map from counts `(T, N, A)`: None, the block taken, or `[block, percent, block, percent, ...]`."""
    total = counts.sum(-1, keepdims=True)
    shares = np.rint(100 * counts / np.maximum(total, 1)).astype(int)

    def cell(of: np.ndarray, percent: np.ndarray) -> Any:
        taken = percent.nonzero()[0].tolist() or of.nonzero()[0].tolist()
        if len(taken) < 2:
            return taken[0] if taken else None
        return [number for block in taken for number in (block, int(percent[block]))]

    return [[cell(*pair) for pair in zip(*rows, strict=True)] for rows in zip(counts, shares, strict=True)]
