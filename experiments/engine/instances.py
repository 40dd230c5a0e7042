"""A split instance by instance: what was predicted, what it cost, and which way each took."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from routing_gym.agents import Agent
from routing_gym.envs import Step, Trajectory, macs_of, route_split
from routing_gym.envs.evaluation import EVALUATION_BATCH
from routing_gym.experiments.engine.records import write_text
from routing_gym.networks import actions


def write_routes(agent: Agent, split: str, path: Path) -> None:
    """Write a row per instance of a split as CSV, routed as `evaluate` does it.

    Its columns: `index`, the row in the split; `task`; `label`; `predicted`, by the logits at the exit where most of
    the instance left; `right`, 1 or 0, or a share where it left at several exits; `macs`, the router's own included;
    and for each decision the choice taken, empty where the instance did not come there. Choices of several tensors are
    joined by `+`, nothing standing for a tensor that does not choose; several choices of one tensor by `/`.

    Args:
        agent: The agent.
        split: Name of the split.
        path: The file, written whole or not at all.
    """
    core = agent.env
    names = [decision.name for decision in core.network.decisions]
    if len(set(names)) < len(names):
        names = [f"{number + 1} {name}" for number, name in enumerate(names)]
    options = {"train": False, "autoreset_mode": "disabled", "precision": "float32", "render_mode": None, "seed": 0}
    options |= {"k_cpt": core.config.k_cpt if core.config.price else 0.0, "rho": 0.0, "split": split}
    env = core.sibling(min(EVALUATION_BATCH, len(core.datasets[split])), **options)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["index", "task", "label", "predicted", "right", "macs", *names])
    spent = torch.tensor([*macs_of(agent, core.network), 0.0], device=env.device, dtype=torch.float64)
    rows = (
        row
        for batch, kept in route_split(agent, env)
        for row in list(_rows(batch, spent, len(names), core.network.num_choices))[kept]
    )
    table.writerows([number, *row] for number, row in enumerate(rows))
    write_text(path, text.getvalue())


def _rows(batch: Trajectory, spent: torch.Tensor, num_decisions: int, num_choices: int) -> Iterator[list[Any]]:
    """Rows of a batch but for their index; `spent (N + 1,)` is what the router spends on each decision."""
    predicted, most = torch.zeros_like(batch.label), torch.full_like(batch.macs, -1.0)
    for exit in batch.exits:
        rows = torch.arange(len(most), device=most.device) if exit.rows is None else exit.rows
        larger = exit.weight > most[rows]
        most[rows] = torch.where(larger, exit.weight, most[rows])
        predicted[rows] = torch.where(larger, exit.logits.argmax(1), predicted[rows])
    macs = batch.macs.double() + torch.stack([spent[step.decision] for step in batch.steps]).sum(0)
    choices = [[""] * num_decisions for _ in range(len(most))]
    for step in batch.steps:
        for own, decision, choice in zip(choices, step.decision.tolist(), _choices(step, num_choices), strict=True):
            if decision < num_decisions:
                own[decision] = choice
    columns = (batch.task.tolist(), batch.label.tolist(), predicted.tolist(), batch.correct.tolist(), macs.tolist())
    for *known, right, cost, own in zip(*columns, choices, strict=True):
        yield [*known, f"{right:.6g}", f"{cost:.12g}", *own]


def _choices(step: Step, num_choices: int) -> list[str]:
    """Choices of every row at a step."""
    weights = actions.dense(step.action, num_choices)
    weights = weights.view(len(weights), -1, num_choices)
    taken = [
        ["/".join(str(choice) for choice, weight in enumerate(tensor) if weight) for tensor in row]
        for row in weights.tolist()
    ]
    choosing = step.choosing.expand(-1, weights.shape[1]).tolist()
    return [
        "+".join(choice * chose for choice, chose in zip(*row, strict=True))
        for row in zip(taken, choosing, strict=True)
    ]
