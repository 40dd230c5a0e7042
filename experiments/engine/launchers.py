"""Where runs run: in this process, in others beside it, or wherever a list of commands is taken."""

from __future__ import annotations

import collections
import dataclasses
import shlex
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from routing_gym.experiments.engine.callbacks import PROGRESS, Callback, Session, said_of
from routing_gym.experiments.engine.command import UsageError, stop_if_asked, unbroken
from routing_gym.experiments.engine.console import Display, Output, one_line, say
from routing_gym.experiments.engine.folders import what_is_aside
from routing_gym.experiments.engine.jobs import Job, Outcome, attempt, failed, jobs_of, kept_in, perform_elsewhere
from routing_gym.experiments.engine.plugins import Pluggable
from routing_gym.experiments.engine.records import Record, read_progress, write_text
from routing_gym.experiments.engine.run import CONFIG, Run
from routing_gym.experiments.engine.settings import at_least_one, config_text, each_once, parse_options, writable_folder
from routing_gym.experiments.engine.workers import Worker, begin_server, finished

ATTEMPTS = 2
"""How often a run is tried whose process dies or hangs; what it had finished of its epochs is kept."""
GRACE = 20.0
"""Seconds a process has to finish its batch when the command ends; what is killed then has its last checkpoint."""


class Launcher(ABC):
    """Where runs run.

    Attributes:
        here: Whether the runs are done when `launch` is.
    """

    here = True

    @abstractmethod
    def launch(self, jobs: Sequence[Job], display: Display) -> Iterator[Outcome]:
        """Perform jobs, in this order as far as that means anything; yield what becomes of each run when it is done.

        May be called again, with other jobs, until `end`.
        """

    def told(self, console: Console) -> Console:
        """Where to say what is no result: not among commands that are printed for others to run."""
        return console if self.here else Output(stderr=True)

    def end(self) -> None:
        """Let go of processes and connections."""
        return None


class InProcess(Launcher):
    """One job after the other, in this process."""

    def launch(self, jobs: Sequence[Job], display: Display) -> Iterator[Outcome]:
        """Perform jobs; see `Launcher`."""
        for job in jobs:
            display.begin(job.title, job.first.training.epochs)
            outcomes = attempt(job, (_Shown(display, job),))
            display.end(job.title)
            yield from outcomes


class _Shown(Callback):
    """Tells a display of every epoch, of the first run."""

    def __init__(self, display: Display, job: Job) -> None:
        self.display, self.job = display, job

    def on_epoch(self, session: Session, metrics: Mapping[str, float]) -> None:
        if session.folder == self.job.first.folder:
            self.display.epoch(self.job.title, said_of(session))


class Print(Launcher):
    """Prints a command for every run, a line each, for `xargs` or an array of batch jobs; runs nothing."""

    here = False

    def launch(self, jobs: Sequence[Job], display: Display) -> Iterator[Outcome]:
        """Write the configuration of every run into its folder, and print the command that performs it.

        Raises:
            UsageError: A folder whose name cannot be printed.
        """
        runs = [run for job in jobs for run in job.runs]
        for run in runs:
            self.check(run.folder)
        out = Output()
        for run in runs:
            path = writable_folder(run.folder) / CONFIG
            write_text(path, config_text(run.configuration))
            line = shlex.join(["routing-gym", "train", "--config", str(path), "--out", str(run.folder), "--resume"])
            try:
                print(line, flush=True)
            except BrokenPipeError:
                out.on_broken_pipe()
        yield from ()

    def check(self, folder: Path) -> None:
        """Refuse a folder in whose name an escape would be printed: the command would be of another."""
        try:
            str(folder).encode(encoding := sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError as error:
            mend = "set PYTHONIOENCODING=utf-8, or take another folder"
            raise UsageError(f"--launcher print cannot print {str(folder)!r} as {encoding}: {mend}") from error


class Local(Launcher):
    """So many jobs at once, each in a process beside this one, which takes one after the other.

    When a process is killed, for want of memory say, or gives no sign of life for `silence` seconds, the job it was at
    is tried once more from its last checkpoint; the other processes do not notice.
    """

    def __init__(self, count: int, silence: float = 1800.0) -> None:
        self.count, self.silence = count, silence
        self.workers: list[Worker] = []
        begin_server()

    def launch(self, jobs: Sequence[Job], display: Display) -> Iterator[Outcome]:
        """Perform jobs; see `Launcher`."""
        waiting = collections.deque((job, 1) for job in jobs)
        busy: dict[Worker, tuple[Job, int]] = {}

        def keep_busy() -> None:
            while waiting and len(busy) < self.count:
                job, number = waiting.popleft()
                worker = self._idle(busy)
                busy[worker] = job, number
                worker.call(perform_elsewhere, job)
                display.begin(job.title, job.first.training.epochs)

        try:
            while waiting or busy:
                keep_busy()
                done = finished(list(busy), 0.2)
                for worker, (job, _) in busy.items():
                    self._look_after(worker, job, display)
                for worker in done:
                    job, number = busy.pop(worker)
                    display.end(job.title)
                    outcomes = worker.result()
                    if outcomes is None:
                        silent = f"gave no sign of life for {self.silence:g} s"
                        why = f"its process {silent if worker.hung else 'was killed (out of memory?)'}"
                        if number < ATTEMPTS:
                            display.note(f"{job.title}: {why}; it is tried once more")
                            waiting.appendleft((job, number + 1))
                            continue
                        outcomes = [failed(run, f"{why}, {number} times") for run in job.runs]
                    keep_busy()  # before what is done with the outcomes
                    yield from outcomes
        finally:
            if busy:  # broken off: else the processes wait for what comes next, or for `end`
                for worker in busy:
                    worker.process.terminate()  # at their next safe point
                over = time.monotonic() + GRACE
                for worker in busy:
                    finished([worker], max(0.0, over - time.monotonic()))
                self.end()

    def _idle(self, busy: Mapping[Worker, object]) -> Worker:
        """A process that has nothing to do, a new one where there is none; those that have died meanwhile go."""
        idle = [worker for worker in self.workers if worker not in busy]
        for worker in finished(idle, 0):
            worker.kill()
            idle.remove(worker)
        self.workers = [*busy, *(idle or [Worker()])]
        return self.workers[len(busy)]

    def _look_after(self, worker: Worker, job: Job, display: Display) -> None:
        """Show how far a job is, and kill its process if it has been silent for too long."""
        progress = read_progress(job.first.folder / PROGRESS)
        if progress and progress["pid"] == worker.process.pid:
            display.epoch(job.title, progress)
            worker.heard = max(worker.heard, progress["time"])
        if time.time() - worker.heard > self.silence:
            worker.hung = True
            worker.process.kill()

    def end(self) -> None:
        """End the processes."""
        for worker in self.workers:
            worker.kill()
        self.workers = []


TAKEN_BY = {
    "workers": ("local",),
    "address": ("ray",),
    "launcher_options": ("submitit", "ray"),
    "population": ("local", "submitit"),
}
"""Launchers that an option of `Launching` is for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launching(Pluggable):
    """A command that performs runs.

    Attributes:
        launcher: Where runs run: `local`, on this machine; `print` prints a command per run that is not finished, for
            `xargs` or a cluster's array of jobs; `submitit` submits them to SLURM; `ray` hands them to a Ray cluster.
        workers: How many run at once on this machine, each in a process of its own; results do not depend on it.
        population: How many seeds of one agent are trained side by side as one program, whose batches hold one batch of
            each; results differ by rounding. Of networks whose layers are fully connected, and agents that decide by
            task; others run one after the other.
        silence: Seconds without a finished batch after which a process counts as hung.
        address: Of an existing Ray cluster, `auto` or HOST:PORT; by default one is started on this machine.
        launcher_options: As NAME=VALUE: `num_cpus` and `num_gpus` of a run for `ray`; for `submitit` what its executor
            takes (`slurm_partition`, `timeout_min`, `cluster`, ...).
    """

    launcher: Literal["local", "print", "submitit", "ray"] = "local"
    workers: int = 1
    population: int = 1
    silence: float = 1800.0
    address: str | None = None
    launcher_options: tuple[str, ...] = ()

    @property
    def going_on(self) -> str:
        """How to go on after it was stopped."""
        return "call it again, and it goes on"

    def make_launcher(self, folder: Path) -> Launcher:
        """Make what is asked for; it may keep files of its own in the folder of results.

        Raises:
            UsageError: A number of workers or an option that is none, or an extra that is not installed.
        """
        from routing_gym.experiments.engine import clusters  # which builds on this module

        options = parse_options("launcher_options", self.launcher_options)
        each_once("launcher_options", self.launcher_options)
        at_least_one("workers", self.workers)
        at_least_one("population", self.population)
        for option, launchers in TAKEN_BY.items():
            if getattr(self, option) != getattr(Launching, option) and self.launcher not in launchers:
                name = f"--{option.replace('_', '-')}"
                raise UsageError(f"{name} is for --launcher {' or '.join(launchers)}, got {self.launcher}")
        if self.launcher == "submitit":
            return clusters.Submitit(folder / ".submitit", options)
        if self.launcher == "ray":
            return clusters.Ray(self.address, options)
        if not self.silence > 0:
            raise UsageError(f"--silence must be positive, got {self.silence}")
        if self.launcher == "print":
            printed = Print()
            printed.check(folder)
            return printed
        return InProcess() if self.workers == 1 else Local(self.workers, self.silence)


def try_out(runs: Sequence[Run], console: Console, debug: bool, *, fresh: bool = False) -> tuple[list[Run], list[str]]:
    """Let every agent, or setting of a sweep, route, train on and be judged on one batch, before a minute is spent.

    Returns the runs of those that can do it, and what is wrong with the others, which is said at once. Checkpoints of
    runs that begin `fresh` are about to be replaced, and need not fit.

    Raises:
        UsageError: A wrong option, or a checkpoint of other options than those given now.
    """
    names = [run.facts.get("setting", run.agent) for run in runs]
    failures: dict[str, str] = {}
    tried: set[str] = set()
    for run, name in zip(runs, names, strict=True):
        if name in failures:
            continue
        try:
            run.try_out(batch=name not in tried, fresh=fresh)
            tried.add(name)
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            stop_if_asked()  # a library may have made another error of it
            failures[name] = f"{name} fails in a trial on one batch, so that none of its runs starts: {one_line(error)}"
            _say_failure(console, failures[name], traceback.format_exc() if debug else "")
    stop_if_asked()  # it may also have passed over it
    left = [run for run, name in zip(runs, names, strict=True) if name not in failures]
    return left, list(failures.values())


def perform(
    runs: Sequence[Run],
    launcher: Launcher,
    keep: Callable[[Run, Record], None],
    console: Console,
    debug: bool,
    every_epoch: bool = True,
    population: int = 1,
) -> list[str]:
    """Perform runs wherever a launcher puts them, on whichever checkpoints there are; `keep` each that is done.

    The console is told of `every_epoch`, or of runs alone; `population` is that of `Launching`.

    Returns:
        Of each run that failed its title, the reason and what is kept, in a line; a note of `Stopped` says it, too.
    """
    if not runs:
        return []
    failures: dict[str, None] = {}
    kept, jobs, notes = 0, jobs_of(runs, population), set[str]()
    with Display(console, len(jobs), every_epoch=every_epoch) as display:
        try:
            for outcome in launcher.launch(jobs, display):
                if outcome.note and outcome.note not in notes:
                    notes.add(outcome.note)
                    display.note(outcome.note)
                if outcome.record is not None:
                    try:
                        with unbroken():
                            keep(outcome.run, outcome.record)
                        kept += 1
                        continue
                    except (Exception, SystemExit) as error:
                        outcome = failed(outcome.run, one_line(error), traceback.format_exc())
                if outcome.failure not in failures:
                    _say_failure(console, outcome.failure, outcome.trace if debug else "")
                failures[outcome.failure] = None
        except KeyboardInterrupt as stop:
            if len(runs) > 1:
                stop.add_note(f"{kept} of {len(runs)} runs are finished")
            for job in jobs:
                if job.title in display.parts:
                    stop.add_note(f"{job.title}: {kept_in(job.first.folder)}")
            raise
    return list(failures)


def say_failures(failures: Sequence[str], console: Console, folder: Path) -> int:
    """Name in the end what failed, and what is aside in the folder; return the exit status."""
    for failure in failures:
        say(console, failure, style="red")
    if failures and (aside := what_is_aside(folder)):
        say(console, aside)
    return 1 if failures else 0


def _say_failure(console: Console, text: str, trace: str) -> None:
    if trace:
        print(trace, file=sys.stderr)
    say(console, text, style="red")
