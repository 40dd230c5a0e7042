"""What a paper reports, as runs of ours: rows, settings, the runs they make, and how results are shown and judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.engine.run import Run
from routing_gym.experiments.engine.settings import TrainingSettings
from routing_gym.experiments.papers.pinning import pinned

Runs = Sequence[Record]
Verdict = Literal["holds", "does not hold", "not enough"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a paper's table, or one of ours beside it.

    Attributes:
        label: What it is called in tables and pictures.
        groups: The figures or tables it belongs to.
        env: Id of the environment.
        agent: The agent.
        agent_options: Its options as NAME=VALUE; `{epochs}` and the like are filled in, see `Settings`.
        env_options: Options of the environment as NAME=VALUE, likewise.
        tuned: Further ones in single settings, by their name.
        paper: The paper's test accuracy in % by epoch; empty where it has none.
        x: Where it stands on a figure's axis.
        series: The curve of a figure it is a point of; empty where it is a line of a table.
        part: Which of several such figures.
        judge_at: Prices of computation (`k_cpt`) to judge the one trained agent at, each of which makes a point.
        compare_paths: Whether to find out which paths images take, see `Run`.
        keep_logits: Whether to keep what is said of every test image, see `Run`.
        trained: Numbers of passes and of instances per batch in single settings, by their name, where they are others.
    """

    label: str
    groups: tuple[str, ...]
    env: str
    agent: str
    agent_options: tuple[str, ...] = ()
    env_options: tuple[str, ...] = ()
    tuned: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    paper: dict[int, float] = dataclasses.field(default_factory=dict)
    x: float | None = None
    series: str = ""
    part: str = ""
    judge_at: tuple[float, ...] = ()
    compare_paths: bool = False
    keep_logits: bool = False
    trained: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of the row it belongs to, besides what the run itself says."""
        last = self.paper[max(self.paper)] / 100 if self.paper else None
        facts = {name: getattr(self, name) for name in ("label", "series", "part", "x")}
        return {**facts, "groups": list(self.groups), "paper": last, "paper_by_epoch": self.paper}


@dataclasses.dataclass(frozen=True)
class Search:
    """The same small search for every row of a protocol, on the validation split, with seeds of its own.

    Attributes:
        epochs: Passes over the training split.
        env: Options of the environment to choose from, as NAME=VALUE, by label of the row.
        agent: Options of the agent to choose from, likewise; a row has one of both, or nothing to choose.
        seeds: The seeds, none of which the protocol has.
    """

    epochs: int
    env: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    agent: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (100,)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What a small machine can decide of a paper: everything is fixed before it runs.

    Options that neither it nor a row names are those of `pinned.toml`, so that a changed default changes nothing.

    Attributes:
        keeps: What it keeps of the paper.
        shrinks: What it makes smaller.
        decides: The claim it is to decide, in the words it is judged by.
        rows: Labels of the rows it is of.
        groups: Groups of the rows it is of; all of the paper's if left out.
        env: Further options of the environment of single rows, by label.
        agent: Further options of the agent of single rows, by label.
        seeds: Number of seeds, from 0 on.
        search: How rates are chosen; None where all are given.
    """

    keeps: str
    shrinks: str
    decides: str
    rows: tuple[str, ...]
    groups: tuple[str, ...] = ()
    env: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    agent: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    seeds: int = 3
    search: Search | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How every row is trained.

    Attributes:
        name: What they are called.
        about: What they are, in a line.
        epochs: Passes over the training split.
        env_options: Options of all environments, as NAME=VALUE; `{epochs}` stands for the number of epochs, `{eighth}`
            for an eighth of it, `{seven_eighths}` for the others.
        more_options: Further ones of single environments, by id.
        agents: Further options of single agents, by name.
        epochs_on: Other numbers of passes for single environments, by id.
        batch_size: Instances per batch; None for what the reproduction says.
        protocol: What makes them decide something on a small machine; None for settings of all rows.
    """

    name: str
    about: str
    epochs: int
    env_options: tuple[str, ...] = ()
    more_options: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    agents: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    epochs_on: dict[str, int] = dataclasses.field(default_factory=dict)
    batch_size: int | None = None
    protocol: Protocol | None = None


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
class Claim:
    """What a paper says in words, judged by our records.

    Attributes:
        text: What it says.
        verdict: Whether it holds; "not enough" where seeds are missing or too much alike to tell.
        numbers: What the verdict is based on.
    """

    text: str
    verdict: Verdict
    numbers: str


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
    """

    group: str
    title: str
    records: list[Record]
    all_records: list[Record]
    folder: Path
    files: list[Path] = dataclasses.field(default_factory=list)

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
        batch_size: Instances per batch, where rows do not say otherwise.
        about: What the numbers of the tables are, as the first sentences of the report.
        table: Shows the records of one group, trained in one way, as lines of Markdown.
        draw: Draws a group.
        judge: Judges what the paper says in words by records that were trained in one way; None where all it says
            stands in its tables.
        measured: Further groups, which are measured.
        tables: Other ways than `table` to show single groups, by their name.
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
    judge: Callable[[Runs], list[Claim]] | None = None
    measured: dict[str, Measurement] = dataclasses.field(default_factory=dict)
    tables: dict[str, Callable[[Runs], list[str]]] = dataclasses.field(default_factory=dict)

    def pictures(self, groups: Sequence[str], records: Runs, folder: Path) -> list[Path]:
        """Draw all groups that there are records for; return the files."""
        drawn = []
        for setting in distinct(records, "settings"):
            of_setting = among(records, settings=setting)
            for group, title in self.groups.items():
                own = [record for record in of_setting if group in record["groups"]]
                if group in groups and own:
                    drawing = Drawing(group, f"{title} ({setting})", own, of_setting, folder)
                    self.draw(drawing)
                    drawn += drawing.files
        return drawn

    def runs(
        self,
        settings: Settings,
        groups: tuple[str, ...],
        seeds: int,
        base: TrainingSettings,
        out: Path,
        epochs: int | None = None,
        only: tuple[str, ...] = (),
        chosen: Mapping[str, str] | None = None,
    ) -> Iterator[tuple[Row, Run]]:
        """Yield the runs of some groups: seed by seed, so that a run that stops early has seen every row.

        Args:
            settings: How they are trained.
            groups: Which.
            seeds: How many seeds, from 0 on.
            base: Device, threads and data folder.
            out: Folder for everything.
            epochs: Passes over the training split, instead of the settings' own.
            only: Leave out rows that none of these texts asks for, see `asks_for`; none given, all stay.
            chosen: What the search of a protocol has chosen, see `chosen_by`; rows that lack a choice are left out.
        """
        search = settings.protocol.search if settings.protocol else None
        searched = {**search.env, **search.agent} if search else {}
        for seed in range(seeds):
            for row in self._rows(settings, groups, only):
                choice = (chosen or {}).get(row.label)
                if row.label in searched and choice is None:
                    continue
                folder = out / settings.name / row.groups[0] / _plain(row.label) / f"seed-{seed}"
                yield row, self._run(settings, row, seed, base, folder, epochs, choice)

    def search(self, settings: Settings, base: TrainingSettings, out: Path) -> Iterator[tuple[Row, str, Run]]:
        """Yield the runs by which a protocol chooses rates: a row, what is tried of it, and the run."""
        search = settings.protocol.search if settings.protocol else None
        if search is None:
            return
        for row in self._rows(settings, tuple(self.groups), ()):
            for choice in (*search.env.get(row.label, ()), *search.agent.get(row.label, ())):
                for seed in search.seeds:
                    folder = out / settings.name / "search" / _plain(row.label) / _plain(choice) / f"seed-{seed}"
                    run = self._run(settings, row, seed, base, folder, search.epochs, choice)
                    title = f"{settings.name}, {row.label}, {choice}, seed {seed}"
                    more: dict[str, Any] = {"compare_paths": False, "keep_logits": False, "judge_at": ()}
                    yield row, choice, dataclasses.replace(run, split="validation", title=title, **more)

    def _rows(self, settings: Settings, groups: tuple[str, ...], only: tuple[str, ...]) -> list[Row]:
        """The rows that are asked for, those of a protocol in its order."""
        rows = [row for row in self.rows if any(asks_for(text, row.label) for text in only or ("",))]
        rows = [row for row in rows if set(row.groups) & set(groups)]
        if settings.protocol is not None:
            order, own = settings.protocol.rows, settings.protocol.groups or tuple(self.groups)
            rows = [row for row in rows if set(row.groups) & set(own)]
            rows = sorted((row for row in rows if row.label in order), key=lambda row: order.index(row.label))
        return rows

    def _run(
        self,
        settings: Settings,
        row: Row,
        seed: int,
        base: TrainingSettings,
        folder: Path,
        epochs: int | None,
        choice: str | None,
    ) -> Run:
        """Make the run of a row."""
        usual = settings.epochs_on.get(row.env, settings.epochs), settings.batch_size or self.batch_size
        passes, batch_size = row.trained.get(settings.name, usual)
        passes = epochs or passes
        env_options = (*settings.env_options, *settings.more_options.get(row.env, ()), *row.env_options)
        env_options += row.tuned.get(settings.name, ())
        agent_options = (*row.agent_options, *settings.agents.get(row.agent, ()))
        protocol = settings.protocol
        if protocol is not None:
            of_agent = protocol.search is not None and row.label in protocol.search.agent
            choices = (choice,) if choice else ()
            env_options += (*protocol.env.get(row.label, ()), *(choices if not of_agent else ()))
            agent_options += (*protocol.agent.get(row.label, ()), *(choices if of_agent else ()))
        env_options, agent_options = _filled(env_options, passes), _filled(agent_options, passes)
        if protocol is not None:
            env_options, agent_options = pinned(row.env, env_options, row.agent, agent_options)
        training = dataclasses.replace(base, env=row.env, epochs=passes, batch_size=batch_size, env_options=env_options)
        return Run(
            training,
            row.agent,
            seed,
            folder,
            agent_options,
            judge_at=row.judge_at,
            compare_paths=row.compare_paths,
            keep_logits=row.keep_logits,
            title=f"{settings.name}, {row.label}, seed {seed}",
            facts={"settings": settings.name, **row.facts, "folder": str(folder)},
        )


def chosen_by(searched: Sequence[tuple[Row, str, Run]]) -> dict[str, str]:
    """Return what a search chooses for each row: the highest mean validation accuracy, of equals the first.

    Rows of which a run is not finished have no choice.
    """
    found: dict[str, dict[str, list[Record]]] = {}
    unfinished = set()
    for row, choice, run in searched:
        if record := run.finished():
            found.setdefault(row.label, {}).setdefault(choice, []).append(record)
        else:
            unfinished.add(row.label)
    means = {
        label: {choice: mean_of(records, "validation_accuracy") for choice, records in choices.items()}
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
