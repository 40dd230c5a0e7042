"""Reproducing a paper: every row of its tables as a run of ours, theirs and ours side by side."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console

import routing_gym
from routing_gym.agents.checkpoint import write_atomically
from routing_gym.envs import TrainingDivergedError
from routing_gym.experiments.cost import cost_against_number_of_blocks
from routing_gym.experiments.machine import commit
from routing_gym.experiments.paper_figures import cost_against_blocks, draw
from routing_gym.experiments.report import Record, accuracy_text, by_label, write_results
from routing_gym.experiments.reproduction import Reproduction, Settings
from routing_gym.experiments.routing_networks import ROUTING_NETWORKS
from routing_gym.experiments.settings import (
    TrainingSettings,
    UsageError,
    at_least_one,
    known_names,
    progress_bars,
    writable_folder,
)
from routing_gym.tasks import DataError

REPRODUCTIONS = {reproduction.name: reproduction for reproduction in (ROUTING_NETWORKS,)}
COST, COST_TITLE = "cost", "Fig. 13: what a task's epoch costs"
SHOWN_EPOCHS = (1, 5, 10, 20, 50, 100)


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Run what a paper reports and put our figures beside theirs.

    Every run is a folder of its own: finished ones are skipped, an interrupted one goes on where it stopped. The report
    is written anew after every run, from all that is there; pictures are drawn in the end.

    Attributes:
        name: The paper.
        settings: Ways of training; all of them if left out.
        groups: Figures or tables; all of them if left out.
        epochs: Passes over the training split, instead of each setting's own.
        seeds: Number of seeds, from 0 on.
        data_dir: Where downloaded data lies; by default what ROUTING_GYM_DATA names, else a folder in the user's cache.
        device: "auto" takes CUDA where present.
        threads: CPU threads of PyTorch.
        out: Folder for everything that is written: results.json, pictures, a folder per run.
        report: The report; OUT/NAME.md if left out.
    """

    name: Annotated[str, tyro.conf.Positional]
    settings: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    epochs: int | None = None
    seeds: int = 3
    data_dir: str | None = None
    device: str = "auto"
    threads: int | None = None
    out: Path = Path("results/reproduce")
    report: Path | None = None

    def execute(self, console: Console) -> int:
        """Run it; return the exit status, 1 where some run failed."""
        if self.name not in REPRODUCTIONS:
            raise UsageError(f"unknown paper {self.name!r}; known are {', '.join(REPRODUCTIONS)}")
        paper = REPRODUCTIONS[self.name]
        chosen = {setting.name: setting for setting in paper.settings}
        settings = [chosen[name] for name in known_names("settings", self.settings, tuple(chosen))]
        groups = known_names("groups", self.groups, (*paper.groups, COST))
        at_least_one("seeds", self.seeds)
        folder = writable_folder(self.out)
        target = self.report or folder / f"{self.name}.md"
        writable_folder(target.parent)

        cells = []
        for setting in settings:
            epochs = setting.epochs if self.epochs is None else self.epochs
            base = TrainingSettings(epochs=epochs, data_dir=self.data_dir, device=self.device, threads=self.threads)
            base.check()
            cells += [(setting, *pair) for pair in paper.cells(setting, groups, self.seeds, base, folder, self.epochs)]
        failures: dict[str, None] = {}
        costs, pictures_of_cost = [], []
        if COST in groups:
            base = TrainingSettings(paper.cost_env, 1, paper.batch_size, (), self.data_dir, self.device, self.threads)
            try:
                costs = cost_against_number_of_blocks(base, folder / "cost.json")
                pictures_of_cost = [folder / "cost.png"]
                cost_against_blocks(costs, pictures_of_cost[0], COST_TITLE)
                _write(target, report_of(paper, settings, groups, [], costs, [], pictures_of_cost))
            except UsageError as error:
                _unless_data_is_missing(error, failures)
        records: list[Record] = []
        with progress_bars(console) as progress:
            bar = progress.add_task("runs", total=len(cells))
            for setting, row, cell in cells:
                more: dict[str, Any] = {
                    "label": row.label,
                    "settings": setting.name,
                    "groups": list(row.groups),
                    "x": row.x,
                    "paper": row.paper[max(row.paper)] / 100 if row.paper else None,
                    "paper_by_epoch": row.paper,
                    "folder": str(cell.folder),
                }
                progress.update(bar, description=f"{row.label}"[:40])
                try:
                    record = cell.finished() or cell.run(resume=True, **more)[1]
                    records.append({**record, **more})
                except TrainingDivergedError as error:
                    failures[f"{setting.name}, {row.label}, seed {cell.seed}: {error}"] = None
                except UsageError as error:
                    _unless_data_is_missing(error, failures)
                progress.advance(bar)
                write_results(records, folder / "results.json")
                _write(target, report_of(paper, settings, groups, records, costs, list(failures), pictures_of_cost))
        shown = dataclasses.replace(paper, groups={group: paper.groups[group] for group in groups if group != COST})
        pictures = [*draw(shown, records, folder), *pictures_of_cost]
        _write(target, report_of(paper, settings, groups, records, costs, list(failures), pictures))
        for failure in failures:
            console.print(f"[red]{failure}[/red]")
        console.print(f"Written to {folder}: results.json, pictures, a folder per run; the report is {target}")
        return 1 if failures else 0


def _unless_data_is_missing(error: UsageError, failures: dict[str, None]) -> None:
    """Note what could not be run because its data are not there; any other mistake stops the command."""
    if not isinstance(error.__cause__, DataError):
        raise error
    failures[f"not run: {error}"] = None


def _write(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text))


def report_of(
    paper: Reproduction,
    settings: Sequence[Settings],
    groups: Sequence[str],
    records: Sequence[Record],
    costs: Sequence[Record],
    failures: Sequence[str],
    pictures: Sequence[Path],
) -> str:
    """Return the report, as Markdown."""
    lines = [
        f"# {paper.title}",
        "",
        f"Test accuracy in %, ± half of the 95 % interval over seeds. `routing-gym reproduce {paper.name}`, "
        f"routing_gym {routing_gym.__version__} at commit {commit()}, PyTorch {torch.__version__}, "
        f"{platform.machine()}, Python {platform.python_version()}.",
        "",
    ]
    for setting in settings:
        lines += [f"## Settings `{setting.name}`", "", setting.about[0].upper() + setting.about[1:] + ".", ""]
        for group in (group for group in groups if group != COST):
            own = [r for r in records if r["settings"] == setting.name and group in r["groups"]]
            if own:
                lines += [f"### {paper.groups[group]}", "", *_table(own), "", *_differences(own), _judged(own), ""]
    if costs:
        first = costs[0]
        how = f"{first['env']}, batches of {first['batch_size']}, {first['device']}, {first['threads']} CPU threads"
        lines += [f"## {COST_TITLE}", "", *_cost_table(costs), "", f"Measured on {how}.", ""]
    if failures:
        lines += ["## Not there", "", *(f"- {failure}" for failure in failures), ""]
    if pictures:
        lines += ["## Pictures", "", *(f"- {picture.name}" for picture in pictures), ""]
    return "\n".join(lines)


def _table(records: Sequence[Record]) -> list[str]:
    """Return a Markdown table: ours by epoch, the paper's below in italics."""
    last = max(max(record["curve"]["epoch"]) for record in records)
    epochs = [epoch for epoch in SHOWN_EPOCHS if epoch < last] + [last]
    header = ["", *(f"epoch {epoch}" for epoch in epochs), "blocks", "MACs", "parameters", "s per epoch", "seeds"]
    lines = [_line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
    for label, runs in by_label(records).items():
        curves = np.array([run["curve"]["validation_accuracy"] for run in runs])
        ours = [accuracy_text(curves[:, epoch - 1].tolist()) for epoch in epochs[:-1]]
        lines.append(
            _line(
                [
                    label,
                    *ours,
                    f"**{accuracy_text([run['test_accuracy'] for run in runs])}**",
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
            lines.append(_line(["*paper*", *shown, "", "", "", "", at_end]))
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


def _cost_table(costs: Sequence[Record]) -> list[str]:
    """Return a Markdown table of seconds per epoch, and per epoch and task, against blocks."""
    blocks = sorted({record["blocks"] for record in costs})
    lines = [_line(["blocks", *map(str, blocks)]), _line(["---"] + ["---:"] * len(blocks))]
    for key, what in (("seconds_per_epoch", "s per epoch"), ("seconds_per_epoch_and_task", "s per epoch and task")):
        for agent, runs in by_label(costs).items():
            found = {run["blocks"]: run[key] for run in runs}
            lines.append(_line([f"{agent}, {what}", *(f"{found[number]:.2f}" for number in blocks)]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
