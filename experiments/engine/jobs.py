"""Runs one after the other: what fails belongs to a run, the others go on."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from routing_gym.agents import read
from routing_gym.experiments.engine.cell import Cell
from routing_gym.experiments.engine.console import Display, one_line, say
from routing_gym.experiments.engine.folders import what_is_aside
from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.engine.run import Result
from routing_gym.experiments.engine.settings import UsageError
from routing_gym.experiments.engine.stopping import unbroken
from routing_gym.tasks import DataError


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes:
        title: What it is called, `wpl, seed 0` say.
        cell: The run.
        more: What its record should hold besides.
    """

    title: str
    cell: Cell
    more: dict[str, Any] = dataclasses.field(default_factory=dict)


class RunFailedError(Exception):
    """A run that failed, and what is kept of it."""


def try_out(
    groups: Mapping[str, Sequence[Job]], console: Console, debug: bool, *, fresh: bool = False
) -> tuple[list[Job], list[str]]:
    """Let every agent route, train on and be judged on one batch, before the first minute is spent.

    Args:
        groups: Jobs that differ by the seed alone, by what they are called; the first of each is tried.
        console: Where it is said at once what fails.
        debug: Show tracebacks.
        fresh: Their checkpoints are about to be replaced, so that they need not fit.

    Returns:
        The jobs of the groups that can do it, and what is wrong with the others.

    Raises:
        UsageError: A wrong option, or a checkpoint of other options than those given now.
    """
    ready: list[Job] = []
    failures = []
    for name, jobs in groups.items():
        try:
            for number, job in enumerate(jobs):
                job.cell.try_out(batch=number == 0, fresh=fresh)
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            failures.append(f"{name} fails in a trial on one batch, so that none of its runs starts: {one_line(error)}")
            _say_failure(console, failures[-1], debug)
        else:
            ready += jobs
    return ready, failures


def run_jobs(
    jobs: Sequence[Job], keep: Callable[[Job, Result, Record], None], console: Console, debug: bool
) -> list[str]:
    """Run jobs one after the other, on whichever checkpoints there are.

    Args:
        jobs: The jobs.
        keep: Called with each that is done, its result and its record.
        console: Where it is shown how far they are.
        debug: Show tracebacks.

    Returns:
        Of each job that failed its title, the reason and what is kept, in a line.

    Raises:
        Stopped: A signal came; a note says what is kept.
    """
    failures: dict[str, None] = {}
    with Display(console, len(jobs)) as display:
        for number, job in enumerate(jobs):
            display.begin(job.title, job.cell.training.epochs)
            try:
                result, record = job.cell.run(after_epoch=display.epoch, **job.more)
                with unbroken():
                    keep(job, result, record)
            except KeyboardInterrupt as stop:
                done = f"{number - len(failures)} of {len(jobs)} runs are finished; "
                stop.add_note(f"{done if len(jobs) > 1 else ''}{job.title}: {kept_in(job.cell.folder)}")
                raise
            except (Exception, SystemExit) as error:
                if isinstance(error.__cause__, DataError):
                    text = f"not run: {error}"
                else:
                    text = f"{job.title}: {one_line(error)}; {kept_in(job.cell.folder)}"
                if text not in failures:
                    _say_failure(console, text, debug)
                failures[text] = None
            display.end()
    return list(failures)


def say_failures(failures: Sequence[str], console: Console, folder: Path) -> int:
    """Name in the end what failed, and what is aside in the folder; return the exit status."""
    for failure in failures:
        say(console, failure, style="red")
    if failures and (aside := what_is_aside(folder)):
        say(console, aside)
    return 1 if failures else 0


def kept_in(folder: Path) -> str:
    """Say what a run that ended early has left in its folder."""
    try:
        epochs = len(read(folder / "checkpoint.pt")["extra"]["curve"]["epoch"])
    except (OSError, ValueError, KeyError):
        return f"nothing of it is kept in {folder}" if folder.is_dir() else f"its folder {folder} is no longer there"
    return f"the last good checkpoint, of epoch {epochs}, is in {folder}"


def _say_failure(console: Console, text: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    say(console, text, style="red")
