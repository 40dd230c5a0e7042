"""Records of runs: their form, files of them, tables of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from routing_gym.envs import DATASETS, EnvConfig
from routing_gym.envs.make import default_options
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import plain_table
from routing_gym.experiments.engine.metrics import ACCURACY, METRICS, OURS, Metric, Record
from routing_gym.experiments.engine.statistics import FEWEST_SEEDS, Best, best_and_alike, paired_difference
from routing_gym.files import write_atomically
from routing_gym.forms import check_form
from routing_gym.registration import ENV_IDS

VERSION = 2  # of the form of records
OF_TRAINING = ("train_loss", "train_accuracy")
OF_A_RUN: dict[str, Any] = {
    **dict.fromkeys(("agent", "env", "dataset", "device", "processor", "torch", "commit"), str),
    **dict.fromkeys(("version", "seed", "epochs", "batch_size", "threads"), int),
    **dict.fromkeys(("config", "env_config", "asked", "curve"), dict),
    **dict.fromkeys(("task_accuracy", "task_macs", "routes", "routes_by_label", "use", "exits"), list),
    **dict.fromkeys(("ways_out", "decisions", "experts"), list),
}
"""What the record of a run holds at least, besides its metrics."""
OF_SOME_RUNS: dict[str, Any] = {
    **dict.fromkeys(("label", "setting"), str),
    **dict.fromkeys(("task_names", "live_paths", "by_price"), list),
    **dict.fromkeys(("best_epoch", "settled"), int | None),
    **dict.fromkeys(("exit_curves", "compared_paths"), dict),
}
"""What it may hold."""
ROUNDING = 1e-6
"""How far beyond 1 a mean of shares may be."""

Curve = dict[str, Any]
"""How a run went: `judged_on`, a split, and columns with an entry per epoch.

`epoch` (1, 2, ...), `train_loss` and `train_accuracy` (means over the epoch's batches, exploration included), the
metrics that have a curve, of the deterministic policy after the epoch (`validation_accuracy`, `macs`, `seconds`, ...);
`exits`, how many instances left by each way out (`ways_out`); and `use`, the `(N, A)` share of each choice in the
weight at its decision (`Evaluation.use`), to four digits.
"""


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    write_atomically(path, lambda out: out.write(text.encode()))


def write_results(records: Sequence[Record], path: Path) -> None:
    """Write records as JSON, whole or not at all; compressed if the name ends in .gz, equal records to equal bytes."""
    if path.suffix == ".gz":
        packed = gzip.compress(json.dumps(list(records), separators=(",", ":")).encode(), mtime=0)
        write_atomically(path, lambda out: out.write(packed))
    else:
        write_text(path, json.dumps(list(records), indent=1))


def write_rows(rows: Iterable[Iterable[Any]], path: Path) -> None:
    """Write rows as CSV, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


SINGLE = "single-task"
"""The agent that others are compared with task by task: a network of its own for every task."""
DELTA_M = Metric("delta_m", "Δm %", lambda judged: None, scale=100, digits=1, spread=True, better="more")
"""Δm, the mean relative gain over networks of single tasks, 0.05 for 5 %, of runs with the same data and seed.

The mean over tasks of (accuracy - single) / single (Maninis et al. 2019, "Attentive Single-Tasking of Multiple Tasks";
Vandenhende et al. 2021, "Multi-Task Learning for Dense Prediction Tasks").
"""


def judged_on(record: Record) -> tuple[str, str, str, str]:
    """Environment, data, split, and the options of the data: runs of others are not compared."""
    given = record["asked"].get("env_options", {})
    data = ENV_IDS.get(record["env"], {}).get("dataset")
    known = default_options(data, "") if data in DATASETS else {"num_tasks": None}
    own = sorted(known.keys() & given.keys() - {"num_blocks", "data_dir", *vars(EnvConfig())})
    told = " ".join(f"{name}={given[name]}" for name in own)
    return record["env"], record["dataset"], record["asked"]["split"], told


def metrics_of(records: Iterable[Record]) -> list[Metric]:
    """Metrics of records that are shown together, in the order of their columns; Δm where some run is of `SINGLE`."""
    return [*METRICS.values(), *([DELTA_M] if any(record["agent"] == SINGLE for record in records) else [])]


def with_delta_m(records: Sequence[Record]) -> list[Record]:
    """Records that are shown or written together, each with its Δm as `delta_m`, where it has one.

    It has none where no run of `SINGLE` had the same data and seed, or that one gets nothing right in some task.
    """
    places = [(judged_on(record), record["seed"]) for record in records]
    singles = {
        place: record["task_accuracy"]
        for place, record in zip(places, records, strict=True)
        if record["agent"] == SINGLE
    }
    told = []
    for place, record in zip(places, records, strict=True):
        ours, single = record["task_accuracy"], singles.get(place, [])
        record = {name: of for name, of in record.items() if name != "delta_m"}  # of a run that may be gone
        if len(ours) == len(single) and all(single):
            record["delta_m"] = float(np.mean([(our - one) / one for our, one in zip(ours, single, strict=True)]))
        told.append(record)
    return told


def write_csv(records: Sequence[Record], path: Path) -> None:
    """Write records as CSV: a row per run, its metrics and options; empty where it has none."""
    rows, metrics = [], metrics_of(records)
    for record in with_delta_m(records):
        row = {name: record[name] for name in ("agent", "env", "seed", "epochs")}
        row |= {metric.key(record["asked"]["split"]): metric.value(record) for metric in metrics}
        rows.append(row | flat_options(record["asked"]) | row)  # a metric counts more than an option of its name
    columns = dict.fromkeys(name for row in rows for name in row)
    write_rows([columns, *([row.get(name) for name in columns] for row in rows)], path)


def flat_options(asked: dict[str, Any]) -> dict[str, str]:
    """What a run was asked for, as text by name; of tables of options as `env_options.num_blocks`."""
    flat = {}
    for name, value in asked.items():
        for part, of in value.items() if isinstance(value, dict) else [("", value)]:
            text = "none" if of is None else json.dumps(of)
            flat[f"{name}.{part}".strip(".")] = of if isinstance(of, str) else text
    return flat


def read_results(path: Path, check: Callable[[Record], None] = lambda record: None) -> list[Record]:
    """Read records that `write_results` has written.

    Raises:
        UsageError: The file cannot be read, or holds what is no record, or none that `check` lets through.
    """
    try:
        text = path.read_bytes()
        records = json.loads(gzip.decompress(text) if path.suffix == ".gz" else text)
        if not (isinstance(records, list) and all(isinstance(record, dict) for record in records)):
            raise ValueError("it is not a list of records")
        for record in records:
            check(record)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    return records


def read_runs(path: Path) -> list[Record]:
    """Read the records of runs; errors as of `read_results`."""
    return read_results(path, check_run)


def read_run(path: Path) -> Record:
    """Read the record of one run; errors as of `read_results`."""
    records = read_runs(path)
    if len(records) != 1:
        raise damaged(path, ValueError(f"it holds {len(records)} records, expected one"))
    return records[0]


def check_run(record: Record) -> None:
    """Refuse what is not the record of a run, by a `ValueError` that names what is missing, or cannot be."""
    if "asked" in record and record.get("version") != VERSION:
        version = record.get("version", 1)
        raise ValueError(f"it is of version {version} of the form of records, this routing_gym reads {VERSION}")
    check_form({name: record.get(name) for name in OF_A_RUN}, OF_A_RUN, "record")
    asked = {"env_options": {}, "agent_options": {}, **record["asked"]}
    form: dict[str, Any] = {"split": str, "agent": str, "seed": int, "env_options": dict, "agent_options": dict}
    form |= {"plugins": dict} if "plugins" in asked else {}
    check_form({name: asked.get(name) for name in form}, form, "record.asked")
    also = {name: form for name, form in OF_SOME_RUNS.items() if name in record}
    check_form({name: record[name] for name in also}, also, "record")
    check_form(names := record.get("task_names", []), [str] * len(names), "record.task_names")
    check_form(record["decisions"], [dict] * len(record["decisions"]), "record.decisions")
    # Along so many axes; the first is of tasks, decisions or labels.
    for name, axes in {"task_accuracy": 1, "task_macs": 1, "routes": 3, "routes_by_label": 3, "use": 2}.items():
        _check_numbers(record[name], axes, f"record.{name}", 0, 1 if name == "task_accuracy" else np.inf)
    for metric in METRICS.values():
        value = record.get(key := metric.key(record["asked"]["split"]))
        if value is not None or (metric.table and metric.name in OURS):
            _check_numbers(value, 0, f"record.{key}", *((0, 1) if metric == ACCURACY else ()))
    for name, points in record.get("exit_curves", {}).items():
        _check_points(points, ("accuracy", "macs") + ("budget",) * (name != "anytime"), f"record.exit_curves.{name}")
    check_curve(record["curve"], "record.curve")
    if not record["curve"]["epoch"]:
        raise ValueError("record.curve.epoch: expected at least one epoch")


def _check_numbers(value: Any, axes: int, where: str, least: float = -np.inf, most: float = np.inf) -> None:
    array = np.array(value)  # ValueError for lists that are not of one length
    if array.ndim != axes or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise ValueError(f"{where}: expected finite numbers along {axes} axes")
    if wrong := array[(array < least) | (array > most + ROUNDING)].tolist():
        raise ValueError(f"{where}: expected numbers from {least:g} to {most:g}, got {wrong[0]:g}")


def _check_points(points: Any, names: Sequence[str], where: str) -> None:
    check_form(points, list, where)
    check_form(points, [dict] * len(points), where)
    for name in names:
        _check_numbers([point.get(name) for point in points], 1, f"{where}, {name}", 0)


def check_curve(curve: Any, where: str) -> None:
    """Refuse what is not the curve of a run, by a `ValueError` that names what is wrong."""
    check_form(curve, dict, where)
    check_form(curve.get("judged_on"), str, f"{where}.judged_on")
    check_form(curve.get("epoch"), list, f"{where}.epoch")
    epochs = len(curve["epoch"])
    of_metrics = {metric.key("validation"): metric.name in OURS for metric in METRICS.values() if metric.curve}
    numbers = (*OF_TRAINING, *(key for key, ours in of_metrics.items() if ours or key in curve))
    form = {name: [int | float | None] * epochs for name in numbers} | dict.fromkeys(("exits", "use"), [list] * epochs)
    check_form({name: curve.get(name) for name in form}, form, where)
    for name in (*OF_TRAINING, "validation_accuracy", "seconds"):
        _check_numbers(curve[name], 1, f"{where}.{name}")
    if curve["epoch"] != list(range(1, epochs + 1)):
        raise ValueError(f"{where}.epoch: expected 1 to {epochs}, one by one")


def read_progress(path: Path) -> dict[str, Any]:
    """How far a run in another process says it is; nothing where it says nothing, or is about to."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def damaged(path: Path, error: Exception) -> UsageError:
    """What to say of a file that cannot be read back."""
    why = " ".join(str(error).split()) or type(error).__name__
    return UsageError(f"{path} cannot be read back ({why}): put back a copy, or delete it, then it is made anew")


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays by their names as an `.npz` file, whole or not at all."""
    write_atomically(path, lambda out: np.savez_compressed(out, **arrays))  # type: ignore[arg-type]


def read_arrays(path: Path, **axes: int) -> dict[str, np.ndarray]:
    """Read arrays that `write_arrays` has written: their names and how many axes each has; the first is as long in all.

    Raises:
        UsageError: The file is not there or damaged, or holds other arrays: names it, and what to do.
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in axes}  # checked against their CRC sums on the way
        if {name: array.ndim for name, array in arrays.items()} != axes or len(set(map(len, arrays.values()))) != 1:
            raise ValueError(f"expected arrays with so many axes: {axes}")
    except Exception as error:  # a damaged file fails in many ways
        raise damaged(path, error) from error
    return arrays


def by_label(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group records by their label, their agent where they have none, in order of first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["label"] if "label" in record else record["agent"], []).append(record)
    return groups


def comparison_table(records: Sequence[Record], title: str) -> Table:
    """Table with a row per agent: means over seeds; the best is marked, and what cannot be told apart from it."""
    best, columns = None, [metric for metric in metrics_of(records) if metric.table]
    with suppress(ValueError):  # no seed is common to all
        best = best_and_alike(_accuracies(records))
    table = plain_table("agent", *(metric.heading for metric in columns), title=title, caption=said_of(best))
    groups = by_label(with_delta_m(records))
    if unequal := len({len(runs) for runs in groups.values()}) > 1:  # the marks go by seeds that all have
        table.add_column("seeds", justify="right")
    for agent, runs in groups.items():
        texts = [metric.text([metric.value(run) for run in runs]) for metric in columns]
        mark = " *" if best is not None and agent in (best.agent, *best.alike) else ""
        table.add_row(agent, texts[0] + mark, *texts[1:], *[str(len(runs))] * unequal)
    return table


ONE_PAIR = "as if each pair had been named beforehand; the best was looked for, which only * minds"


def _accuracies(records: Sequence[Record]) -> dict[str, dict[int, float]]:
    """Accuracies by seed of every label."""
    return {name: {run["seed"]: ACCURACY.value(run) for run in runs} for name, runs in by_label(records).items()}


def differences_table(records: Sequence[Record]) -> Table | None:
    """How far the best agent is ahead of the others, with the interval of each pair; None where seeds are too few."""
    groups = _accuracies(records)
    with suppress(ValueError):  # no seed is common to all
        best = best_and_alike(groups)
        if best.seeds >= FEWEST_SEEDS and len(groups) > 1:
            table = plain_table(f"{best.agent} less", "points", "95 % interval", "p", "common seeds", caption=ONE_PAIR)
            for other in (*best.alike, *best.worse):
                of = paired_difference(groups[best.agent], groups[other])
                mean, low, high = (100 * value for value in (of.mean, of.low, of.high))
                table.add_row(other, f"{mean:+.2f}", f"[{low:+.2f}, {high:+.2f}]", f"{of.p:.2g}", str(of.seeds))
            return table
    return None


def said_of(best: Best | None) -> str:
    """What the marks of a table mean, and what ± is."""
    spread = "± half of the 95 % t-interval of the mean over seeds"
    if best is None:
        return f"{spread}; no seed is common to all agents, so that none is called the best"
    if best.seeds < FEWEST_SEEDS:
        return f"{spread}; * all: fewer than {FEWEST_SEEDS} common seeds tell nothing apart"
    compared, how = len(best.alike) + len(best.worse) + 1, f"paired t over {best.seeds} seeds, Holm, 5 %"
    return f"{spread}; * the best of {compared}, or not told apart from it ({how})"
