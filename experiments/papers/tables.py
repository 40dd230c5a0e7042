"""Tables of reproduced papers, as lines of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import Record, by_label

SHOWN_EPOCHS = (1, 5, 10, 20, 50, 100)


def accuracy_by_epoch(records: Sequence[Record]) -> list[str]:
    """Show accuracy by epoch, the paper's below ours in italics, how far apart the rows are, and what was judged on."""
    return [*_by_epoch(records), "", *_differences(records), _judged(records)]


def _by_epoch(records: Sequence[Record]) -> list[str]:
    """Return a Markdown table: ours by epoch, the paper's below in italics."""
    last = max(max(record["curve"]["epoch"]) for record in records)
    epochs = [epoch for epoch in SHOWN_EPOCHS if epoch < last] + [last]
    header = ["", *(f"epoch {epoch}" for epoch in epochs), "blocks", "MACs", "parameters", "s per epoch", "seeds"]
    lines = heading(header)
    for label, runs in by_label(records).items():
        curves = np.array([run["curve"]["validation_accuracy"] for run in runs])
        ours = [ACCURACY.text(curves[:, epoch - 1].tolist()) for epoch in epochs[:-1]]
        lines.append(
            line(
                [
                    label,
                    *ours,
                    f"**{ACCURACY.text([run['test_accuracy'] for run in runs])}**",
                    f"{np.mean([run['blocks_used'] for run in runs]):.0f}",
                    f"{np.mean([run['macs'] for run in runs]):,.0f}",
                    f"{runs[0]['parameters']:,}",
                    f"{np.mean([run['seconds'] / run['epochs'] for run in runs]):.0f}",
                    str(len(runs)),
                ]
            )
        )
        theirs = {int(epoch): value for epoch, value in runs[0]["paper_by_epoch"].items()}
        if theirs:
            shown = [f"*{theirs[epoch]:g}*" if epoch in theirs else "" for epoch in epochs]
            at_end = "" if epochs[-1] == max(theirs) else f"*{theirs[max(theirs)]:g} at epoch {max(theirs)}*"
            lines.append(line(["*paper*", *shown, "", "", "", "", at_end]))
    return lines


def _differences(records: Sequence[Record]) -> list[str]:
    """Say how far the first row, the paper's own method, is from every other one, and how far it is in the paper."""
    (first, routed), *others = by_label(records).items()
    if not others or routed[0]["x"] is not None:  # rows along an axis are a picture
        return []
    parts = []
    for label, runs in others:
        ours = 100 * (np.mean([r["test_accuracy"] for r in routed]) - np.mean([r["test_accuracy"] for r in runs]))
        both = routed[0]["paper"] is not None and runs[0]["paper"] is not None
        theirs = f" (paper {100 * (routed[0]['paper'] - runs[0]['paper']):+.0f})" if both else ""
        parts.append(f"{label} {ours:+.1f}{theirs}")
    return [f"{first}, points above: {'; '.join(parts)}.", ""]


def _judged(records: Sequence[Record]) -> str:
    """Say what the columns were measured on."""
    judged_on = ", ".join(sorted({record["curve"]["judged_on"] for record in records}))
    if judged_on == "test":
        return "All columns are of the test split."
    return f"The last epoch's column is of the test split, the others are of the {judged_on} split."


def cost_by_blocks(costs: Sequence[Record]) -> list[str]:
    """Show seconds per epoch, and per epoch and task, against blocks, and what they were measured with."""
    blocks = sorted({record["blocks"] for record in costs})
    lines = heading(["blocks", *map(str, blocks)])
    for key, what in (("seconds_per_epoch", "s per epoch"), ("seconds_per_epoch_and_task", "s per epoch and task")):
        for agent, runs in by_label(costs).items():
            found = {run["blocks"]: run[key] for run in runs}
            lines.append(line([f"{agent}, {what}", *(f"{found[number]:.2f}" for number in blocks)]))
    first = costs[0]
    how = f"{first['env']}, batches of {first['batch_size']}, {first['device']}, {first['threads']} CPU threads"
    return [*lines, "", f"Measured on {how}."]


def error_and_operations(records: Sequence[Record]) -> list[str]:
    """Show error, mean operations and the cost of inference; an agent judged at several prices has a line for each."""
    lines = heading(["", "error %", "MACs, M", "router's, %", "c_inf", "epochs", "s per epoch", "seeds"])
    for label, runs in by_label(records).items():
        if runs[0].get("cost") is not None:
            cost = f"{np.mean([run['cost'] for run in runs]):.4f}"
        else:
            cost = ""  # prices were drawn: the lines below have one each
        lines.append(
            line(
                [
                    label,
                    f"**{ACCURACY.text([1 - run['test_accuracy'] for run in runs])}**",
                    f"{np.mean([run['macs'] for run in runs]) / 1e6:.2f}",
                    f"{100 * np.mean([run['router_macs'] / run['macs'] for run in runs]):.2f}",
                    cost,
                    str(runs[0]["epochs"]),
                    f"{np.mean([run['seconds'] / run['epochs'] for run in runs]):.0f}",
                    str(len(runs)),
                ]
            )
        )
        for points in zip(*(run.get("by_price", []) for run in runs), strict=True):
            lines.append(
                line(
                    [
                        f"… judged at {price_text(points[0]['k_cpt'])}",
                        ACCURACY.text([1 - point["test_accuracy"] for point in points]),
                        f"{np.mean([point['macs'] for point in points]) / 1e6:.2f}",
                        "",
                        f"{np.mean([point['cost'] for point in points]):.4f}",
                        "",
                        "",
                        "",
                    ]
                )
            )
    data = sorted({record["dataset"] for record in records})
    return [*lines, "", f"On the test split of {'; '.join(data)}."]


def price_text(price: float) -> str:
    """Write the price of an operation as people do: `4e-9`."""
    return f"{price:g}".replace("e-0", "e-")


def heading(cells: Sequence[str]) -> list[str]:
    """Return the first two lines of a table whose first column holds text and whose others hold numbers."""
    return [line(cells), line(["---"] + ["---:"] * (len(cells) - 1))]


def line(cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |"
