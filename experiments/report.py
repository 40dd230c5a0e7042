"""Tables and files of results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from routing_gym.experiments.settings import UsageError
from routing_gym.experiments.statistics import mean_interval
from routing_gym.files import write_atomically
from routing_gym.forms import check_form

Record = dict[str, Any]

NUMBER = int | float
OF_COST = ("macs", "router_macs", "blocks_used", "paths", "samples_per_second", "seconds")
OF_A_RUN: dict[str, Any] = {
    **dict.fromkeys(("agent", "env", "dataset", "device", "torch"), str),
    **dict.fromkeys(("seed", "epochs", "batch_size", "parameters", "threads"), int),
    **dict.fromkeys(OF_COST, NUMBER),
    **dict.fromkeys(("config", "env_config", "asked", "curve"), dict),
    **dict.fromkeys(("task_accuracy", "routes", "routes_by_label", "use", "exits"), list),
    **dict.fromkeys(("ways_out", "decisions", "experts"), list),
}
"""What the record of a run holds at least, besides how it was judged."""

COLUMNS = ("train_loss", "train_accuracy", "validation_accuracy", "seconds")


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    write_atomically(path, lambda out: out.write(text.encode()))


def write_results(records: Sequence[Record], path: Path) -> None:
    """Write records as JSON, whole or not at all."""
    write_text(path, json.dumps(list(records), indent=1))


def read_results(path: Path) -> list[Record]:
    """Read records that `write_results` has written.

    Raises:
        UsageError: The file cannot be read, is no JSON or is no list of records: names it, and what to do.
    """
    try:
        records = json.loads(path.read_bytes())
        if not (isinstance(records, list) and all(isinstance(record, dict) for record in records)):
            raise ValueError("it is not a list of records")
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    return records


def read_run(path: Path) -> Record:
    """Read the record of one run.

    Raises:
        UsageError: The file cannot be read, or lacks something that a run says of itself: names it, and what to do.
    """
    records = read_runs(path)
    if len(records) != 1:
        raise damaged(path, ValueError(f"it holds {len(records)} records, expected one"))
    return records[0]


def read_runs(path: Path) -> list[Record]:
    """Read the records of runs; errors as of `read_run`."""
    records = read_results(path)
    try:
        for record in records:
            check_run(record)
    except ValueError as error:
        raise damaged(path, error) from error
    return records


def check_run(record: Record) -> None:
    """Refuse what is not the record of a run.

    Raises:
        ValueError: Names what is missing, or is not finite.
    """
    asked = record.get("asked")
    accuracy = f"{asked.get('split')}_accuracy" if isinstance(asked, dict) else ""
    check_form({name: record.get(name) for name in OF_A_RUN}, OF_A_RUN, "record")
    # Along so many axes; the first is of tasks, decisions or labels.
    for name, axes in {accuracy: 0, "task_accuracy": 1, "routes": 3, "routes_by_label": 3, "use": 2}.items():
        _check_numbers(record.get(name), axes, f"record.{name}")
    for name in OF_COST:
        _check_numbers(record[name], 0, f"record.{name}")
    check_curve(record["curve"], "record.curve")


def _check_numbers(value: Any, axes: int, where: str) -> None:
    """Refuse what is not a finite number, or a list of as many for each."""
    array = np.array(value)  # ValueError for lists that are not of one length
    if array.ndim != axes or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise ValueError(f"{where}: expected finite numbers along {axes} axes")


def check_curve(curve: Any, where: str) -> None:
    """Refuse what is not the curve of a run, as `dataclasses.asdict` gives it.

    Raises:
        ValueError: Names what is wrong.
    """
    check_form(curve, dict, where)
    check_form(curve.get("epoch"), list, f"{where}.epoch")
    epochs = len(curve["epoch"])
    form = {"judged_on": str, "epoch": [int] * epochs} | {name: [NUMBER] * epochs for name in COLUMNS}
    form |= {"macs": [NUMBER | None] * epochs, "exits": [list | None] * epochs, "use": [list | None] * epochs}
    check_form(curve, form, where)
    for name in COLUMNS:
        _check_numbers(curve[name], 1, f"{where}.{name}")
    if curve["epoch"] != list(range(1, epochs + 1)):
        raise ValueError(f"{where}.epoch: expected 1 to {epochs}, one by one")


def damaged(path: Path, error: Exception) -> UsageError:
    """Return what to say of a file that cannot be read back."""
    why = " ".join(str(error).split()) or type(error).__name__
    return UsageError(f"{path} cannot be read back ({why}): put back a copy, or delete it, then it is made anew")


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays by their names as an `.npz` file, whole or not at all."""
    write_atomically(path, lambda out: np.savez_compressed(out, **arrays))  # type: ignore[arg-type]


def read_arrays(path: Path, **axes: int) -> dict[str, np.ndarray]:
    """Read arrays that `write_arrays` has written.

    Args:
        path: The file.
        axes: The names of the arrays, and how many axes each has; the first is as long in all.

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


def accuracy_text(values: Sequence[float]) -> str:
    """Write a mean accuracy in % with the half-width of its interval: `99.51 ± 0.12`."""
    mean, bounds = 100 * float(np.mean(values)), mean_interval(values)
    return f"{mean:.2f}" if bounds is None else f"{mean:.2f} ± {50 * (bounds[1] - bounds[0]):.2f}"


def comparison_table(records: Sequence[Record], title: str) -> Table:
    """Return one row per agent; means over seeds."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("agent", no_wrap=True)
    for column in ("accuracy %", "worst", "MACs", "blocks", "paths", "samples/s", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for agent, runs in by_label(records).items():

        def mean(key: str, runs: list[Record] = runs) -> float:
            return float(np.mean([run[key] for run in runs]))

        worst = float(np.mean([min(run["task_accuracy"]) for run in runs]))
        table.add_row(
            agent,
            accuracy_text([run["test_accuracy"] for run in runs]),
            f"{100 * worst:.1f}",
            f"{mean('macs'):,.0f}",
            f"{mean('blocks_used'):.1f}",
            f"{mean('paths'):.1f}",
            f"{mean('samples_per_second'):,.0f}",
            f"{mean('seconds'):.1f} s",
        )
    return table
