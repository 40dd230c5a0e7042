"""Runs in processes of this machine, so many at once."""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

from routing_gym.agents import load_installed_agents
from routing_gym.experiments.engine.callbacks import PROGRESS
from routing_gym.experiments.engine.console import Display
from routing_gym.experiments.engine.launchers import ATTEMPTS, Launcher, Outcome, kept_in, perform_elsewhere
from routing_gym.experiments.engine.machine import keep_freed_memory
from routing_gym.experiments.engine.records import read_progress
from routing_gym.experiments.engine.run import Run

GRACE = 20.0
"""Seconds a process has to finish its batch when the command ends; what is killed then has its last checkpoint."""


@dataclasses.dataclass
class Local(Launcher):
    """So many runs at once, each in a process beside this one.

    A process runs one run after the other. When it is killed, for want of memory say, or gives no sign of life, the run
    it was at is tried once more from its last checkpoint; the other processes do not notice.

    Attributes:
        workers: How many processes.
        silence: Seconds without a finished batch or epoch after which a process counts as hung.
        slots: The processes there are.
    """

    workers: int
    silence: float = 1800.0
    slots: list[_Slot] = dataclasses.field(default_factory=list)

    def launch(self, runs: Sequence[Run], display: Display) -> Iterator[Outcome]:
        """Perform runs; see `Launcher`."""
        waiting = collections.deque((run, 1) for run in runs)
        busy: dict[Future, tuple[_Slot, Run, int]] = {}
        self.begin(len(runs))

        def keep_busy() -> None:
            for slot in self.slots:
                if waiting and not slot.busy:
                    run, number = waiting.popleft()
                    busy[slot.submit(run)] = slot, run, number
                    display.begin(run.title, run.training.epochs)

        try:
            while waiting or busy:
                keep_busy()
                done, _ = wait(busy, timeout=0.2, return_when=FIRST_COMPLETED)
                for slot, run, _ in busy.values():
                    self._look_after(slot, run, display)
                for future in done:
                    slot, run, number = busy.pop(future)
                    slot.busy = False
                    display.end(run.title)
                    try:
                        outcome = future.result()
                        keep_busy()  # before what is done with the outcome
                        yield outcome
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
            if busy:  # broken off: else the processes wait for what comes next, or for `end`
                for slot in self.slots:
                    slot.stop()
                wait(busy, timeout=GRACE)
                self.end()

    def begin(self, count: int) -> None:
        """Start the processes that so many runs will take."""
        while len(self.slots) < min(self.workers, count):
            self.slots.append(_Slot())
            self.slots[-1].start()

    def end(self) -> None:
        """End the processes."""
        for slot in self.slots:
            slot.kill()
            slot.close()
        self.slots = []

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

    def start(self) -> ProcessPoolExecutor:
        """Start the process, if there is none."""
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin_worker)
            self.begun = self.pool.submit(os.getpid)
        return self.pool

    def submit(self, run: Run) -> Future:
        """Hand a run to the process, which is started if there is none, or none any more."""
        try:
            future = self.start().submit(perform_elsewhere, run)
        except BrokenProcessPool:  # it died while it had nothing to do
            self.close()
            future = self.start().submit(perform_elsewhere, run)
        self.busy, self.hung, self.last = True, False, time.time()
        return future

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
        if self.busy:
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once."""
        self._signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self.pid is not None:
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
