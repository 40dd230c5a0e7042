"""What a paper reports, as runs of ours: rows, settings, and the cells they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from routing_gym.experiments.cell import Cell
from routing_gym.experiments.settings import TrainingSettings


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a paper's table, or one of ours beside it.

    Attributes:
        label: What it is called in tables and pictures.
        groups: The figures or tables it belongs to.
        env: Id of the environment.
        agent: The agent.
        agent_options: Its options as NAME=VALUE.
        env_options: Options of the environment as NAME=VALUE.
        tuned: Further ones in single settings, by their name.
        paper: The paper's test accuracy in % by epoch; empty where it has none.
        x: Where it stands on a figure's axis.
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


@dataclasses.dataclass(frozen=True)
class Settings:
    """How every row is trained.

    Attributes:
        name: What they are called.
        about: What they are, in a line.
        epochs: Passes over the training split.
        env_options: Options of all environments, as NAME=VALUE; `{epochs}` stands for the number of epochs.
        more_options: Further ones of single environments, by id.
        epochs_on: Other numbers of passes for single environments, by id.
    """

    name: str
    about: str
    epochs: int
    env_options: tuple[str, ...] = ()
    more_options: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    epochs_on: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """All that is reproduced of a paper.

    Attributes:
        name: What the command calls it.
        title: Title of the paper.
        settings: The ways of training, all of which every row goes through.
        rows: The rows.
        groups: Title of every group.
        batch_size: Instances per batch.
        cost_env: Id of the environment whose cost is measured against the number of blocks.
    """

    name: str
    title: str
    settings: tuple[Settings, ...]
    rows: tuple[Row, ...]
    groups: dict[str, str]
    batch_size: int
    cost_env: str

    def cells(
        self,
        settings: Settings,
        groups: tuple[str, ...],
        seeds: int,
        base: TrainingSettings,
        out: Path,
        epochs: int | None = None,
    ) -> Iterator[tuple[Row, Cell]]:
        """Yield the cells of some groups: seed by seed, so that a run that stops early has seen every row.

        Args:
            settings: How they are trained.
            groups: Which.
            seeds: How many seeds, from 0 on.
            base: Device, threads and data folder.
            out: Folder for everything.
            epochs: Passes over the training split, instead of the settings' own.
        """
        for seed in range(seeds):
            for row in self.rows:
                if set(row.groups) & set(groups):
                    options = (
                        *settings.env_options,
                        *settings.more_options.get(row.env, ()),
                        *row.env_options,
                        *row.tuned.get(settings.name, ()),
                    )
                    passes = epochs or settings.epochs_on.get(row.env, settings.epochs)
                    training = dataclasses.replace(
                        base,
                        env=row.env,
                        epochs=passes,
                        batch_size=self.batch_size,
                        env_options=tuple(option.format(epochs=passes) for option in options),
                    )
                    folder = out / settings.name / row.groups[0] / _plain(row.label) / f"seed-{seed}"
                    yield row, Cell(training, row.agent, seed, folder, row.agent_options)


def _plain(label: str) -> str:
    """Return a label as a folder name."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in label).split()).lower()
