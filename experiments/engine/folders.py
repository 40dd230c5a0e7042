"""Folders of results: one command at a time, and nothing old goes before what replaces it is whole."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from routing_gym.experiments.engine.command import Command, UsageError
from routing_gym.experiments.engine.records import Record, read_results, write_text

LOCK, ASIDE, FAILURES = ".lock", ".old-", "failures.txt"
SET_ASIDE = ".set-aside"
"""A file in every folder that `set_aside` has made: others, whatever they are called, are the user's."""
RESULTS = ("checkpoint.pt", "results.json")
OF_A_RUN = (*RESULTS, "config.toml")
"""One of these is in the folder of every run that has begun."""
LEARNED = ("best.pt", "routes.npz", "policies.npz", "paths.npz", "logits.npz")
"""What training has come to besides: like those above nothing that could be made anew without it."""
BESIDE = (
    *(*LEARNED, "curve.csv", "events.out.tfevents*", "results.csv", "report.html", FAILURES),
    *("learning_curves.png", "routing_maps.png", "accuracy_by_macs.png", "diverged.txt"),
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


def runs_in(folder: Path, place: str = "[!.]*") -> list[Path]:
    """The folders of runs, `seed-N`, within those of agents, or another place; a copy such as `seed-0.bak` is none."""
    seeds = (path for path in folder.glob(f"{place}/seed-*") if re.fullmatch(r"seed-(0|[1-9]\d*)", path.name))
    return sorted(path for path in seeds if any((path / name).exists() for name in OF_A_RUN))


def epochs_wanted(folder: Path) -> int:
    """Number of epochs that a run was last asked for, by its `config.toml`; 0 where that does not tell."""
    with suppress(OSError, ValueError):
        wanted = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")).get("epochs")
        return wanted if isinstance(wanted, int) else 0
    return 0


def results_in(folder: Path) -> list[Path]:
    """The folders of runs, checkpoint and records that commands have written into a folder."""
    return [*runs_in(folder), *(folder / name for name in RESULTS if (folder / name).exists())]


def written_by(folder: Path) -> set[str]:
    """Commands one of which has written what is in a folder, as far as one can tell; none where there are no runs."""
    records: list[Record] = []
    with suppress(UsageError):  # it is missing, or damaged, which whoever needs it will say
        records = read_results(folder / "results.json")
    for key, command in (("setting", "sweep"), ("settings", "reproduce")):
        if records and all(key in record for record in records):
            return {command}
    if any(folder.glob("scores.json*")):
        return {"suite"}
    if (folder / "checkpoint.pt").exists():
        return {"train"}
    if runs := runs_in(folder):
        return {"sweep" if all("=" in run.parent.name for run in runs) else "compare"}  # of settings, NAME=VALUE
    if records:
        return {"train", "compare"}
    return {"suite", "reproduce"} if runs_in(folder, "[!.]*/*/*") else set()


def check_own(folder: Path, *commands: str) -> None:
    """Refuse a folder of other commands than these, by a `UsageError`: files of one name would be replaced."""
    found = written_by(folder)
    if found and found.isdisjoint(commands):
        others = " or ".join(sorted(found))
        raise UsageError(f"{folder} holds runs of another command, {others}: take another folder")


def check_free(folder: Path, *, resume: bool, overwrite: bool, one_run: bool) -> None:
    """Refuse a folder that holds results, by a `UsageError`, unless they are to be gone on with or replaced.

    A single run (`one_run`) cannot go on with several, nor the other way round.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on with what is there, --overwrite replaces it: give one of them")
    found = results_in(folder)
    if found and not (resume or overwrite):
        mend = "go on with them by --resume, replace them by --overwrite, or take another folder"
        raise UsageError(f"{folder} holds results already: {mend}")
    check_own(folder, "train", "compare", *(["sweep"] if overwrite else []))  # which are set aside
    if not found or overwrite:
        return
    if one_run and found[0].name not in RESULTS:
        first = found[0].relative_to(folder)
        raise UsageError(f"{folder} holds several runs, such as {first}: resume one of them, or take another")
    if not one_run and (folder / "checkpoint.pt").exists():
        raise UsageError(f"{folder} holds a single run of `routing-gym train`: take another folder")


def set_aside(folder: Path) -> None:
    """Move results into a hidden folder until `drop_aside`; records last, so that a kill leaves what to go on with."""
    if found := results_in(folder):
        beside = [path for pattern in BESIDE for path in folder.glob(pattern)]
        aside = next(path for number in itertools.count(1) if not (path := folder / f"{ASIDE}{number}").exists())
        aside.mkdir()
        (aside / SET_ASIDE).touch()
        for path in (*beside, *found):
            moved = aside / path.relative_to(folder)
            moved.parent.mkdir(exist_ok=True)
            path.rename(moved)
            if path.parent != folder:
                with suppress(OSError):  # something else is in the folder of an agent's runs
                    path.parent.rmdir()


def drop_aside(folder: Path) -> str:
    """Delete what was set aside as far as what replaces it is whole; say where the rest is, if there is any."""
    for aside in _asides(folder):
        for run in runs_in(aside):
            if (folder / run.relative_to(aside) / "results.json").exists():
                shutil.rmtree(run, ignore_errors=True)
        if not runs_in(aside) and (folder / "results.json").exists():
            shutil.rmtree(aside, ignore_errors=True)
    return what_is_aside(folder)


def _asides(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob(f"{ASIDE}*/{SET_ASIDE}"))]


def what_is_aside(folder: Path) -> str:
    """Say where results are that were set aside; nothing where none were."""
    found = [path.name for path in _asides(folder)]
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
