"""Tables and files of results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from scipy import stats

from routing_gym.agents.checkpoint import write_atomically

Record = dict[str, Any]
CONFIDENCE = 0.95


def write_results(records: Sequence[Record], path: Path) -> None:
    """Write records as JSON, whole or not at all."""
    text = json.dumps(list(records), indent=1)
    write_atomically(path, lambda temporary: Path(temporary).write_text(text))


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays by their names as an `.npz` file, whole or not at all."""

    def save(temporary: str) -> None:
        with open(temporary, "wb") as out:
            np.savez_compressed(out, **arrays)  # type: ignore[arg-type]

    write_atomically(path, save)


def by_label(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group records by their label, their agent where they have none, in order of first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["label"] if "label" in record else record["agent"], []).append(record)
    return groups


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of a mean over seeds (Student's t); None for fewer than two values."""
    if len(values) < 2:
        return None
    spread = stats.sem(values)
    if spread == 0:
        return float(values[0]), float(values[0])
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=np.mean(values), scale=spread)
    return float(low), float(high)


def accuracy_text(values: Sequence[float]) -> str:
    """Write a mean accuracy in % with the half-width of its interval: `99.51 ± 0.12`."""
    mean, bounds = 100 * float(np.mean(values)), interval(values)
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
