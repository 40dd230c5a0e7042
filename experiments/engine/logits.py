"""What an agent's network says of every instance of a split, and what several say together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from routing_gym.agents import Agent
from routing_gym.envs import Trajectory, route_split
from routing_gym.experiments.engine.records import read_arrays, write_arrays

BATCH = 500


def routed(agent: Agent, split: str) -> Iterator[tuple[Trajectory, slice]]:
    """Route every instance of a split by an agent's best choices, in eval mode and float32; see `route_split`."""
    core = agent.env
    options = {"train": False, "autoreset_mode": "disabled", "precision": "float32", "render_mode": None}
    return route_split(agent, core.sibling(min(BATCH, len(core.datasets[split])), split=split, **options))


def keep_logits(agent: Agent, split: str, file: Path) -> None:
    """Write what is said of every instance of a split, in a network all leave by one exit.

    Args:
        agent: The agent.
        split: The split.
        file: Receives `logits` `(R, C)` float32 and `label` `(R,)` int64.
    """
    parts = [(_logits(batch)[kept].cpu(), batch.label[kept].cpu()) for batch, kept in routed(agent, split)]
    logits, labels = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    write_arrays(file, logits=logits, label=labels)


def _logits(batch: Trajectory) -> Tensor:
    """Return the `(B, C)` logits of the one exit, in the order of the batch."""
    (exit,) = batch.exits
    return exit.logits if exit.rows is None else torch.empty_like(exit.logits).index_copy(0, exit.rows, exit.logits)


def accuracy_together(files: Sequence[Path]) -> float:
    """Return the accuracy of several networks whose class probabilities are averaged.

    Args:
        files: Written by `keep_logits`, of the same instances.

    Raises:
        ValueError: They are of different instances.
        UsageError: One is not there or damaged.
    """
    total: Tensor | None = None
    labels: np.ndarray | None = None
    for file in files:
        saved = read_arrays(file, logits=2, label=1)
        chances = torch.from_numpy(saved["logits"]).double().softmax(1)
        if labels is not None and not np.array_equal(labels, saved["label"]):
            raise ValueError(f"{file} is of other instances than {files[0]}")
        labels, total = saved["label"], chances if total is None else total + chances
    if total is None or labels is None:
        raise ValueError("an ensemble has at least one member")
    return float((total.argmax(1).numpy() == labels).mean())
