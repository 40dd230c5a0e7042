"""Table 2 of Routing Networks (Rosenbaum et al. 2018), and what its Fig. 13 shows."""

from __future__ import annotations

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import by_label
from routing_gym.experiments.papers.reproduction import Runs, distinct, mean_of
from routing_gym.experiments.papers.routing_networks.rows import EPOCHS
from routing_gym.experiments.papers.tables import EFFORT, Column, accuracy, heading, line, table


def accuracy_by_epoch(records: Runs) -> list[str]:
    """Show accuracy by epoch, the paper's below ours in italics, how far apart the rows are, and what was judged on."""
    last = max(max(record["curve"]["epoch"]) for record in records)
    epochs = [epoch for epoch in EPOCHS if epoch < last]

    def at(epoch: int) -> Column:
        place = epoch - 1
        return f"epoch {epoch}", lambda runs: ACCURACY.text([r["curve"]["validation_accuracy"][place] for r in runs])

    columns: list[Column] = [
        *map(at, epochs),
        (f"epoch {last}", accuracy),
        ("blocks", lambda runs: f"{mean_of(runs, 'blocks_used'):.0f}"),
        ("MACs", lambda runs: f"{mean_of(runs, 'macs'):,.0f}"),
        ("parameters", lambda runs: f"{runs[0]['parameters']:,}"),
    ]

    def printed(runs: Runs) -> list[list[str]]:
        theirs = {int(epoch): value for epoch, value in runs[0]["paper_by_epoch"].items()}
        if not theirs:
            return []
        shown = [f"*{theirs[epoch]:g}*" if epoch in theirs else "" for epoch in (*epochs, last)]
        end = max(theirs)
        return [["*paper*", *shown, "", "", "", "", "" if last == end else f"*{theirs[end]:g} at epoch {end}*"]]

    return [
        *table(columns, by_label(records).values(), printed, EFFORT[1:]),
        "",
        *_differences(records),
        _judged(records),
    ]


def _differences(records: Runs) -> list[str]:
    """Say how far the first row, the paper's own method, is from every other one, and how far it is in the paper."""
    (first, routed), *others = by_label(records).items()
    if not others or routed[0]["x"] is not None:  # rows along an axis are a picture
        return []
    parts = []
    for label, runs in others:
        ours = 100 * (mean_of(routed, "test_accuracy") - mean_of(runs, "test_accuracy"))
        both = routed[0]["paper"] is not None and runs[0]["paper"] is not None
        theirs = f" (paper {100 * (routed[0]['paper'] - runs[0]['paper']):+.0f})" if both else ""
        parts.append(f"{label} {ours:+.1f}{theirs}")
    return [f"{first}, points above: {'; '.join(parts)}.", ""]


def _judged(records: Runs) -> str:
    """Say what the columns were measured on."""
    judged_on = ", ".join(sorted({record["curve"]["judged_on"] for record in records}))
    if judged_on == "test":
        return "All columns are of the test split."
    return f"The last epoch's column is of the test split, the others are of the {judged_on} split."


def cost_by_blocks(costs: Runs) -> list[str]:
    """Show seconds per epoch, and per epoch and task, against blocks, and what they were measured with."""
    blocks = sorted(distinct(costs, "blocks"))
    lines = heading(["blocks", *map(str, blocks)])
    for key, what in (("seconds_per_epoch", "s per epoch"), ("seconds_per_epoch_and_task", "s per epoch and task")):
        for agent, runs in by_label(costs).items():
            found = {run["blocks"]: run[key] for run in runs}
            lines.append(line([f"{agent}, {what}", *(f"{found[number]:.2f}" for number in blocks)]))
    first = costs[0]
    how = f"{first['env']}, batches of {first['batch_size']}, {first['device']}, {first['threads']} CPU threads"
    return [*lines, "", f"Measured on {how}."]
