"""Reproducing a paper: every row of its tables as a run of ours, theirs and ours side by side."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console

import routing_gym
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import one_line, say
from routing_gym.experiments.engine.folders import check_own, locked
from routing_gym.experiments.engine.launchers import Launcher, Launching, perform, say_failures
from routing_gym.experiments.engine.machine import commit
from routing_gym.experiments.engine.records import Record, write_results
from routing_gym.experiments.engine.run import Run
from routing_gym.experiments.engine.settings import (
    DEFAULT_ENV,
    TrainingSettings,
    at_least_one,
    known_names,
    writable_file,
    writable_folder,
)
from routing_gym.experiments.papers.codinet import CODINET
from routing_gym.experiments.papers.diversity import DIVERSITY
from routing_gym.experiments.papers.multipath import MULTIPATH
from routing_gym.experiments.papers.page import page_around, write_page
from routing_gym.experiments.papers.parallel_paths import PARALLEL_PATHS
from routing_gym.experiments.papers.reproduction import Reproduction, Settings, asks_for
from routing_gym.experiments.papers.routing_networks import ROUTING_NETWORKS
from routing_gym.tasks import DataError

REPRODUCTIONS = {
    reproduction.name: reproduction
    for reproduction in (ROUTING_NETWORKS, DIVERSITY, MULTIPATH, CODINET, PARALLEL_PATHS)
}


@dataclasses.dataclass(frozen=True)
class Reproduce(Launching):
    """Run what a paper reports and put our figures beside theirs.

    Every run is a folder of its own: finished ones are skipped, an interrupted one goes on where it stopped. The report
    is written anew after every run, from all that is there; pictures are drawn in the end.

    Attributes:
        name: The paper.
        settings: Ways of training; all of them if left out.
        groups: Figures or tables; all of them if left out.
        rows: Only rows whose label contains one of these texts, or is one of them where `=` stands before it; all of
            them if left out.
        epochs: Passes over the training split, instead of each setting's own.
        seeds: Number of seeds, from 0 on.
        data_dir: Where downloaded data lies; by default what ROUTING_GYM_DATA names, else a folder in the user's cache.
        device: "auto" takes CUDA where present.
        threads: CPU threads of PyTorch.
        out: Folder for everything that is written: results.json, pictures, a folder per run.
        report: The report; OUT/NAME.md if left out. Of a page that is there only what stands between the marks of what
            is generated is replaced.
    """

    name: Annotated[str, tyro.conf.Positional]
    settings: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    epochs: int | None = None
    seeds: int = 3
    data_dir: str | None = None
    device: str = "auto"
    threads: int = 1
    out: Path = Path("results/reproduce")
    report: Path | None = None

    def execute(self, console: Console) -> int:
        """Run it; return the exit status, 1 where some run failed."""
        if self.name not in REPRODUCTIONS:
            raise UsageError(f"unknown paper {self.name!r}; known are {', '.join(REPRODUCTIONS)}")
        paper = REPRODUCTIONS[self.name]
        chosen = {setting.name: setting for setting in paper.settings}
        settings = [chosen[name] for name in known_names("settings", self.settings, tuple(chosen))]
        groups = known_names("groups", self.groups, (*paper.groups, *paper.measured))
        at_least_one("seeds", self.seeds)
        folder = self.out
        target = writable_file(self.report or folder / f"{self.name}.md", "--report")
        page_around(target)

        launcher = self.make_launcher(self.out)
        runs: list[Run] = []
        for setting in settings:
            base = self._training(epochs=setting.epochs if self.epochs is None else self.epochs)
            base.check()
            chosen_rows = paper.runs(setting, groups, self.seeds, base, folder, self.epochs, self.rows)
            runs += [run for _, run in chosen_rows]
        for text in self.rows:
            if not any(asks_for(text, run.facts["label"]) for run in runs):
                named = f"is named {text[1:]!r}" if text.startswith("=") else f"has {text!r} in its name"
                raise UsageError(f"--rows: no row of {', '.join(groups)} {named}")
        with locked(writable_folder(folder)), ExitStack() as stack:
            stack.callback(launcher.end)
            check_own(folder, "settings")
            return self._reproduce(paper, settings, groups, runs, launcher, target, console)

    @property
    def going_on(self) -> str:
        """How to go on after it was stopped."""
        return "call it again, and it goes on"

    def _reproduce(
        self,
        paper: Reproduction,
        settings: Sequence[Settings],
        groups: tuple[str, ...],
        runs: Sequence[Run],
        launcher: Launcher,
        target: Path,
        console: Console,
    ) -> int:
        folder = self.out
        records = {run.folder: record for run in runs if (record := run.finished())}
        failures: list[str] = []
        measured: dict[str, list[Record]] = {}
        pictures: list[Path] = []

        def in_order() -> list[Record]:
            return [records[run.folder] for run in runs if run.folder in records]

        def report() -> None:
            write_page(
                target, paper.title, report_of(paper, settings, groups, in_order(), measured, failures, pictures)
            )

        for name, measurement in paper.measured.items():
            if name in groups:
                base = self._training(measurement.env, 1, paper.batch_size)
                try:
                    measured[name] = measurement.measure(base, folder / f"{name}.json")
                    pictures.append(folder / f"{name}.png")
                    measurement.draw(measured[name], pictures[-1], measurement.title)
                except UsageError as error:
                    if not isinstance(error.__cause__, DataError):
                        raise
                    failures.append(f"not run: {error}")
                except Exception as error:
                    failures.append(f"{measurement.title}: {one_line(error)}")
                report()

        def keep(run: Run, record: Record) -> None:
            records[run.folder] = record
            write_results(in_order(), writable_folder(folder) / "results.json")
            report()

        left = [run for run in runs if run.folder not in records]
        failures += perform(left, launcher, keep, console, self.debug)
        try:
            write_results(in_order(), writable_folder(folder) / "results.json")
            pictures[:0] = paper.pictures(groups, in_order(), folder)
            report()
            say(console, f"Written to {folder}: results.json, pictures, a folder per run; the report is {target}")
        except Exception as error:
            failures.append(f"not everything could be written: {one_line(error)}")
        return say_failures(list(dict.fromkeys(failures)), console, folder)

    def _training(self, env: str = DEFAULT_ENV, epochs: int = 1, batch_size: int = 1) -> TrainingSettings:
        """Return how something is trained on this machine."""
        return TrainingSettings(env, epochs, batch_size, (), self.data_dir, self.device, self.threads)


def report_of(
    paper: Reproduction,
    settings: Sequence[Settings],
    groups: Sequence[str],
    records: Sequence[Record],
    measured: Mapping[str, Sequence[Record]],
    failures: Sequence[str],
    pictures: Sequence[Path],
) -> str:
    """Return what is generated of the report, as Markdown."""
    lines = [
        f"{paper.about} `routing-gym reproduce {paper.name}`, "
        f"routing_gym {routing_gym.__version__} at commit {commit()}, PyTorch {torch.__version__}, "
        f"{platform.machine()}, Python {platform.python_version()}.",
        "",
    ]
    for setting in settings:
        lines += [f"## Settings `{setting.name}`", "", setting.about[0].upper() + setting.about[1:] + ".", ""]
        of_setting = [record for record in records if record["settings"] == setting.name]
        for group in (group for group in groups if group in paper.groups):
            own = [record for record in of_setting if group in record["groups"]]
            if own:
                lines += [f"### {paper.groups[group]}", "", *paper.tables.get(group, paper.table)(own), ""]
        if paper.judge is not None and of_setting:
            lines += ["### What the paper says", ""]
            lines += [f"- {claim.text}: **{claim.verdict}**. {claim.numbers}" for claim in paper.judge(of_setting)]
            lines += [""]
    for name, found in measured.items():
        lines += [f"## {paper.measured[name].title}", "", *paper.measured[name].table(found), ""]
    if failures:
        lines += ["## Not there", "", *(f"- {failure}" for failure in failures), ""]
    if pictures:
        lines += ["## Pictures in the output folder", "", *(f"- {picture.name}" for picture in pictures), ""]
    return "\n".join(lines)
