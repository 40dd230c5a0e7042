"""The tables of CoDiNet, with the paper's figures behind ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.codinet.labels import PRINTED, Printed
from routing_gym.experiments.papers.tables import heading, line


def paths_and_cost(records: Sequence[Record]) -> list[str]:
    """Show accuracy, cost, and what is known of paths."""
    header = ["", "accuracy %", "GFLOPs", "routers', %", "K", "paths", "kept %", "KL", "parameters, M"]
    lines = heading([*header, "epochs", "s per epoch", "seeds"])
    for label, runs in by_label(records).items():
        printed = PRINTED.get(label, Printed())

        def compared(name: str, form: str, scale: float = 1.0, runs: list[Record] = runs) -> str:
            values = [run["compared_paths"].get(name) for run in runs if "compared_paths" in run]
            return format(scale * np.mean(values), form) if values and None not in values else ""

        def beside(ours: str, theirs: float | None, form: str = "g") -> str:
            return ours if theirs is None else f"{ours} *{theirs:{form}}*"

        lines.append(
            line(
                [
                    label,
                    beside(
                        f"**{ACCURACY.text([run['test_accuracy'] for run in runs])}**",
                        printed.accuracy,
                        ".2f",
                    ),
                    beside(f"{_mean(runs, gflops_of):.4f}", printed.gflops, ".2f"),
                    f"{100 * _mean(runs, lambda run: run['router_macs'] / run['macs']):.2f}",
                    beside(compared("length", ".1f"), printed.length),
                    beside(compared("paths", ".0f"), printed.paths),
                    beside(compared("kept", ".1f", 100), None if printed.kept is None else 100 * printed.kept, ".1f"),
                    compared("kl", ".3f"),
                    f"{_mean(runs, lambda run: run['parameters']) / 1e6:.3f}",
                    str(runs[0]["epochs"]),
                    f"{_mean(runs, lambda run: run['seconds'] / run['epochs']):.0f}",
                    str(len(runs)),
                ]
            )
        )
    data = sorted({record["dataset"] for record in records})
    return [*lines, "", f"On the test split of {'; '.join(data)}."]


def gflops_of(record: Record) -> float:
    """Return the mean cost of a test image in the paper's measure."""
    return 2 * record["macs"] / 1e9


def _mean(runs: Sequence[Record], value: Callable[[Record], float]) -> float:
    return float(np.mean([value(run) for run in runs]))
