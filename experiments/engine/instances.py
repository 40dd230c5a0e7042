"""A split instance by instance: what was predicted, what it cost, and which way each took."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from routing_gym.agents import Agent
from routing_gym.envs import Step, Trajectory, macs_of, route_split
from routing_gym.envs.evaluation import EVALUATION_BATCH, departures, spent_by_router
from routing_gym.experiments.engine.records import read_arrays, write_arrays, write_rows
from routing_gym.networks import actions
from routing_gym.tasks import MultiTaskDataset

BATCH = 500


def routed(agent: Agent, data: str | MultiTaskDataset, **options: Any) -> Iterator[tuple[Trajectory, slice]]:
    """Route every instance of a split, or of data like one, by an agent's best choices; see `route_split`.

    In float32; `options` are those of the environment that are to be others than the agent's, `num_envs` too.
    """
    core = agent.env
    split, dataset = (data, core.datasets[data]) if isinstance(data, str) else (data.split, data)
    fixed = {"train": False, "augmentations": 1, "autoreset_mode": "disabled", "render_mode": None, "split": split}
    rows = min(options.pop("num_envs", BATCH), len(dataset))
    config = {**dataclasses.asdict(core.config), **fixed, "precision": "float32", **options}
    return route_split(agent, type(core)(core.network, {split: dataset}, rows, **config))


def columns_of(
    agent: Agent, data: str | MultiTaskDataset, columns: Callable[[Trajectory], Iterable[Tensor]]
) -> list[Tensor]:
    """Columns with a row per instance, of what is read off batches that were `routed`."""
    parts = [[column[kept].cpu() for column in columns(batch)] for batch, kept in routed(agent, data)]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def keep_logits(agent: Agent, split: str, file: Path) -> None:
    """Write `logits` `(R, C)` float32 of every instance of a split, where all leave by one exit, and `label` `(R,)`."""
    logits, label = columns_of(agent, split, lambda batch: (_logits(batch), batch.label))
    write_arrays(file, logits=logits.numpy(), label=label.numpy())


def _logits(batch: Trajectory) -> Tensor:
    """Logits `(B, C)` of the one exit, in the order of the batch."""
    (exit,) = batch.exits
    return exit.logits if exit.rows is None else torch.empty_like(exit.logits).index_copy(0, exit.rows, exit.logits)


def accuracy_together(files: Sequence[Path]) -> float:
    """Accuracy of several networks whose class probabilities are averaged, of files written by `keep_logits`.

    Raises:
        ValueError: There is none, or they are of different instances.
        UsageError: One is not there or damaged.
    """
    if not files:
        raise ValueError("an ensemble has at least one member")
    saved = [read_arrays(file, logits=2, label=1) for file in files]
    label, total = saved[0]["label"], torch.zeros(())
    for file, arrays in zip(files, saved, strict=True):
        if not np.array_equal(label, arrays["label"]):
            raise ValueError(f"{file} is of other instances than {files[0]}")
        total = total + torch.from_numpy(arrays["logits"]).double().softmax(1)
    return float((total.argmax(1).numpy() == label).mean())


def write_routes(agent: Agent, split: str, path: Path) -> None:
    """Write a row per instance of a split as CSV, routed as `evaluate` does it.

    Its columns: `index`, the row in the split; `task`; `label`; `predicted`, by the logits at the exit where most of
    the instance left; `right`, 1 or 0, or a share where it left at several exits; `macs`, the router's own included;
    and for each decision the choice taken, empty where the instance did not come there. Choices of several tensors are
    joined by `+`, nothing standing for a tensor that does not choose; several choices of one tensor by `/`. Behind them
    `task_name`, where tasks have names.
    """
    core, network = agent.env, agent.env.network
    names = [decision.name for decision in network.decisions]
    if len(set(names)) < len(names):
        names = [f"{number + 1} {name}" for number, name in enumerate(names)]
    options = {"k_cpt": core.config.k_cpt if core.config.price else 0.0, "rho": 0.0, "seed": 0}
    spent = torch.tensor([*macs_of(agent, network), 0.0], device=core.device, dtype=torch.float64)
    batches = routed(agent, split, num_envs=EVALUATION_BATCH, **options)
    rows = [row for batch, kept in batches for row in list(_rows(batch, spent, len(names), network.num_choices))[kept]]
    heads = ["index", "task", "label", "predicted", "right", "macs", *names]
    if tasks := core.dataset.task_names:
        heads, rows = [*heads, "task_name"], [[*row, tasks[row[0]]] for row in rows]
    write_rows([heads, *([number, *row] for number, row in enumerate(rows))], path)


def _rows(batch: Trajectory, spent: Tensor, num_decisions: int, num_choices: int) -> Iterator[list[Any]]:
    """Rows of a batch but for their index; `spent (N + 1,)` is what the router spends on each decision."""
    *_, predicted = departures(batch, num_choices)
    macs = batch.macs.double() + spent_by_router(batch, spent)
    choices = [[""] * num_decisions for _ in batch.label]
    for step in batch.steps:
        for own, decision, choice in zip(choices, step.decision.tolist(), _choices(step, num_choices), strict=True):
            if decision < num_decisions:
                own[decision] = choice
    columns = (batch.task.tolist(), batch.label.tolist(), predicted.tolist(), batch.correct.tolist(), macs.tolist())
    for *known, right, cost, own in zip(*columns, choices, strict=True):
        yield [*known, f"{right:.6g}", f"{cost:.12g}", *own]


def _choices(step: Step, num_choices: int) -> list[str]:
    weights = actions.dense(step.action, num_choices)
    weights = weights.view(len(weights), -1, num_choices)
    choosing = step.choosing.expand(-1, weights.shape[1])
    taken = [
        ["/".join(str(c) for c, weight in enumerate(tensor) if weight) for tensor in row] for row in weights.tolist()
    ]
    return [
        "+".join(choice * chose for choice, chose in zip(*row, strict=True))
        for row in zip(taken, choosing.tolist(), strict=True)
    ]
