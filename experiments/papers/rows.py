"""Rows of papers' tables and figures, and the settings and protocols under which they are run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any


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
        paper: The paper's test accuracy in % by epoch; empty where it has none.
        x: Where it stands on a figure's axis.
        series: The curve of a figure it is a point of; empty where it is a line of a table.
        part: Which of several such figures.
        judge_at: Prices of computation (`k_cpt`) to judge the one trained agent at, each of which makes a point.
        compare_paths: Whether to find out which paths images take, see `Run`.
        keep_logits: Whether to keep what is said of every test image, see `Run`.
    """

    label: str
    groups: tuple[str, ...]
    env: str
    agent: str
    agent_options: tuple[str, ...] = ()
    env_options: tuple[str, ...] = ()
    paper: dict[int, float] = dataclasses.field(default_factory=dict)
    x: float | None = None
    series: str = ""
    part: str = ""
    judge_at: tuple[float, ...] = ()
    compare_paths: bool = False
    keep_logits: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of the row it belongs to, besides what the run itself says."""
        last = self.paper[max(self.paper)] / 100 if self.paper else None
        facts = {name: getattr(self, name) for name in ("label", "series", "part", "x")}
        return {**facts, "groups": list(self.groups), "paper": last, "paper_by_epoch": self.paper}


@dataclasses.dataclass(frozen=True)
class Change:
    """What is done differently.

    Attributes:
        env: Further options of the environment as NAME=VALUE; of options given twice the last counts.
        agent: Further options of the agent, likewise.
        epochs: Another number of passes over the training split.
        batch_size: Another number of instances per batch.
    """

    env: tuple[str, ...] = ()
    agent: tuple[str, ...] = ()
    epochs: int | None = None
    batch_size: int | None = None

    @property
    def text(self) -> str:
        """Its options."""
        return " ".join((*self.env, *self.agent))


@dataclasses.dataclass(frozen=True)
class Search:
    """The same small search for every row that has a rate to choose, on validation, by seeds of its own.

    Attributes:
        epochs: Passes over the training split.
        choices: What to choose from, by label of the row.
        seeds: The seeds, none of which is one of the settings'.
    """

    epochs: int
    choices: Mapping[str, tuple[Change, ...]]
    seeds: tuple[int, ...] = (100,)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How rows are trained, and which.

    Attributes:
        name: What they are called.
        about: What they are, in a line.
        epochs: Passes over the training split.
        env_options: Options of all environments, as NAME=VALUE; `{epochs}` stands for the number of epochs, `{eighth}`
            for an eighth of it, `{seven_eighths}` for the others.
        changes: What is different in single environments, by id; and, which counts more than a row's own options, for
            single agents, groups, rows, and rows of one group (`GROUP: LABEL`), by their names.
        rows: Labels of the rows, in the order in which they are run; all of the paper's if left out.
        groups: Groups of the rows, likewise.
        seeds: Number of seeds, from 0 on.
        search: How rates are chosen; None where all are given.
        folder: Name of settings that train alike, in whose folder the runs are, so that rows of both are run once.
    """

    name: str
    about: str
    epochs: int
    env_options: tuple[str, ...] = ()
    changes: Mapping[str, Change] = dataclasses.field(default_factory=dict)
    rows: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    seeds: int = 3
    search: Search | None = None
    folder: str = ""

    def shown(self, groups: Iterable[str]) -> tuple[str, ...]:
        """Those of a paper's groups that it is of, in their order."""
        return tuple(group for group in groups if group in self.groups or not self.groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol(Settings):
    """What a small machine can decide of a paper: everything is fixed before it runs.

    Options that neither it nor a row names are those of `pinned.toml`, so that a changed default changes nothing.

    Attributes:
        keeps: What it keeps of the paper.
        shrinks: What it makes smaller.
        decides: The claim it is to decide, in the words it is judged by.
        effect: How large the effect is in the paper, or has to be to be worth anything.
        first: Labels of the rows that what it decides is about, which the queue runs before the others; all if left
            out.
    """

    keeps: str
    shrinks: str
    decides: str
    effect: str
    first: tuple[str, ...] = ()
