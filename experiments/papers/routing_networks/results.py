"""Table 2 of Routing Networks (Rosenbaum et al. 2018), and what it says in words, judged by recorded runs."""

from __future__ import annotations

import numpy as np

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.judging import Judge, error_of, judged
from routing_gym.experiments.papers.reproduction import Claim, Judged, Runs, mean_of
from routing_gym.experiments.papers.routing_networks import rows
from routing_gym.experiments.papers.tables import EFFORT, Column, accuracy, table


def accuracy_by_epoch(records: Runs) -> list[str]:
    """Show accuracy by epoch, the paper's below ours in italics, and what was judged on."""
    last = max(max(record["curve"]["epoch"]) for record in records)
    epochs = [epoch for epoch in rows.EPOCHS if epoch < last]

    def at(epoch: int) -> Column:
        place = epoch - 1
        return f"epoch {epoch}", lambda runs: ACCURACY.text([r["curve"]["validation_accuracy"][place] for r in runs])

    columns: list[Column] = [
        *map(at, epochs),
        (f"epoch {last}", accuracy),
        ("training", lambda runs: ACCURACY.text([run["curve"]["train_accuracy"][-1] for run in runs])),
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
        return [["*paper*", *shown, "", "", "", "", "", "" if last == end else f"*{theirs[end]:g} at epoch {end}*"]]

    judged_on = ", ".join(sorted({record["curve"]["judged_on"] for record in records}))
    splits = "Columns of epochs are of the test split"
    if judged_on != "test":
        splits = f"The last epoch's column is of the test split, those before it are of the {judged_on} split"
    splits += "; `training` is of the training images, while the last epoch went over them."
    lines = table(columns, by_label(records).values(), printed, EFFORT[1:])
    return [*lines, "", splits]


def claims(records: Runs) -> list[Claim]:
    """Judge all claims by records that were trained in one way."""
    cifar = Judge(records, env=rows.CIFAR)

    def over_epochs(record: Record) -> float:
        return 100 * float(np.mean(record["curve"]["validation_accuracy"]))

    def lead(*runs: Runs) -> float:
        ours, theirs = np.split(np.array([error_of(own[0]) for own in runs]), 2)
        return float((theirs - ours).mean())

    def on_first_tasks(other: str) -> Judged:
        both = [f"{label}, {n} tasks" for label in (rows.ROUTING, other) for n in rows.TASKS]
        what = f"error, {other} less {rows.ROUTING}, mean over {', '.join(map(str, rows.TASKS))} tasks"
        return cifar.positive(what, lead, *both, unit=" points")

    said = {text: [Judge(records, env=env).less(better, worse)] for text, env, better, worse in rows.PAIRS}
    said |= {
        f"Fig. 15, the first tasks of CIFAR-MTL: routing errs less than {other}": [on_first_tasks(other)]
        for other in rows.BASELINES
    }
    said["Section 4, CIFAR-MTL: routing converges faster than a soft mixture"] = [
        cifar.more("mean accuracy over all epochs", over_epochs, rows.ROUTING, "soft mixture", " points")
    ]
    said["Section 4, CIFAR-MTL: an agent per task makes more use of blocks than a single one"] = [
        cifar.more("blocks used", lambda run: run["blocks_used"], rows.ROUTING, "single agent")
    ]
    return judged(said)
