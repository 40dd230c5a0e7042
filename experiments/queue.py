"""The queue of the papers' runs: what is done and what is left, and one worker that takes them in its order."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from routing_gym.experiments.engine.command import Command, UsageError
from routing_gym.experiments.engine.console import say, show
from routing_gym.experiments.engine.folders import locked
from routing_gym.experiments.engine.launchers import InProcess, perform, say_failures
from routing_gym.experiments.engine.machine import commit
from routing_gym.experiments.engine.page import write_page
from routing_gym.experiments.engine.records import Record, write_results
from routing_gym.experiments.engine.run import DIVERGED, KEPT, LOGITS, Run
from routing_gym.experiments.engine.settings import TrainingSettings, known_names, writable_folder
from routing_gym.experiments.papers.pinning import pin
from routing_gym.experiments.papers.reproduction import Plan, Reproduction
from routing_gym.experiments.papers.rows import Protocol
from routing_gym.experiments.papers.summary import TITLE, summary
from routing_gym.experiments.reproduce import REPRODUCTIONS

# Linux may share processors between sessions first, and by niceness only within one.
AUTOGROUP = Path("/proc/self/autogroup")
QUEUE = Path(__file__).parent / "papers" / "queue.toml"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A protocol in the queue.

    Attributes:
        paper: The paper.
        protocol: The protocol.
        hours: Core-hours it was expected to take when it was written; what its runs take counts more.
        later: Whether all seeds of those that are not `later` come first.
    """

    paper: Reproduction
    protocol: Protocol
    hours: float
    later: bool = False

    @property
    def name(self) -> str:
        """Paper and protocol."""
        return f"{self.paper.name} {self.protocol.name}"

    def turn(self, run: Run) -> tuple[bool, bool, int]:
        """When a run's turn is: the lower, the sooner."""
        deciding = not self.protocol.first or run.facts["label"] in self.protocol.first
        return self.later, not deciding, 0 if run.split == "validation" else run.seed


@dataclasses.dataclass
class Stand:
    """How far an entry is.

    Attributes:
        finished: Records of its finished runs.
        left: Its runs that can begin.
        waiting: How many more wait for a search to end.
    """

    finished: list[Record]
    left: list[Run]
    waiting: int

    def seconds_left(self, entry: Entry) -> float:
        """Seconds that the rest takes, as long as the finished runs of a row took; where there are none, as expected.

        A row of which nothing is finished takes as long as the mean run does, per epoch.
        """
        count = len(self.finished) + len(self.left) + self.waiting
        pace: dict[str, list[float]] = {}
        for record in self.finished:
            pace.setdefault(record["label"], []).append(record["seconds"] / record["epochs"])
        if not pace:
            return 3600 * entry.hours * (len(self.left) + self.waiting) / max(1, count)
        usual = float(np.mean([np.mean(of_row) for of_row in pace.values()]))
        known = (float(np.mean(pace.get(run.facts["label"], [usual]))) * run.training.epochs for run in self.left)
        return sum(known) + self.waiting * usual * entry.protocol.epochs


@dataclasses.dataclass(frozen=True)
class Queue(Command):
    """Show what is done of the papers' runs, what is next and how long is left; or start to work on them.

    One worker takes the runs in their order, at the lowest priority of the system: first those of the rows by which the
    protocols decide what they are for, then the others; of either searches and first seeds of all protocols, then all
    second seeds, and so on; those that stand under `later` begin when all others are done. It may be stopped at any
    time, also by a kill: what is finished is finished, and what was begun goes on from its checkpoint at the next
    start.

    Attributes:
        what: `status`; `start`; `page`, which writes README.md beside the records, a table of what has been decided; or
            `pin`, which writes down the defaults of what a new protocol leaves open.
        records: Folder in which finished records are kept, in small files, to be committed.
        out: Folder of checkpoints and everything else, not to be committed.
        data_dir: Where downloaded data lies; by default what ROUTING_GYM_DATA names, else a folder in the user's cache.
        only: Entries to work on, as `PAPER SETTINGS`; all if left out.
    """

    what: Annotated[Literal["status", "start", "page", "pin"], tyro.conf.Positional] = "status"
    records: Path = Path("docs/results/records")
    out: Path = Path("results/queue")
    data_dir: str | None = None
    only: tuple[str, ...] = ()

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        known = {entry.name: entry for entry in entries()}
        asked = [known[name] for name in known_names("only", self.only, tuple(known))]
        if not self.records.is_dir():
            raise UsageError(
                f"there is no folder {self.records}: call it where the repository is checked out, or name another by "
                "--records"
            )
        if self.what == "pin":
            added = pin(run for entry in asked for run in self._runs(entry, every_choice=True))
            say(console, f"{added} options pinned")
            return 0
        if self.what == "start":
            return self._start(asked, console)
        if self.what == "page":
            page = self.records.parent / "README.md"
            write_page(page, TITLE, summary([(one.paper, one.protocol, self._of_rows(one)) for one in asked]))
            say(console, f"Written to {page}")
            return 0
        self._show(asked, console)
        return 0

    @property
    def going_on(self) -> str:
        """How to go on after it was stopped."""
        return "start it again, and it goes on" if self.what == "start" else ""

    def stand(self, entry: Entry) -> Stand:
        """How far an entry is.

        Raises:
            UsageError: A kept record is damaged, or of a run that the protocol no longer asks for.
        """
        runs = list(self._runs(entry))
        finished = {run.folder: record for run in runs if (record := run.finished())}
        whole = len(entry.protocol.rows) * entry.protocol.seeds + sum(run.split == "validation" for run in runs)
        over = {*finished, *(run.folder for run in runs if (run.folder / DIVERGED).exists())}
        return Stand(list(finished.values()), [run for run in runs if run.folder not in over], whole - len(runs))

    def _of_rows(self, entry: Entry) -> list[Record]:
        """Finished runs of an entry's rows, without those of its search."""
        found = [(run, run.finished()) for run in self._runs(entry) if run.split != "validation"]
        return [{**record, **run.facts} for run, record in found if record]

    def _runs(self, entry: Entry, *, every_choice: bool = False) -> Iterator[Run]:
        """Yield the runs of an entry that can begin, the search first; their folders are those of kept records."""
        base = TrainingSettings(data_dir=self.data_dir, device="cpu")
        plan = Plan(entry.paper, entry.protocol, base, self.records / entry.paper.name)
        searched = list(plan.search())
        yield from (run for _, _, run in searched)
        yield from plan.runs(chosen={row.label: choice for row, choice, _ in searched} if every_choice else None)

    def _start(self, asked: list[Entry], console: Console) -> int:
        """Work until nothing is left but what failed."""
        _step_back()
        commit()  # that of the code that is imported now, whatever is committed while it runs
        failures: dict[Path, str] = {}
        with locked(self.records), locked(writable_folder(self.out)):
            while True:
                left = [(entry.turn(run), run)
                        for entry in asked for run in self.stand(entry).left if run.folder not in failures]  # fmt: skip
                if not left:
                    return say_failures(list(failures.values()), console, self.out)
                _, run = min(left, key=lambda one: one[0])
                kept = run.folder
                begun = dataclasses.replace(run, folder=self.out / kept.relative_to(self.records))
                if record := begun.finished():  # killed before it was kept
                    keep(kept, begun, record)
                    continue
                failed = perform([begun], InProcess(), partial(keep, kept), console, self.debug)
                if failed:
                    failures[kept] = failed[0]
                if (diverged := begun.folder / DIVERGED).exists():  # which the search has to know
                    shutil.copyfile(diverged, writable_folder(kept) / DIVERGED)

    def _show(self, asked: list[Entry], console: Console) -> None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("protocol")
        for heading in ("finished", "of", "hours so far", "left"):
            table.add_column(heading, justify="right")
        table.add_column("next")
        whole = 0.0
        for entry in asked:
            stand = self.stand(entry)
            left = stand.seconds_left(entry)
            whole += left
            spent = sum(record["seconds"] for record in stand.finished)
            count = len(stand.finished) + len(stand.left) + stand.waiting
            then = min(stand.left, key=entry.turn).title if stand.left else ""
            hours = [f"{seconds / 3600:.1f}" for seconds in (spent, left)]
            table.add_row(entry.name, str(len(stand.finished)), str(count), *hours, then)
        show(console, table)
        pace = "at the pace of finished runs, or as was expected where there are none"
        say(console, f"{whole / 3600:.1f} hours of one core are left, {pace}")


def entries() -> list[Entry]:
    """The queue, in its order: that of value per core-hour; a `UsageError` if an entry names no protocol."""
    found = []
    there = tomllib.loads(QUEUE.read_text(encoding="utf-8"))
    stages = ((entry, later) for later, name in enumerate(("protocol", "later")) for entry in there.get(name, ()))
    for entry, later in stages:
        paper = REPRODUCTIONS[entry["paper"]]
        (protocol,) = (setting for setting in paper.settings if setting.name == entry["settings"])
        if not isinstance(protocol, Protocol):
            raise UsageError(f"{QUEUE}: {entry['settings']} of {entry['paper']} is no protocol")
        found.append(Entry(paper, protocol, entry["hours"], bool(later)))
    return found


def _step_back() -> None:
    """Go to the lowest priority."""
    if hasattr(os, "nice"):  # not on Windows
        os.nice(19)
        if AUTOGROUP.exists() and os.getsid(0) == os.getpid():  # a session of its own, so that nobody else is slowed
            with contextlib.suppress(OSError):  # the system lets it be changed a few times a second only
                AUTOGROUP.write_text("19")


def keep(folder: Path, run: Run, record: Record) -> None:
    """Keep of a finished run, in small files, the record, and what is said of every image where a table needs it."""
    writable_folder(folder)
    if run.keep_logits:
        shutil.copyfile(run.folder / LOGITS, folder / LOGITS)
    record = {name: value for name, value in record.items() if name not in run.facts}
    write_results([record], folder / KEPT)
