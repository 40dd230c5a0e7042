"""Folders of results: one command at a time, and nothing old goes before what replaces it is whole."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from routing_gym.experiments.engine.command import Command, UsageError
from routing_gym.experiments.engine.records import read_results, write_text

LOCK, ASIDE, FAILURES = ".lock", ".old-", "failures.txt"
RESULTS = ("checkpoint.pt", "results.json")
OF_A_RUN = (*RESULTS, "config.toml")
"""One of these is in the folder of every run that has begun."""
LEARNED = ("best.pt", "routes.npz", "policies.npz", "paths.npz", "logits.npz")
"""What training has come to besides: like those above nothing that could be made anew without it."""
BESIDE = (
    *(*LEARNED, "curve.csv", "events.out.tfevents*", "results.csv", "report.html", FAILURES),
    *("learning_curves.png", "routing_maps.png", "accuracy_by_macs.png"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keeping(Command):
    """A command that replaces results only when it is told to.

    Attributes:
        resume: Go on in OUT: skip runs that are finished, go on with those that were interrupted.
        overwrite: Replace what is in OUT; it is kept aside until what replaces it is whole.
    """

    resume: bool = False
    overwrite: bool = False

    @property
    def going_on(self) -> str:
        """How to go on after it was stopped."""
        return "go on by the same command with --resume" + " in place of --overwrite" * self.overwrite


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other commands out of a folder; the system lets them in again when this process ends, however it does.

    A `UsageError` says that another is at work there, or that it cannot be written to.
    """
    try:
        held = FileLock(folder / LOCK, is_singleton=True).acquire(blocking=False)  # within one process also twice
    except Timeout as error:
        raise UsageError(f"another command is at work in {folder}: wait for it, or take another folder") from error
    except OSError as error:
        raise UsageError(f"the output folder {folder} cannot be written to: {error.strerror or error}") from error
    with held:
        yield


def results_in(folder: Path) -> list[Path]:
    """The folders of runs, checkpoint and records that commands have written into a folder."""
    of_runs = [path for path in folder.glob("[!.]*/seed-*") if any((path / name).exists() for name in OF_A_RUN)]
    return [*sorted(of_runs), *(folder / name for name in RESULTS if (folder / name).exists())]


def check_free(folder: Path, *, resume: bool, overwrite: bool, one_run: bool) -> None:
    """Refuse a folder that holds results, by a `UsageError`, unless they are to be gone on with or replaced.

    A single run (`one_run`) cannot go on with several, nor the other way round.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on with what is there, --overwrite replaces it: give one of them")
    found = results_in(folder)
    if not found or overwrite:
        return
    if not resume:
        mend = "go on with them by --resume, replace them by --overwrite, or take another folder"
        raise UsageError(f"{folder} holds results already: {mend}")
    if one_run and found[0].name not in RESULTS:
        first = found[0].relative_to(folder)
        raise UsageError(f"{folder} holds several runs, such as {first}: resume one of them, or take another")
    if not one_run and (folder / "checkpoint.pt").exists():
        raise UsageError(f"{folder} holds a single run of `routing-gym train`: take another folder")


def check_own(folder: Path, key: str) -> None:
    """Refuse a folder with the records of another command, which lack what all of this command's have."""
    path = folder / "results.json"
    if path.exists() and any(key not in record for record in read_results(path)):
        raise UsageError(f"{path} holds runs of another command: take another folder")


def set_aside(folder: Path) -> None:
    """Move results into a hidden folder until `drop_aside`; records last, so that a kill leaves what to go on with."""
    if found := results_in(folder):
        beside = [path for pattern in BESIDE for path in folder.glob(pattern)]
        aside = next(path for number in itertools.count(1) if not (path := folder / f"{ASIDE}{number}").exists())
        aside.mkdir()
        for path in (*beside, *found):
            moved = aside / path.relative_to(folder)
            moved.parent.mkdir(exist_ok=True)
            path.rename(moved)
            if path.parent != folder:
                with suppress(OSError):  # something else is in the folder of an agent's runs
                    path.parent.rmdir()


def drop_aside(folder: Path) -> None:
    """Delete what was set aside: what replaces it is whole."""
    for path in folder.glob(f"{ASIDE}*"):
        shutil.rmtree(path, ignore_errors=True)


def what_is_aside(folder: Path) -> str:
    """Say where results are that were set aside; nothing where none were."""
    found = sorted(path.name for path in folder.glob(f"{ASIDE}*"))
    return f"what was there before is still in {folder}: {', '.join(found)}" if found else ""


def keep_failures(folder: Path, failures: Sequence[str]) -> None:
    """Write down what failed in a comparison or a sweep, a line each, for its report; nothing stays of earlier ones."""
    if failures:
        write_text(folder / FAILURES, "".join(f"{' '.join(failure.split())}\n" for failure in failures))
    else:
        (folder / FAILURES).unlink(missing_ok=True)


def failures_in(folder: Path) -> list[str]:
    """What `keep_failures` has written, if anything."""
    try:
        return (folder / FAILURES).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
