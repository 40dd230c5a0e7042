"""Where runs run: in this process, in others beside it, or wherever a list of commands is taken."""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Literal

from rich.console import Console

from routing_gym.agents import load_installed_agents, read
from routing_gym.experiments.engine.callbacks import PROGRESS, Callback, Progress, Session, said_of
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import Display, one_line, say
from routing_gym.experiments.engine.folders import what_is_aside
from routing_gym.experiments.engine.machine import keep_freed_memory
from routing_gym.experiments.engine.plugins import Pluggable, load_plugin
from routing_gym.experiments.engine.records import Record, read_progress, write_text
from routing_gym.experiments.engine.run import CONFIG, Run
from routing_gym.experiments.engine.settings import at_least_one, config_text, writable_folder
from routing_gym.experiments.engine.stopping import heeding_signals, unbroken
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
            failure = f"{run.title}: {one_line(error)}; {kept_in(run.folder)}"
        return Outcome(run, None, failure, traceback.format_exc())


class Launcher(ABC):
    """Where runs run."""

    @abstractmethod
    def launch(self, runs: Sequence[Run], display: Display) -> Iterator[Outcome]:
        """Perform runs, in this order as far as that means anything; yield what becomes of each when it is done.

        Args:
            runs: The runs.
            display: Told how far they are.
        """

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


@dataclasses.dataclass
class Local(Launcher):
    """So many runs at once, each in a process beside this one.

    A process runs one run after the other. When it is killed, for want of memory say, or gives no sign of life, the run
    it was at is tried once more from its last checkpoint; the other processes do not notice.

    Attributes:
        workers: How many processes.
        silence: Seconds without a finished batch or epoch after which a process counts as hung.
    """

    workers: int
    silence: float = 1800.0

    def launch(self, runs: Sequence[Run], display: Display) -> Iterator[Outcome]:
        """Perform runs; see `Launcher`."""
        waiting = collections.deque((run, 1) for run in runs)
        slots = [_Slot() for _ in range(min(self.workers, len(runs)))]
        busy: dict[Future, tuple[_Slot, Run, int]] = {}
        try:
            while waiting or busy:
                for slot in slots:
                    if waiting and not slot.busy:
                        run, number = waiting.popleft()
                        busy[slot.submit(run)] = slot, run, number
                        display.begin(run.title, run.training.epochs)
                done, _ = wait(busy, timeout=0.2, return_when=FIRST_COMPLETED)
                for slot, run, _ in busy.values():
                    self._look_after(slot, run, display)
                for future in done:
                    slot, run, number = busy.pop(future)
                    slot.busy = False
                    display.end(run.title)
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        slot.close()
                        silent = f"gave no sign of life for {self.silence:g} s"
                        why = f"its process {silent if slot.hung else 'was killed (out of memory?)'}"
                        if number < ATTEMPTS:
                            display.note(f"{run.title}: {why}; it is tried once more")
                            waiting.appendleft((run, number + 1))
                        else:
                            failure = f"{run.title}: {why}, {number} times; {kept_in(run.folder)}"
                            yield Outcome(run, None, failure)
        finally:
            for slot in slots:
                slot.stop()
            for slot in slots:
                slot.close()

    def _look_after(self, slot: _Slot, run: Run, display: Display) -> None:
        """Show how far a run is, and kill its process if it has been silent for too long."""
        progress = read_progress(run.folder / PROGRESS)
        if progress and progress["pid"] == slot.pid:
            display.epoch(run.title, progress)
            slot.heard(progress["time"])
        if not slot.started:  # still importing
            slot.heard(time.time())
        elif time.time() - slot.last > self.silence:
            slot.hung = True
            slot.kill()


class _Slot:
    """A process that runs one run after the other; when it dies another takes its place."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None
        self.begun: Future = Future()
        self.busy = self.hung = False
        self.last = time.time()

    def submit(self, run: Run) -> Future:
        """Hand a run to the process, which is started if there is none."""
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin_worker)
            self.begun = self.pool.submit(os.getpid)
        self.busy, self.hung, self.last = True, False, time.time()
        return self.pool.submit(_perform, run)

    @property
    def started(self) -> bool:
        """Whether the process answers."""
        return self.begun.done()

    @property
    def pid(self) -> int | None:
        """Number of the process, as soon as it answers."""
        return self.begun.result() if self.started and self.begun.exception() is None else None

    def heard(self, when: float) -> None:
        """Note a sign of life."""
        self.last = max(self.last, when)

    def stop(self) -> None:
        """Ask the process to end at its next safe point, if it is at work."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once."""
        self._signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self.busy and self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        """Wait for the process to end."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
        self.pool, self.begun, self.busy = None, Future(), False


def _begin_worker() -> None:
    """Ready a process: it ends with the one that started it, and leaves a terminal's Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    load_installed_agents()
    keep_freed_memory()


def _perform(run: Run) -> Outcome:
    """Perform a run in a process of its own."""
    try:
        with heeding_signals():
            for path in run.plugins:
                load_plugin(path)
            return attempt(run, (Progress(),))
    except KeyboardInterrupt:
        return Outcome(run, None, f"{run.title}: stopped; {kept_in(run.folder)}")
    except UsageError as error:
        return Outcome(run, None, f"{run.title}: {error}")


COMMAND = ("routing-gym", "train")


class Print(Launcher):
    """Prints a command for every run, a line each, for `xargs` or an array of batch jobs; runs nothing."""

    def launch(self, runs: Sequence[Run], display: Display) -> Iterator[Outcome]:
        """Write the configuration of every run into its folder, and print the command that performs it."""
        for run in runs:
            write_text(writable_folder(run.folder) / CONFIG, config_text(run.configuration))
            print(shlex.join([*COMMAND, "--config", str(run.folder / CONFIG), "--out", str(run.folder), "--resume"]))
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
            `xargs` or a cluster's array of jobs.
        workers: How many run at once, each in a process of its own; results do not depend on it.
        silence: Seconds without a finished batch after which a process counts as hung.
    """

    launcher: Literal["local", "print"] = "local"
    workers: int = 1
    silence: float = 1800.0

    def make_launcher(self) -> Launcher:
        """Make what is asked for.

        Raises:
            UsageError: Not a number of workers.
        """
        at_least_one("workers", self.workers)
        if not self.silence > 0:
            raise UsageError(f"--silence must be positive, got {self.silence}")
        if self.launcher == "print":
            return Print()
        return InProcess() if self.workers == 1 else Local(self.workers, self.silence)


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
