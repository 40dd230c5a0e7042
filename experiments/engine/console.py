"""What commands print: text as it is, whatever the encoding, and how far they are."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

WIDTH_OF_A_FILE = 110


class Output(Console):
    """Standard output, or error output: text is no markup, and what the encoding lacks is written as an escape."""

    def __init__(self, stderr: bool = False) -> None:
        sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # of a daemon
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        terminal = (sys.stderr if stderr else sys.stdout).isatty()
        width = None if terminal else WIDTH_OF_A_FILE
        super().__init__(force_terminal=terminal, width=width, markup=False, emoji=False, stderr=stderr)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; go on without where it cannot be written, as on a disk that is full, and say so once."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            self.on_broken_pipe()
            if not self.stderr:
                why = error.strerror or str(error)
                Output(stderr=True).print(f"routing-gym: what is printed cannot be written ({why}): going on without")

    def on_broken_pipe(self) -> None:
        """Go on without a word when nobody reads any more: a run is worth more than its log."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print one line, however long."""
    console.print(text, style=style, soft_wrap=True)


def show(console: Console, table: Table) -> None:
    """Print a table; in a file as wide as it is, where nobody could make the window wider."""
    if not console.is_terminal:
        wide = console.options.update(max_width=10_000)
        console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table, crop=False)


def plain_table(*headings: str, **look: Any) -> Table:
    """Empty table without lines between its columns: text in the first, numbers in the others, none of it wrapped."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), **look)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def counted(number: int, noun: str) -> str:
    """The number and its noun, `"1 seed"` or `"3 seeds"`."""
    return f"{number} {noun}{'s' * (number != 1)}"


DIGEST = "__digest__"
"""Name, in the module of a plug-in, of its file's digest."""


def one_line(error: BaseException) -> str:
    """Class and message of an error in one line, and where in a plug-in it came from."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    places = [(of.f_code.co_filename, line) for of, line in walk_tb(error.__traceback__) if DIGEST in of.f_globals]
    return f"{said} ({places[-1][0]}, line {places[-1][1]})" if places else said


@contextmanager
def threads_in_one_line() -> Iterator[None]:
    """Say in a line what goes wrong in a thread; TensorBoard's raise it where they are written to as well."""

    def said(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is not None and not type(failed.thread).__module__.startswith("tensorboard"):
            print(f"routing-gym: in a thread: {one_line(failed.exc_value)}", file=sys.stderr)

    before, threading.excepthook = threading.excepthook, said
    try:
        yield
    finally:
        threading.excepthook = before


class Display(Progress):
    """How far a command is, of `total` runs or parts: bars in a terminal, elsewhere a line for each of them.

    With `every_epoch` it is a line for every epoch of every run.
    """

    def __init__(self, console: Console, total: int, name: str = "all runs", every_epoch: bool = True) -> None:
        columns = (TextColumn("{task.description:<20}", markup=False), BarColumn(), MofNCompleteColumn())
        super().__init__(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
        self.every_epoch = every_epoch
        self.total, self.done, self.whole = total, 0, self.add_task(name, total=total)
        self.parts: dict[str, tuple[TaskID, int]] = {}
        self.shown: dict[str, int] = {}

    def begin(self, title: str, epochs: int = 0) -> None:
        """Say what is under way from now on, and how many epochs it has."""
        self.parts[title] = self.add_task(title[:40], total=max(epochs, 1)), epochs

    def epoch(self, title: str, progress: Mapping[str, Any]) -> None:
        """Show the last epoch that is done: `epoch`, `train_loss`, `judged_on`, `validation_accuracy`, `seconds`."""
        part, epochs = self.parts[title]
        done = progress["epoch"]
        self.update(part, completed=done)
        if self.every_epoch and done > self.shown.get(title, 0):
            self.shown[title] = done
            self._line(
                f"{title}: epoch {done}/{epochs}, train loss {progress['train_loss']:.4f}, {progress['judged_on']} "
                f"accuracy {100 * progress['validation_accuracy']:.2f} %, {progress['seconds']:.1f} s"
            )

    def end(self, title: str) -> None:
        """Count what is done."""
        part, epochs = self.parts.pop(title)
        self.remove_task(part)
        self.done += 1
        self.update(self.whole, advance=1)
        if not (epochs and self.every_epoch):
            self._line(f"{title}: {self.done} of {self.total}")

    def note(self, text: str) -> None:
        """Say a line that stays."""
        say(self.console, text)

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            say(self.console, text)
