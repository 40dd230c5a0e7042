"""What a command is, and how it ends: by an error in a line, or by a signal. Imports nothing that takes long."""

from __future__ import annotations

import dataclasses
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console


class UsageError(Exception):
    """A wrong option: the message says which, and what would have been right."""


class RunFailedError(Exception):
    """A run that failed, and what is kept of it."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM asks the command to end; `status` is the exit status that says so, 128 and the number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """A command.

    Attributes:
        debug: Show where in the code an error comes from.
    """

    debug: bool = False

    def prepare(self) -> None:
        """What comes before it is executed."""
        from routing_gym.experiments.engine.machine import keep_freed_memory

        keep_freed_memory()

    @abstractmethod
    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""

    @property
    def going_on(self) -> str:
        """How to go on after it was stopped."""
        return ""


_asked: int | None = None
_unbroken = 0


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Raise `Stopped` when a signal comes: at once, or where `unbroken` ends; the second time at once.

    A signal that is ignored, as for a command in the background, stays so. Python lets only the main thread heed
    signals; in others nothing changes.
    """
    global _asked
    _asked, before = None, {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, _heed)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked = None


@contextmanager
def unbroken() -> Iterator[None]:
    """Put off what a signal asks for until what is under way is done."""
    global _unbroken
    _unbroken += 1
    try:
        yield
    finally:
        _unbroken -= 1
    stop_if_asked()


def stop_if_asked() -> None:
    """Raise `Stopped` if a signal came: this is a safe point, even within `unbroken`."""
    if _asked is not None:
        raise Stopped(_asked)


def _heed(number: int, frame: FrameType | None) -> None:
    global _asked
    again, _asked = _asked is not None, number
    if again or not _unbroken:
        raise Stopped(number)
