"""What a paper reports, as runs of ours: the runs that rows and settings make, how they are shown and judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.engine.run import DIVERGED, Run
from routing_gym.experiments.engine.settings import TrainingSettings
from routing_gym.experiments.engine.statistics import Difference
from routing_gym.experiments.papers.pinning import pinned
from routing_gym.experiments.papers.rows import Change, Protocol, Row, Settings

Runs = Sequence[Record]
Searched = Iterable[tuple[Row, Change, Run]]
"""Rows, what is tried of each, and the runs."""
Verdict = Literal["holds", "does not hold", "not enough"]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Something a paper reports that is measured in a moment, not trained and judged.

    Attributes:
        title: Its title.
        env: Id of the environment it is measured on.
        measure: Measures with given settings and returns records, or those kept in a file from last time.
        table: Shows the records as lines of Markdown.
        draw: Draws them to a file, under a title.
    """

    title: str
    env: str
    measure: Callable[[TrainingSettings, Path], list[Record]]
    table: Callable[[Runs], list[str]]
    draw: Callable[[Runs, Path, str], None]


@dataclasses.dataclass(frozen=True)
class Judged:
    """A part of a claim: a number that should be above 0, over the seeds that it is known for.

    Attributes:
        numbers: What it is, and what was found.
        found: Its mean over seeds with its interval; None where no seed has all that it takes.
        spread: What seeds are expected to differ by in it (standard deviation); None where nothing tells.
        unit: Its unit, with a space before it.
    """

    numbers: str
    found: Difference | None = None
    spread: float | None = None
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says in words, judged by our records.

    Attributes:
        text: What it says.
        verdict: Whether it holds; "not enough" where seeds are missing or too much alike to tell.
        numbers: What the verdict is based on.
        parts: Its parts.
    """

    text: str
    verdict: Verdict
    numbers: str
    parts: Sequence[Judged] = ()


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What there is to draw of a group, and the pictures drawn.

    Attributes:
        group: Its name.
        title: Its title, with the way of training behind it.
        records: Those of the group, all trained in one way.
        all_records: Those of all groups that were trained in this way.
        folder: Where pictures go.
        files: The pictures.
        beside: Records of other papers, see `Reproduction.beside`.
    """

    group: str
    title: str
    records: list[Record]
    all_records: list[Record]
    folder: Path
    files: list[Path] = dataclasses.field(default_factory=list)
    beside: Runs = ()

    @property
    def settings(self) -> str:
        """The way of training."""
        return self.records[0]["settings"]

    def add(self, name: str, draw: Callable[..., None], shown: Any, title: str | None = None, **options: Any) -> None:
        """Draw a picture by `draw(shown, path, title, **options)`; the title is the group's if none is given."""
        self.files.append(self.folder / f"{self.settings}-{name}.png")
        draw(shown, self.files[-1], self.title if title is None else title, **options)


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """All that is reproduced of a paper.

    Attributes:
        name: What the command calls it.
        title: Title of the paper.
        settings: The ways of training, all of which every row goes through.
        rows: The rows.
        groups: Title of every group.
        batch_size: Instances per batch, where no change says otherwise.
        about: What the numbers of the tables are, as the first sentences of the report.
        table: Shows the records of one group, trained in one way, as lines of Markdown.
        draw: Draws a group.
        judge: Judges what the paper says in words by records that were trained in one way.
        judged_by: What of a record is the name by which it is judged: several rows of one name, as of a curve, are
            judged together.
        measured: Further groups, which are measured.
        tables: Other ways than `table` to show single groups, by their name.
        beside: Another paper whose protocols' runs its pictures show as well, where they are kept beside its own.
    """

    name: str
    title: str
    settings: tuple[Settings, ...]
    rows: tuple[Row, ...]
    groups: dict[str, str]
    batch_size: int
    about: str
    table: Callable[[Runs], list[str]]
    draw: Callable[[Drawing], None]
    judge: Callable[[Runs], list[Claim]]
    judged_by: Literal["label", "series"] = "label"
    measured: dict[str, Measurement] = dataclasses.field(default_factory=dict)
    tables: dict[str, Callable[[Runs], list[str]]] = dataclasses.field(default_factory=dict)
    beside: str = ""

    def pictures(self, groups: Sequence[str], records: Runs, folder: Path, beside: Runs = ()) -> list[Path]:
        """Draw all groups that there are records for; return the files."""
        drawn = []
        known = {setting.name: setting for setting in self.settings}
        for name in distinct(records, "settings"):
            of_setting = among(records, settings=name)
            for group in known[name].shown(self.groups):
                own = [record for record in of_setting if group in record["groups"]]
                if group in groups and own:
                    title = f"{self.groups[group]} ({name})"
                    drawing = Drawing(group, title, own, of_setting, folder, beside=beside)
                    self.draw(drawing)
                    drawn += drawing.files
        return drawn


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of a paper in one way of training.

    Attributes:
        paper: The paper.
        settings: The way of training.
        base: Device, threads and data folder.
        out: Folder for everything.
        groups: Groups of the rows; all of the paper's if left out.
        only: Leave out rows that none of these texts asks for, see `asks_for`; none given, all stay.
        epochs: Passes over the training split, instead of the settings' own.
    """

    paper: Reproduction
    settings: Settings
    base: TrainingSettings
    out: Path
    groups: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    epochs: int | None = None

    @property
    def rows(self) -> list[Row]:
        """The rows that are asked for, in the order of the settings, where they name some."""
        order, groups = self.settings.rows, set(self.groups or self.paper.groups)
        rows = [row for row in self.paper.rows if any(asks_for(text, row.label) for text in self.only or ("",))]
        rows = [row for row in rows if groups & set(row.groups) and self.settings.shown(row.groups)]
        if order:
            rows = sorted((row for row in rows if row.label in order), key=lambda row: order.index(row.label))
        return rows

    @property
    def _place(self) -> Path:
        return self.out / (self.settings.folder or self.settings.name)

    def runs(self, seeds: int | None = None, chosen: Mapping[str, Change] | None = None) -> Iterator[Run]:
        """Yield the runs: seed by seed, so that a run that stops early has seen every row.

        Args:
            seeds: How many seeds, from 0 on; as many as the settings say if left out.
            chosen: A choice for each row that is searched for, those without are left out; by default what the search
                has chosen so far.
        """
        searched = self.settings.search.choices if self.settings.search else {}
        chosen = chosen_by(self.search()) if chosen is None else chosen
        for seed in range(seeds or self.settings.seeds):
            for row in self.rows:
                choice = chosen.get(row.label)
                if choice is not None or row.label not in searched:
                    folder = self._place / row.groups[0] / _plain(row.label) / f"seed-{seed}"
                    yield self._run(row, seed, folder, choice or Change(), self.epochs)

    def search(self) -> Iterator[tuple[Row, Change, Run]]:
        """Yield the runs by which rates are chosen: a row, what is tried of it, and the run."""
        if (search := self.settings.search) is None:
            return
        more: dict[str, Any] = {"split": "validation", "compare_paths": False, "keep_logits": False, "judge_at": ()}
        for row in self.rows:
            for choice in search.choices.get(row.label, ()):
                for seed in search.seeds:
                    folder = self._place / "search" / _plain(row.label) / _plain(choice.text) / f"seed-{seed}"
                    run = self._run(row, seed, folder, choice, self.epochs or search.epochs)
                    title = f"{self.settings.name}, {row.label}, {choice.text}, seed {seed}"
                    yield row, choice, dataclasses.replace(run, title=title, **more)

    def _run(self, row: Row, seed: int, folder: Path, choice: Change, epochs: int | None) -> Run:
        """Make the run of a row."""
        settings = self.settings
        names = (row.agent, *row.groups, row.label, *(f"{group}: {row.label}" for group in row.groups))
        named = (settings.changes.get(name, Change()) for name in names)
        of_env = settings.changes.get(row.env, Change())
        changes = (of_env, Change(row.env_options, row.agent_options), *named, choice)
        passes = epochs or [settings.epochs, *(change.epochs for change in changes if change.epochs)][-1]
        batch_size = [self.paper.batch_size, *(change.batch_size for change in changes if change.batch_size)][-1]
        env_options = _filled((*settings.env_options, *(option for change in changes for option in change.env)), passes)
        agent_options = _filled([option for change in changes for option in change.agent], passes)
        called = f"{row.groups[0]}, {row.label}"  # several groups have rows of one label, a protocol has it once
        if isinstance(settings, Protocol):
            called = row.label
            env_options, agent_options = pinned(row.env, env_options, row.agent, agent_options)
        training = dataclasses.replace(
            self.base, env=row.env, epochs=passes, batch_size=batch_size, env_options=env_options
        )
        return Run(
            training,
            row.agent,
            seed,
            folder,
            agent_options,
            judge_at=row.judge_at,
            compare_paths=row.compare_paths,
            keep_logits=row.keep_logits,
            title=f"{settings.name}, {called}, seed {seed}",
            facts={"settings": settings.name, **row.facts, "folder": str(folder)},
        )


def chosen_by(searched: Searched) -> dict[str, Change]:
    """Return what a search chooses for each row: the highest mean validation accuracy, of equals the first.

    Rows of which a run is not finished have no choice; what has diverged is as bad as can be.
    """
    found: dict[str, dict[Change, list[float]]] = {}
    unfinished = set()
    for row, choice, run in searched:
        accuracies = found.setdefault(row.label, {}).setdefault(choice, [])
        if record := run.finished():
            accuracies.append(record["validation_accuracy"])
        elif (run.folder / DIVERGED).exists():
            accuracies.append(0.0)
        else:
            unfinished.add(row.label)
    means = {
        label: {choice: float(np.mean(accuracies)) for choice, accuracies in choices.items()}
        for label, choices in found.items()
        if label not in unfinished
    }
    return {label: max(of_row, key=of_row.__getitem__) for label, of_row in means.items()}


def asks_for(text: str, label: str) -> bool:
    """Tell whether a row is meant by a text: one that its label contains, or `=` and the whole label."""
    return label == text[1:] if text.startswith("=") else text in label


def among(records: Runs, **facts: Any) -> list[Record]:
    """Records of which these facts are true: `among(records, series="actor", part="hybrid")`."""
    return [record for record in records if all(record[key] == value for key, value in facts.items())]


def distinct(records: Runs, key: str) -> list[Any]:
    """The different values that records have of something, in order of first appearance."""
    return list(dict.fromkeys(record[key] for record in records))


def mean_of(runs: Runs, key: str) -> float:
    """Mean of a number of some runs."""
    return float(np.mean([run[key] for run in runs]))


def _filled(options: Sequence[str], epochs: int) -> tuple[str, ...]:
    """Put the number of epochs, and parts of it, into options."""
    return tuple(option.format(epochs=epochs, eighth=epochs / 8, seven_eighths=epochs * 7 / 8) for option in options)


def _plain(label: str) -> str:
    """Return a label as a folder name."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in label).split()).lower()
