"""Where runs run: in this process, in others beside it, or wherever a list of commands is taken."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from rich.console import Console

from routing_gym.agents import read
from routing_gym.experiments.engine.callbacks import Callback, Progress, Session, said_of
from routing_gym.experiments.engine.command import UsageError, heeding_signals, unbroken
from routing_gym.experiments.engine.console import Display, one_line, say, threads_in_one_line
from routing_gym.experiments.engine.folders import what_is_aside
from routing_gym.experiments.engine.plugins import Pluggable, load_plugin
from routing_gym.experiments.engine.records import Record, write_text
from routing_gym.experiments.engine.run import CONFIG, Run
from routing_gym.experiments.engine.settings import at_least_one, config_text, each_once, parse_options, writable_folder
from routing_gym.experiments.engine.training import CHECKPOINT
from routing_gym.tasks import DataError

ATTEMPTS = 2
"""How often a run is tried whose process dies or hangs; what it had finished of its epochs is kept."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        run: The run.
        record: Its record; None where it failed.
        failure: Why it failed, in a line, and what is kept.
        trace: Where in the code.
    """

    run: Run
    record: Record | None
    failure: str = ""
    trace: str = ""


def attempt(run: Run, callbacks: Sequence[Callback] = ()) -> Outcome:
    """Perform a run in this process; what goes wrong is its outcome."""
    try:
        return Outcome(run, run.perform(callbacks))
    except (Exception, SystemExit) as error:
        if isinstance(error.__cause__, DataError):
            failure = f"not run: {error}"
        else:
            what = "; ".join([one_line(error), *(" ".join(note.split()) for note in getattr(error, "__notes__", ()))])
            failure = f"{run.title}: {what}; {kept_in(run.folder)}"
        return Outcome(run, None, failure, traceback.format_exc())


class Launcher(ABC):
    """Where runs run."""

    @abstractmethod
    def launch(self, runs: Sequence[Run], display: Display) -> Iterator[Outcome]:
        """Perform runs, in this order as far as that means anything; yield what becomes of each when it is done.

        May be called again, with other runs, until `end`.

        Args:
            runs: The runs.
            display: Told how far they are.
        """

    def begin(self, count: int) -> None:
        """Get ready for so many runs while they are tried out; may be left out."""
        return None

    def end(self) -> None:
        """Let go of processes and connections."""
        return None

    @property
    def here(self) -> bool:
        """Whether the runs are done when `launch` is."""
        return True


class InProcess(Launcher):
    """One run after the other, in this process."""

    def launch(self, runs: Sequence[Run], display: Display) -> Iterator[Outcome]:
        """Perform runs; see `Launcher`."""
        for run in runs:
            display.begin(run.title, run.training.epochs)
            outcome = attempt(run, (_Shown(display),))
            display.end(run.title)
            yield outcome


class _Shown(Callback):
    """Tells a display of every epoch."""

    def __init__(self, display: Display) -> None:
        self.display = display

    def on_epoch(self, session: Session, metrics: Mapping[str, float]) -> None:
        self.display.epoch(session.title, said_of(session))


_warm: set[str] = set()
"""Agents that have trained on a batch in this process."""


def perform_elsewhere(run: Run) -> Outcome:
    """Perform a run in a process of its own."""
    try:
        with heeding_signals(), threads_in_one_line():
            for path in run.plugins:
                load_plugin(path)
            if run.agent not in _warm:  # before its first run is timed, as trials do where runs run here
                _warm.add(run.agent)
                with suppress(Exception, SystemExit):  # the run will say it
                    run.try_out(batch=True, fresh=True)
            return attempt(run, (Progress(),))
    except KeyboardInterrupt:
        return Outcome(run, None, f"{run.title}: stopped; {kept_in(run.folder)}")
    except UsageError as error:
        return Outcome(run, None, f"{run.title}: {error}")


class Print(Launcher):
    """Prints a command for every run, a line each, for `xargs` or an array of batch jobs; runs nothing."""

    def launch(self, runs: Sequence[Run], display: Display) -> Iterator[Outcome]:
        """Write the configuration of every run into its folder, and print the command that performs it."""
        for run in runs:
            write_text(writable_folder(run.folder) / CONFIG, config_text(run.configuration))
            command = ["routing-gym", "train"]
            print(shlex.join([*command, "--config", str(run.folder / CONFIG), "--out", str(run.folder), "--resume"]))
        yield from ()

    @property
    def here(self) -> bool:
        """Whether the runs are done when `launch` is."""
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launching(Pluggable):
    """A command that performs runs.

    Attributes:
        launcher: Where runs run: `local`, on this machine; `print` prints a command per run that is not finished, for
            `xargs` or a cluster's array of jobs; `submitit` submits them to SLURM; `ray` hands them to a Ray cluster.
        workers: How many run at once on this machine, each in a process of its own; results do not depend on it.
        silence: Seconds without a finished batch after which a process counts as hung.
        address: Of an existing Ray cluster, `auto` or HOST:PORT; by default one is started on this machine.
        launcher_options: As NAME=VALUE: `num_cpus` and `num_gpus` of a run for `ray`; for `submitit` what its executor
            takes (`slurm_partition`, `timeout_min`, `cluster`, ...).
    """

    launcher: Literal["local", "print", "submitit", "ray"] = "local"
    workers: int = 1
    silence: float = 1800.0
    address: str | None = None
    launcher_options: tuple[str, ...] = ()

    def make_launcher(self, folder: Path) -> Launcher:
        """Make what is asked for.

        Args:
            folder: Folder of results, in which a launcher may keep files of its own.

        Raises:
            UsageError: A number of workers or an option that is none, or an extra that is not installed.
        """
        from routing_gym.experiments.engine import clusters, workers  # which build on this module

        options = parse_options("launcher_options", self.launcher_options)
        each_once("launcher_options", self.launcher_options)
        at_least_one("workers", self.workers)
        for given, option, launchers in (
            (bool(options), "--launcher-options", ("submitit", "ray")),
            (self.address is not None, "--address", ("ray",)),
            (self.workers > 1, "--workers", ("local",)),
        ):
            if given and self.launcher not in launchers:
                raise UsageError(f"{option} is for --launcher {' or '.join(launchers)}, got {self.launcher}")
        if self.launcher == "submitit":
            return clusters.Submitit(folder / ".submitit", options)
        if self.launcher == "ray":
            if (self.address or "").startswith("ray://"):
                raise UsageError(f"--address takes auto or HOST:PORT, on a machine of the cluster, got {self.address}")
            if unknown := sorted(options.keys() - {"num_cpus", "num_gpus"}):
                raise UsageError(f"--launcher-options of ray are num_cpus and num_gpus, got {unknown[0]!r}")
            if wrong := [name for name, value in options.items() if not isinstance(value, int | float) or value < 0]:
                raise UsageError(
                    f"--launcher-options {wrong[0]} must be a number of at least 0, got {options[wrong[0]]!r}"
                )
            return clusters.Ray(self.address, **options)
        if not self.silence > 0:
            raise UsageError(f"--silence must be positive, got {self.silence}")
        if self.launcher == "print":
            return Print()
        return InProcess() if self.workers == 1 else workers.Local(self.workers, self.silence)


def try_out(
    runs: Sequence[Run], group: Callable[[Run], str], console: Console, debug: bool, *, fresh: bool = False
) -> tuple[list[Run], list[str]]:
    """Let every agent route, train on and be judged on one batch, before the first minute is spent.

    Args:
        runs: The runs.
        group: Name of what differs by the seed alone; the first of each is tried.
        console: Where it is said at once what fails.
        debug: Show tracebacks.
        fresh: Their checkpoints are about to be replaced, so that they need not fit.

    Returns:
        The runs of the groups that can do it, and what is wrong with the others.

    Raises:
        UsageError: A wrong option, or a checkpoint of other options than those given now.
    """
    failed: dict[str, str] = {}
    tried = set()
    for run in runs:
        name = group(run)
        if name in failed:
            continue
        try:
            run.try_out(batch=name not in tried, fresh=fresh)
            tried.add(name)
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            failed[name] = f"{name} fails in a trial on one batch, so that none of its runs starts: {one_line(error)}"
            _say_failure(console, failed[name], traceback.format_exc() if debug else "")
    return [run for run in runs if group(run) not in failed], list(failed.values())


def perform(
    runs: Sequence[Run], launcher: Launcher, keep: Callable[[Run, Record], None], console: Console, debug: bool
) -> list[str]:
    """Perform runs wherever a launcher puts them, on whichever checkpoints there are.

    Args:
        runs: The runs.
        launcher: Where they run.
        keep: Called with each that is done, and its record.
        console: Where it is shown how far they are.
        debug: Show tracebacks.

    Returns:
        Of each run that failed its title, the reason and what is kept, in a line.

    Raises:
        Stopped: A signal came; a note says what is kept.
    """
    failures: dict[str, None] = {}
    done = 0
    with Display(console, len(runs)) as display:
        try:
            for outcome in launcher.launch(runs, display):
                if outcome.record is not None:
                    try:
                        with unbroken():
                            keep(outcome.run, outcome.record)
                        done += 1
                        continue
                    except (Exception, SystemExit) as error:
                        failure = f"{outcome.run.title}: {one_line(error)}; {kept_in(outcome.run.folder)}"
                        outcome = Outcome(outcome.run, None, failure, traceback.format_exc())
                if outcome.failure not in failures:
                    _say_failure(console, outcome.failure, outcome.trace if debug else "")
                failures[outcome.failure] = None
        except KeyboardInterrupt as stop:
            if len(runs) > 1:
                stop.add_note(f"{done} of {len(runs)} runs are finished")
            for run in runs:
                if run.title in display.parts:
                    stop.add_note(f"{run.title}: {kept_in(run.folder)}")
            raise
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
        epochs = len(read(folder / CHECKPOINT)["extra"]["curve"]["epoch"])
    except (OSError, ValueError, KeyError):
        return f"nothing of it is kept in {folder}" if folder.is_dir() else f"its folder {folder} is no longer there"
    return f"the last good checkpoint, of epoch {epochs}, is in {folder}"


def _say_failure(console: Console, text: str, trace: str) -> None:
    if trace:
        print(trace, file=sys.stderr)
    say(console, text, style="red")
