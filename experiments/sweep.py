"""Trying out options on the validation split."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from routing_gym.envs import TrainingDivergedError
from routing_gym.experiments.cell import Cell
from routing_gym.experiments.plugins import Pluggable
from routing_gym.experiments.report import Record, accuracy_text, write_results
from routing_gym.experiments.settings import (
    TrainingSettings,
    UsageError,
    at_least_one,
    check_agents,
    progress_bars,
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
        """Run it; return the exit status, 1 where some run diverged."""
        self.training.check()
        check_agents((self.agent,))
        at_least_one("seeds", self.seeds)
        settings = self._combinations()
        for setting in settings:  # refuse bad options before the first minute is spent
            self._cell(setting, FIRST_SEED).make()
        folder = writable_folder(self.out)
        records: dict[str, list[Record]] = {_name(setting): [] for setting in settings}
        failures: list[str] = []
        with progress_bars(console) as progress:
            whole = progress.add_task("all runs", total=len(settings) * self.seeds)
            for setting in settings:
                for seed in range(FIRST_SEED, FIRST_SEED + self.seeds):
                    cell = self._cell(setting, seed)
                    try:
                        record = cell.finished() or cell.run(resume=True, setting=_name(setting))[1]
                        records[_name(setting)].append(record)
                    except TrainingDivergedError as error:
                        failures.append(f"{_name(setting)}, seed {seed}: {error}")
                    progress.advance(whole)
                    write_results([r for runs in records.values() for r in runs], folder / "results.json")
        done = {name: runs for name, runs in records.items() if runs}
        console.print(ranking(done, f"{self.agent} on {self.training.env}, {self.training.epochs} epochs"))
        for failure in failures:
            console.print(f"[red]{failure}[/red]")
        return 1 if failures else 0

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
        return list(itertools.product(*axes))

    def _cell(self, setting: tuple[str, ...], seed: int) -> Cell:
        of_env = tuple(item.removeprefix(OF_ENV) for item in setting if item.startswith(OF_ENV))
        of_agent = tuple(item for item in setting if not item.startswith(OF_ENV))
        return Cell(
            training=dataclasses.replace(self.training, env_options=(*self.training.env_options, *of_env)),
            agent=self.agent,
            seed=seed,
            folder=self.out / _name(setting).replace(" ", "_") / f"seed-{seed}",
            agent_options=(*self.agent_options, *of_agent),
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
