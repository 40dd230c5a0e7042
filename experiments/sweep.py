"""Trying out options on the validation split."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from routing_gym.experiments.engine.folders import check_own, keep_failures, locked
from routing_gym.experiments.engine.launchers import Launching, perform, say_failures, try_out
from routing_gym.experiments.engine.metrics import ACCURACY, METRICS
from routing_gym.experiments.engine.records import Record, write_results
from routing_gym.experiments.engine.run import Run
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
class Sweep(Launching):
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
        launcher = self.make_launcher()
        seeds = range(FIRST_SEED, FIRST_SEED + self.seeds)
        settings = self._combinations()
        runs = [self._run(setting, seed) for seed in seeds for setting in settings]
        by_setting = [run for number in range(len(settings)) for run in runs[number :: len(settings)]]
        with ExitStack() as stack:
            if self.out.is_dir():
                stack.enter_context(locked(self.out))
            check_own(self.out, "setting")
            records = {run.folder: record for run in runs if (record := run.finished())}
            left = [run for run in runs if run.folder not in records]
            left, failures = try_out(left, lambda run: run.facts["setting"], console, self.debug)
            stack.enter_context(locked(writable_folder(self.out)))

            def in_order() -> list[Record]:
                return [records[run.folder] for run in by_setting if run.folder in records]

            def keep(run: Run, record: Record) -> None:
                records[run.folder] = record
                write_results(in_order(), writable_folder(self.out) / "results.json")

            failures += perform(left, launcher, keep, console, self.debug)
            if done := in_order():
                console.print(ranking(done, f"{self.agent} on {self.training.env}, {self.training.epochs} epochs"))
            keep_failures(self.out, failures)
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

    def _run(self, setting: tuple[str, ...], seed: int) -> Run:
        of_env = tuple(item.removeprefix(OF_ENV) for item in setting if item.startswith(OF_ENV))
        of_agent = tuple(item for item in setting if not item.startswith(OF_ENV))
        env_options, agent_options = (*self.training.env_options, *of_env), (*self.agent_options, *of_agent)
        each_once("env_options", env_options)
        each_once("agent_options", agent_options)
        name = " ".join(setting)
        return Run(
            training=dataclasses.replace(self.training, env_options=env_options),
            agent=self.agent,
            seed=seed,
            folder=self.out / name.replace(" ", "_") / f"seed-{seed}",
            agent_options=agent_options,
            split="validation",
            title=f"{name}, seed {seed}",
            facts={"setting": name},
            plugins=self.plugin,
        )


def ranking(records: Sequence[Record], title: str) -> Table:
    """Return one row per setting, the best first; accuracies in the end, on the validation split."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("setting")
    for column in ("validation %", "worst seed", "best epoch", "time"):
        table.add_column(column, justify="right")
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["setting"], []).append(record)
    accuracies = {name: [ACCURACY.value(run) for run in runs] for name, runs in groups.items()}
    for name in sorted(groups, key=lambda name: -float(np.mean(accuracies[name]))):
        runs = groups[name]
        best = np.argmax(np.mean([ACCURACY.curve_of(run) for run in runs], 0))
        table.add_row(
            name,
            ACCURACY.text(accuracies[name]),
            f"{100 * min(accuracies[name]):.2f}",
            str(runs[0]["curve"]["epoch"][best]),
            METRICS["seconds"].text([run["seconds"] for run in runs]),
        )
    return table
