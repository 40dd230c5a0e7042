"""Agents side by side: same data, same blocks, same budget."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress, TaskID

from routing_gym.envs import TrainingDivergedError
from routing_gym.experiments.cell import Cell
from routing_gym.experiments.figures import learning_curves, routing_maps
from routing_gym.experiments.plugins import Pluggable
from routing_gym.experiments.report import Record, comparison_table, write_results
from routing_gym.experiments.settings import (
    TrainingSettings,
    at_least_one,
    check_agents,
    options_of_agents,
    progress_bars,
    writable_folder,
)

DEFAULT_AGENTS = (
    "wpl",
    "task-specific-all",
    "task-specific-last",
    "shared",
    "shared-with-task",
    "random-fixed",
    "random",
)


@dataclasses.dataclass(frozen=True)
class Compare(Pluggable):
    """Train several agents on one environment over several seeds and compare them.

    Prints a table and writes learning_curves.png, routing_maps.png, results.json, a checkpoint and TensorBoard events
    of every run.

    Attributes:
        training: How agents and blocks are trained.
        agents: Agents to compare; `routing-gym list` prints them.
        seeds: Number of seeds, 0 to N - 1: first weights, order of instances and the agent's choices.
        agent_options: Options of one agent as AGENT.NAME=VALUE, e.g. wpl.policy_rate=0.02.
        out: Folder for everything that is written.
        resume: Skip the runs that are finished in OUT, and go on with the one that was interrupted.
    """

    training: Annotated[TrainingSettings, tyro.conf.arg(name="")] = TrainingSettings()
    agents: tuple[str, ...] = DEFAULT_AGENTS
    seeds: int = 5
    agent_options: tuple[str, ...] = ()
    out: Path = Path("results/compare")
    resume: bool = False

    def execute(self, console: Console) -> int:
        """Run it; return the exit status, 1 where some run diverged."""
        self.training.check()
        check_agents(self.agents)
        at_least_one("seeds", self.seeds)
        options = options_of_agents(self.agents, self.agent_options)
        for name in self.agents:  # refuse bad options before the first minute is spent
            Cell(self.training, name, 0, self.out, options[name]).make()
        folder = writable_folder(self.out)

        records: list[Record] = []
        failures: list[str] = []
        with progress_bars(console) as progress:
            whole = progress.add_task("all runs", total=len(self.agents) * self.seeds)
            for name in self.agents:
                bar = progress.add_task(name, total=self.seeds * self.training.epochs)
                for seed in range(self.seeds):
                    cell = Cell(self.training, name, seed, folder / folder_name(name) / f"seed-{seed}", options[name])
                    try:
                        done = cell.finished() if self.resume else None
                        if done is None:
                            done = cell.run(resume=self.resume, after_epoch=partial(_advance, progress, bar))[1]
                        records.append(done)
                    except TrainingDivergedError as error:
                        failures.append(f"seed {seed}, {error}; the last good checkpoint is in {cell.folder}")
                    progress.advance(whole)
                    write_results(records, folder / "results.json")
        if records:
            title = f"{self.training.env}, {self.seeds} seed{'s' * (self.seeds > 1)}, {self.training.epochs} epochs"
            console.print(comparison_table(records, title))
            learning_curves(records, folder / "learning_curves.png", title)
            routing_maps(records, folder / "routing_maps.png", f"Who takes which block: {self.training.env}")
            console.print(f"Written to {folder}: learning_curves.png, routing_maps.png, results.json, a folder per run")
        for failure in failures:
            console.print(f"[red]{failure}[/red]")
        return 1 if failures else 0


def folder_name(agent: str) -> str:
    """Return the name of an agent's folder: `sb3-PPO` for `sb3:PPO`, because not every file system takes a colon."""
    return agent.replace(":", "-")


def _advance(progress: Progress, bar: TaskID, epoch: int) -> None:
    progress.advance(bar)
