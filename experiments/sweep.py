"""Trying out options on the validation split."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from routing_gym.experiments.engine.cell import Cell
from routing_gym.experiments.engine.folders import check_own, locked
from routing_gym.experiments.engine.jobs import Job, run_jobs, say_failures, try_out
from routing_gym.experiments.engine.plugins import Pluggable
from routing_gym.experiments.engine.records import Record, accuracy_text, write_results
from routing_gym.experiments.engine.run import Result
from routing_gym.experiments.engine.settings import (
    TrainingSettings,
    UsageError,
    at_least_one,
    check_agents,
    each_once,
    writable_folder,
)

OF_ENV = "env."
FIRST_SEED = 100
"""Seeds of their own, so that what is compared afterwards, from seed 0 on, was not what was tuned on."""


@dataclasses.dataclass(frozen=True)
class Sweep(Pluggable):
    """Train one agent with every combination of some options, and rank them on the validation split.

    The test split is not looked at. A sweep that was interrupted goes on where it stopped when it is called again.

    Attributes:
        training: How agent and blocks are trained.
        agent: The agent; `routing-gym list` prints them.
        grid: What to try, as NAME=VALUE,VALUE,...: options of the agent, or of the environment as env.NAME, e.g.
            policy_rate=0.003,0.01 env.learning_rate=0.001,0.003.
        agent_options: Options of the agent that are the same throughout, as NAME=VALUE.
        seeds: Number of seeds, from 100 on.
        out: Folder for everything that is written.
    """

    training: Annotated[TrainingSettings, tyro.conf.arg(name="")] = TrainingSettings()
    agent: str = "wpl"
    grid: tuple[str, ...] = ()
    agent_options: tuple[str, ...] = ()
    seeds: int = 3
    out: Path = Path("results/sweep")

    def execute(self, console: Console) -> int:
        """Run it; return the exit status, 1 where some run failed."""
        self.training.check()
        check_agents((self.agent,))
        at_least_one("seeds", self.seeds)
        seeds = range(FIRST_SEED, FIRST_SEED + self.seeds)
        cells = {_name(setting): [self._cell(setting, seed) for seed in seeds] for setting in self._combinations()}
        with ExitStack() as stack:
            if self.out.is_dir():
                stack.enter_context(locked(self.out))
            check_own(self.out, "setting")
            records: dict[Cell, Record] = {}
            groups: dict[str, list[Job]] = {}
            for setting, of_setting in cells.items():
                for cell in of_setting:
                    if record := cell.finished():
                        records[cell] = record
                    else:
                        job = Job(f"{setting}, seed {cell.seed}", cell, {"setting": setting})
                        groups.setdefault(setting, []).append(job)
            jobs, failures = try_out(groups, console, self.debug)
            stack.enter_context(locked(writable_folder(self.out)))

            def in_order() -> dict[str, list[Record]]:
                return {
                    setting: [records[cell] for cell in of_setting if cell in records]
                    for setting, of_setting in cells.items()
                }

            def keep(job: Job, result: Result, record: Record) -> None:
                records[job.cell] = record
                whole = [record for runs in in_order().values() for record in runs]
                write_results(whole, writable_folder(self.out) / "results.json")

            failures += run_jobs(jobs, keep, console, self.debug)
            done = {name: runs for name, runs in in_order().items() if runs}
            if done:
                console.print(ranking(done, f"{self.agent} on {self.training.env}, {self.training.epochs} epochs"))
            return say_failures(failures, console, self.out)

    @property
    def going_on(self) -> str:
        """How to go on after it was stopped."""
        return "call it again, and it goes on"

    def _combinations(self) -> list[tuple[str, ...]]:
        """Return every combination of the grid, each as NAME=VALUE texts."""
        if not self.grid:
            raise UsageError("--grid needs at least one NAME=VALUE,VALUE,...")
        axes = []
        for item in self.grid:
            name, equals, values = item.partition("=")
            if not (name and equals and values):
                raise UsageError(f"--grid takes NAME=VALUE,VALUE,..., got {item!r}")
            axes.append([f"{name}={value}" for value in values.split(",")])
        each_once("grid", self.grid)
        return list(itertools.product(*axes))

    def _cell(self, setting: tuple[str, ...], seed: int) -> Cell:
        of_env = tuple(item.removeprefix(OF_ENV) for item in setting if item.startswith(OF_ENV))
        of_agent = tuple(item for item in setting if not item.startswith(OF_ENV))
        env_options, agent_options = (*self.training.env_options, *of_env), (*self.agent_options, *of_agent)
        each_once("env_options", env_options)
        each_once("agent_options", agent_options)
        return Cell(
            training=dataclasses.replace(self.training, env_options=env_options),
            agent=self.agent,
            seed=seed,
            folder=self.out / _name(setting).replace(" ", "_") / f"seed-{seed}",
            agent_options=agent_options,
            split="validation",
        )


def _name(setting: tuple[str, ...]) -> str:
    return " ".join(setting)


def ranking(records: dict[str, list[Record]], title: str) -> Table:
    """Return one row per setting, the best first; accuracies in the end, on the validation split."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("setting")
    for column in ("validation %", "worst seed", "best epoch", "time"):
        table.add_column(column, justify="right")
    accuracies = {name: [run["validation_accuracy"] for run in runs] for name, runs in records.items()}
    for name in sorted(records, key=lambda name: -float(np.mean(accuracies[name]))):
        runs = records[name]
        best = np.argmax(np.mean([run["curve"]["validation_accuracy"] for run in runs], 0))
        table.add_row(
            name,
            accuracy_text(accuracies[name]),
            f"{100 * min(accuracies[name]):.2f}",
            str(runs[0]["curve"]["epoch"][best]),
            f"{np.mean([run['seconds'] for run in runs]):.1f} s",
        )
    return table
