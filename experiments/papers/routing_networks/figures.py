"""The figures of Routing Networks (Rosenbaum et al. 2018), drawn from recorded runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from routing_gym.experiments.engine.figures import learning_curves, routing_maps, save
from routing_gym.experiments.engine.records import Record, by_label, read_arrays
from routing_gym.experiments.papers.reproduction import Drawing

POLICIES_OF = ("cifar", "mnist")
"""Groups whose routed run is looked into."""


def draw(drawing: Drawing) -> list[Path]:
    """Draw the figures of a group; return their files."""
    group, own, titled = drawing.group, drawing.records, drawing.title
    drawn = [drawing.path(group)]
    if group == "rho":
        against_x(own, drawn[0], titled, "ρ")
    elif group == "first-tasks":
        first_tasks(own, drawn[0], titled)
    else:
        learning_curves(own, drawn[0], titled)
        drawn.append(drawing.path(f"{group}-routing_maps"))
        routing_maps(own, drawn[-1], f"{titled}: who takes which block")
    for record in own:
        policies = Path(record["folder"]) / "policies.npz"
        shown = group in ("cifar", "mnist") and record["agent"] == "wpl" and record["seed"] == 0
        if shown and policies.exists():
            developing, one_block = (drawing.path(f"{group}-{what}") for what in ("policies", "block_7"))
            policies_over_time(policies, developing, f"{record['label']}: the policy of each task's agent")
            block_over_time(policies, one_block, 7, f"{record['label']}: taking block 7 at the first decision")
            drawn += [developing, one_block]
    return drawn


def policies_over_time(path: Path, out: Path, title: str, decision: int = 0) -> None:
    """Draw how each task's policy develops at one decision (Fig. 9): a strip per task, a row per block.

    Args:
        path: `policies.npz` of a run.
        out: The picture.
        title: Its title.
        decision: Which decision.
    """
    saved = read_arrays(path, policies=4, episodes=1)
    policies, episodes = saved["policies"][:, :, decision].astype(float), saved["episodes"]
    _, num_tasks, num_choices = policies.shape
    figure = Figure(figsize=(7, 0.45 * num_tasks + 1.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    strips = figure.subplots(num_tasks, 1, sharex=True, squeeze=False)[:, 0]
    for task, axes in enumerate(strips):
        edges = np.append(episodes, episodes[-1] + max(1, episodes[-1] - (episodes[-2] if len(episodes) > 1 else 0)))
        axes.pcolormesh(edges, np.arange(num_choices + 1), policies[:, task].T, cmap="Greys", vmin=0, vmax=1)
        axes.set_ylabel(f"T{task + 1}", rotation=0, ha="right", va="center", fontsize=8)
        axes.set_yticks([])
        axes.tick_params(labelsize=8)
    strips[-1].set_xlabel("instances routed; each strip: blocks from bottom to top, darker is likelier", fontsize=9)
    save(figure, out)


def block_over_time(path: Path, out: Path, block: int, title: str, decision: int = 0) -> None:
    """Draw how likely each task's agent is to take one block, over time (Fig. 10)."""
    saved = read_arrays(path, policies=4, episodes=1)
    policies, episodes = saved["policies"][:, :, decision].astype(float), saved["episodes"]
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for task in range(policies.shape[1]):
        axes.plot(episodes, policies[:, task, min(block, policies.shape[2] - 1)], linewidth=1.2, label=f"T{task + 1}")
    axes.set_xlabel("instances routed")
    axes.set_ylabel("probability")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=7, frameon=False, ncols=1 + policies.shape[1] // 15)
    save(figure, out)


def against_x(records: Sequence[Record], out: Path, title: str, name: str) -> None:
    """Draw test accuracy against what the rows differ in (Fig. 12), every seed as a point and their mean as a line."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    points = sorted((record["x"], 100 * record["test_accuracy"]) for record in records)
    places = sorted({x for x, _ in points})
    axes.plot(places, [np.mean([y for x, y in points if x == place]) for place in places], linewidth=1.8)
    axes.plot(*zip(*points, strict=True), "o", markersize=4, color="black", alpha=0.6)
    axes.set_xlabel(name)
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    save(figure, out)


def first_tasks(records: Sequence[Record], out: Path, title: str) -> None:
    """Draw learning curves on the first n tasks, a panel for each n (Fig. 15)."""
    counts = sorted({record["x"] for record in records})
    figure = Figure(figsize=(3.2 * len(counts), 3.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, count in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts, strict=True):
        for number, (label, runs) in enumerate(by_label([r for r in records if r["x"] == count]).items()):
            curves = 100 * np.array([run["curve"]["validation_accuracy"] for run in runs])
            name = label.rpartition(",")[0]
            axes.plot(runs[0]["curve"]["epoch"], curves.mean(0), linestyle=(number, (6, number % 3 * 2)), label=name)
        axes.set_title(f"first {count:g} tasks", fontsize=9)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    save(figure, out)


def cost_against_blocks(records: Sequence[Record], out: Path, title: str) -> None:
    """Draw seconds per epoch and task against the number of blocks (Fig. 13).

    Args:
        records: From `cost_against_number_of_blocks`.
        out: The picture.
        title: Its title.
    """
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for agent, runs in by_label(records).items():
        costs = [run["seconds_per_epoch_and_task"] for run in runs]
        axes.plot([run["blocks"] for run in runs], costs, marker="o", label=agent)
    axes.set_xlabel("blocks per layer")
    axes.set_ylabel("seconds per epoch and task")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, out)
