"""What a launcher performs at once, a run or several side by side, and what becomes of it."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from routing_gym.agents import read
from routing_gym.experiments.engine.callbacks import Callback, Progress
from routing_gym.experiments.engine.command import UsageError, heeding_signals
from routing_gym.experiments.engine.console import one_line, threads_in_one_line
from routing_gym.experiments.engine.plugins import load_plugin
from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.engine.run import Run, perform_together
from routing_gym.experiments.engine.training import CHECKPOINT
from routing_gym.tasks import DataError


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run: its record; or None, why it failed, in a line, what is kept, and where in the code.

    A note says why it was not run with others, where it should have been.
    """

    run: Run
    record: Record | None
    failure: str = ""
    trace: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a launcher performs at once: a run, or several that learn side by side, see `perform_together`."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run that stands for all: what they have in common, and how far they are."""
        return self.runs[0]

    @property
    def title(self) -> str:
        """What it is called."""
        others = len(self.runs) - 1
        return f"{self.first.title}{f' and {others} more' * (others > 0)}"


def jobs_of(runs: Sequence[Run], most: int) -> list[Job]:
    """Runs that differ by seeds alone, so many at most in a job; in the order in which the first of each stands."""
    alike: dict[Run, list[list[Run]]] = {}
    for run in runs:
        options = tuple(option for option in run.training.env_options if not option.startswith("data_seed="))
        training = dataclasses.replace(run.training, env_options=options)
        groups = alike.setdefault(dataclasses.replace(run, training=training, seed=0, folder=Path(), title=""), [[]])
        if len(groups[-1]) == most:
            groups.append([])
        groups[-1].append(run)
    order = {run.folder: number for number, run in enumerate(runs)}
    jobs = [Job(tuple(group)) for groups in alike.values() for group in groups]
    return sorted(jobs, key=lambda job: order[job.first.folder])


def failed(run: Run, why: str, trace: str = "") -> Outcome:
    """Outcome of a run that failed, with what it has left in its folder."""
    return Outcome(run, None, f"{run.title}: {why}; {kept_in(run.folder)}", trace)


def kept_in(folder: Path) -> str:
    """Say what a run that ended early has left in its folder."""
    try:
        epochs = len(read(folder / CHECKPOINT)["extra"]["curve"]["epoch"])
    except (OSError, ValueError, KeyError):
        return f"nothing of it is kept in {folder}" if folder.is_dir() else f"there is no folder {folder}"
    return f"the last good checkpoint, of epoch {epochs}, is in {folder}"


def attempt(job: Job, callbacks: Sequence[Callback] = ()) -> list[Outcome]:
    """Perform a job in this process; what goes wrong is its outcome. Runs that cannot run together do so alone."""
    note = ""
    if len(job.runs) > 1:
        try:
            return list(map(Outcome, job.runs, perform_together(job.runs, callbacks)))
        except (Exception, SystemExit) as error:
            note = f"{job.title} run one after the other: {one_line(error)}"
    return [dataclasses.replace(_attempted(run, callbacks), note=note) for run in job.runs]


def _attempted(run: Run, callbacks: Sequence[Callback]) -> Outcome:
    try:
        return Outcome(run, run.perform(callbacks))
    except (Exception, SystemExit) as error:
        if isinstance(error.__cause__, DataError):
            return Outcome(run, None, f"not run: {error}", traceback.format_exc())
        notes = (" ".join(note.split()) for note in getattr(error, "__notes__", ()))
        return failed(run, "; ".join([one_line(error), *notes]), traceback.format_exc())


_warm: set[str] = set()
"""Agents that have trained on a batch in this process."""


def perform_elsewhere(job: Job) -> list[Outcome]:
    """Perform a job in a process of its own."""
    run = job.first
    try:
        with heeding_signals(), threads_in_one_line():
            torch.set_num_threads(run.training.threads)  # also for what a plug-in computes when it is read
            for path in run.plugins:
                load_plugin(path)
            if run.agent not in _warm:  # before its first run is timed, as trials do where runs run here
                _warm.add(run.agent)
                with suppress(Exception, SystemExit):  # the run will say it
                    run.try_out(batch=True, fresh=True)
            return attempt(job, (Progress(),))
    except KeyboardInterrupt:
        return [failed(run, "stopped") for run in job.runs]
    except UsageError as error:
        return [Outcome(run, None, f"{run.title}: {error}") for run in job.runs]
