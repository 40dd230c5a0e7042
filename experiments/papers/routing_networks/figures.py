"""The figures of Routing Networks (Rosenbaum et al. 2018), drawn from recorded runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from routing_gym.experiments.engine.figures import learning_curves, routing_maps, save
from routing_gym.experiments.engine.records import by_label, read_arrays
from routing_gym.experiments.papers.figures import column_of, dashed, row_of, single, titled
from routing_gym.experiments.papers.reproduction import Drawing, Runs, among, distinct, mean_of
from routing_gym.experiments.papers.routing_networks.rows import BASELINES, SHARED

BLOCK = 7
"""Whose taking is drawn over time, as in Fig. 10."""


def draw(drawing: Drawing) -> None:
    """Draw the figures of a group."""
    group, own = drawing.group, drawing.records
    along_an_axis = {"rho": _against_rho, "first-tasks": _first_tasks}
    drawing.add(group, along_an_axis.get(group, learning_curves), own)
    if group not in along_an_axis:
        routed = [run for run in own if run["label"] not in (*BASELINES, SHARED)]  # of others there is no choice
        drawing.add(f"{group}-routing_maps", routing_maps, routed or own, f"{drawing.title}: who takes which block")
    for record in among(own, agent="wpl", seed=0) if group in ("cifar", "mnist") else ():
        policies, label = Path(record["folder"]) / "policies.npz", record["label"]
        if policies.exists():
            drawing.add(f"{group}-policies", _policies_over_time, policies, f"{label}: the policy of each task's agent")
            title = f"{label}: taking block {BLOCK} at the first decision"
            drawing.add(f"{group}-block_{BLOCK}", _block_over_time, policies, title)


def _policies(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the policies `(S, T, A)` of a run at the first decision, and after how many instances `(S,)`."""
    saved = read_arrays(path, policies=4, episodes=1)
    return saved["policies"][:, :, 0].astype(float), saved["episodes"]


def _policies_over_time(saved: Path, out: Path, title: str) -> None:
    """Draw how each task's policy develops (Fig. 9): a strip per task, a row per block."""
    policies, episodes = _policies(saved)
    _, num_tasks, num_choices = policies.shape
    figure = titled(title, 7, 0.45 * num_tasks + 1.2)
    strips = column_of(figure, num_tasks, sharex=True)
    edges = np.append(episodes, episodes[-1] + max(1, episodes[-1] - (episodes[-2] if len(episodes) > 1 else 0)))
    for task, axes in enumerate(strips):
        axes.pcolormesh(edges, np.arange(num_choices + 1), policies[:, task].T, cmap="Greys", vmin=0, vmax=1)
        axes.set_ylabel(f"T{task + 1}", rotation=0, ha="right", va="center", fontsize=8)
        axes.set_yticks([])
        axes.tick_params(labelsize=8)
    strips[-1].set_xlabel("instances routed; each strip: blocks from bottom to top, darker is likelier", fontsize=9)
    save(figure, out)


def _block_over_time(saved: Path, out: Path, title: str) -> None:
    """Draw how likely each task's agent is to take one block, over time (Fig. 10)."""
    policies, episodes = _policies(saved)
    names = {"xlabel": "instances routed", "ylabel": "probability", "ylim": (-0.02, 1.02)}
    figure, axes = single(title, 7, 3.6, **names)
    chance = policies[:, :, min(BLOCK, policies.shape[2] - 1)]
    axes.plot(episodes, chance, linewidth=1.2, label=[f"T{task + 1}" for task in range(chance.shape[1])])
    figure.legend(loc="outside right center", fontsize=7, frameon=False, ncols=1 + chance.shape[1] // 15)
    save(figure, out)


def _against_rho(records: Runs, out: Path, title: str) -> None:
    """Draw test accuracy against ρ (Fig. 12), every seed as a point and their mean as a line."""
    figure, axes = single(title, 5.5, 3.6, xlabel="ρ", ylabel="test accuracy, %")
    points = sorted((record["x"], 100 * record["test_accuracy"]) for record in records)
    places = sorted(distinct(records, "x"))
    axes.plot(places, [100 * mean_of(among(records, x=x), "test_accuracy") for x in places], linewidth=1.8)
    axes.plot(*zip(*points, strict=True), "o", markersize=4, color="black", alpha=0.6)
    save(figure, out)


def _first_tasks(records: Runs, out: Path, title: str) -> None:
    """Draw learning curves on the first n tasks, a panel for each n (Fig. 15)."""
    counts = sorted(distinct(records, "x"))
    figure = titled(title, 3.2 * len(counts), 3.6)
    for axes, count in zip(row_of(figure, len(counts)), counts, strict=True):
        for number, (label, runs) in enumerate(by_label(among(records, x=count)).items()):
            curves = 100 * np.array([run["curve"]["validation_accuracy"] for run in runs])
            name = label.rpartition(",")[0]
            axes.plot(runs[0]["curve"]["epoch"], curves.mean(0), linestyle=dashed(number), label=name)
        axes.set_title(f"first {count:g} tasks", fontsize=9)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    save(figure, out)
