"""Pictures of results. Drawn with matplotlib's object interface, so that no display and no global state is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from routing_gym.envs import CELL, GAP, routing_map
from routing_gym.experiments.engine.console import counted
from routing_gym.experiments.engine.exits import curves_of
from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.files import write_atomically

DPI = 120
TITLE_INCHES = 0.09  # width of a letter of a title, rounded up


def save(figure: Figure, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    write_atomically(path, lambda out: figure.savefig(out, dpi=DPI, format="png"))


def learning_curves(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw accuracy against epochs, on the split it was judged on: the mean over seeds of each agent, and the range."""
    groups = by_label(records)
    figure = Figure(figsize=(8, max(4.0, 0.4 + 0.34 * len(groups))), layout="constrained")  # as high as the legend
    axes = figure.add_subplot()
    for number, (agent, runs) in enumerate(groups.items()):
        curves = 100 * ACCURACY.curves(runs)
        epochs, low, high = range(1, curves.shape[1] + 1), np.nanmin(curves, 0), np.nanmax(curves, 0)
        label = f"{agent}\n{ACCURACY.text([ACCURACY.value(run) for run in runs])}, {counted(len(runs), 'seed')}"
        # Another dash for each agent: curves that lie on each other stay visible.
        dash = (number, (6, number % 3 * 2))
        (line,) = axes.plot(epochs, np.nanmean(curves, 0), linestyle=dash, linewidth=1.8, label=label)
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    found = 100 * ACCURACY.curves(records)
    axes.set(title=title, xlabel="epoch", ylabel=f"{records[0]['curve']['judged_on']} accuracy, %")
    axes.set_ylim(max(0.0, np.nanmin(found) - 1), min(100.3, np.nanmax(found) + 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    look = {"fontsize": 8, "title_fontsize": 8, "frameon": False, "handlelength": 3}
    bands = "\n(bands: all seeds)" if len(records) > len(groups) else ""
    figure.legend(title=f"test accuracy, %{bands}", loc="outside right upper", **look)
    save(figure, path)


def accuracy_by_macs(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw such curves, means over seeds, and of every other run a point, of every other agent its mean."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for label, curve, points in curves_of(records):
        macs, accuracy = ([np.mean([one[name] for one in point]) for point in points] for name in ("macs", "accuracy"))
        line = "s:" if curve == "anytime" else "o-"
        axes.plot(macs, 100 * np.array(accuracy), line, markersize=4, label=f"{label}, {curve}")
    for number, (label, runs) in enumerate(by_label(records).items()):
        if not any(run.get("exit_curves") for run in runs):
            macs, accuracy = [run["macs"] for run in runs], [100 * ACCURACY.value(run) for run in runs]
            axes.plot(macs, accuracy, ".", color=f"C{4 + number}", alpha=0.5)
            axes.plot(np.mean(macs), np.mean(accuracy), "*", color=f"C{4 + number}", markersize=12, label=label)
    split = records[0]["asked"]["split"]
    axes.set(title=title, xlabel="mean multiply-accumulates per instance", ylabel=f"{split} accuracy, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)


def routing_maps(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw each agent's routing map: for task (column) and decision (row) the block taken on the test split.

    As Fig. 11 of Rosenbaum et al. (2018). Where instances of one task take several blocks the cell is split among
    them, and numbered if one has the majority. One map per agent, of its first seed.
    """
    firsts = {agent: runs[0] for agent, runs in by_label(records).items()}
    columns = min(2, len(firsts))
    rows = -(-len(firsts) // columns)
    num_tasks, num_decisions, _ = np.shape(records[0]["routes"])
    size = (columns * (0.42 * num_tasks + 1.3), rows * (0.38 * num_decisions + 0.75) + 0.3)
    # With a single task the maps are narrower than their title.
    figure = Figure(figsize=(max(size[0], 4.0, TITLE_INCHES * len(title)), size[1]), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(firsts) :]:
        axes.axis("off")
    for axes, (agent, record) in zip(grid.flat, firsts.items(), strict=False):
        routing_map_on(axes, np.array(record["routes"]))
        axes.set_title(f"{agent} (seed {record['seed']})", fontsize=9)
    save(figure, path)


def routing_map_on(axes: Axes, routes: np.ndarray) -> None:
    """Draw `(T, N, A)` counts."""
    num_tasks, num_decisions, _ = routes.shape
    picture = routing_map(torch.from_numpy(routes))
    edge = 0.5 * GAP / (CELL + GAP)
    extent = (-0.5 - edge, num_tasks - 0.5 + edge, num_decisions - 0.5 + edge, -0.5 - edge)
    axes.imshow(picture, aspect="equal", extent=extent, interpolation="nearest")
    for task, decision in np.argwhere(2 * routes.max(-1) > routes.sum(-1)):
        axes.text(task, decision, str(routes[task, decision].argmax()), ha="center", va="center", fontsize=7)
    axes.set_xticks(range(num_tasks), [str(task) for task in range(num_tasks)], fontsize=7)
    axes.set_yticks(range(num_decisions), [f"decision {i + 1}" for i in range(num_decisions)], fontsize=7)
    axes.set_xlabel("task", fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
