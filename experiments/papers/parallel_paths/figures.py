"""The figures of Tissera et al., drawn from recorded runs and from the checkpoint of a cross-connected network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from routing_gym.experiments.engine.figures import learning_curves, save
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.parallel_paths.drawings import (
    class_gates,
    maximal_images,
    path_weight_histograms,
    routes,
)
from routing_gym.experiments.papers.parallel_paths.gates import gates_of
from routing_gym.experiments.papers.parallel_paths.labels import CNNS, DATA, QUOTED, RESNETS, Printed, routed
from routing_gym.experiments.papers.parallel_paths.tables import ensembles
from routing_gym.experiments.papers.reproduction import Drawing
from routing_gym.experiments.train import load_with_env

COLORS = {"CP": "#2ca02c", "CC": "#d62728", "": "#1f77b4"}
"""As in Fig. 7: cross-predictions green, cross-connections red, others blue."""
KINDS = {"CP": "cross-prediction", "CC": "cross-connection", "": "others"}
LOOKED_INTO = routed(2, "CC")
"""The network whose gates are drawn."""


def draw(drawing: Drawing) -> list[Path]:
    """Draw the figures of a group; return their files."""
    group, own = drawing.group, drawing.records
    drawn = _curves(drawing)
    if group == "hard":
        with_live_paths = [record for record in own if "live_paths" in record]
        if with_live_paths:
            drawn.append(drawing.path(f"{group}-live-paths"))
            live_paths(with_live_paths, drawn[-1], drawing.title)
        return drawn
    drawn.append(drawing.path(f"{group}-parameters"))
    known = own if group == "resnet" else [*own, *ensembles(own)]
    accuracy_and_parameters(known, drawn[-1], drawing.title, by_network=group == "resnet")
    looked_into = [record for record in own if record["label"] == LOOKED_INTO]
    if group == "cnn" and looked_into:
        drawn += look_into(Path(looked_into[0]["folder"]) / "checkpoint.pt", drawing)
    return drawn


def _curves(drawing: Drawing) -> list[Path]:
    """Draw learning curves: of Table 2, of each data set of Table 3, or of each network of hard routes."""
    parts = dict.fromkeys(record["part"] for record in drawing.records)
    drawn = []
    for part in parts:
        # What shares its tensors out stands with the hard routes of the same network.
        own = [record for record in drawing.records if part in (record["part"], record["label"])]
        if drawing.group == "hard" and part in DATA:
            continue
        drawn.append(drawing.path(f"{drawing.group}-curves-{part.lower()}"))
        named = [{**record, "label": record["series"]} for record in own]
        learning_curves(named, drawn[-1], f"{part} ({own[0]['settings']})")
    return drawn


def look_into(checkpoint: Path, drawing: Drawing) -> list[Path]:
    """Draw Figs. 8 to 11 of the network in a checkpoint; return the files, none where there is no checkpoint."""
    if not checkpoint.exists():
        return []
    agent = load_with_env(checkpoint)
    found = gates_of(agent)
    names = ("routes", "gates", "gates-by-class", "weights")
    files = [drawing.path(f"{drawing.group}-{name}") for name in names]
    title = f"{LOOKED_INTO} ({drawing.records[0]['settings']})"
    routes(agent, found, files[0], title)
    maximal_images(agent, found, files[1], title)
    class_gates(agent, found, files[2], title)
    path_weight_histograms(agent, files[3], title)
    return files


def accuracy_and_parameters(records: Sequence[Record], path: Path, title: str, *, by_network: bool) -> None:
    """Draw accuracy against parameters as in Fig. 7, the paper's above or below ours, a panel for each data set.

    Args:
        records: Each with its data set as `part`.
        path: The picture.
        title: Its title.
        by_network: Whether these are the ResNets of Table 3, or else the networks of Table 2.
    """
    parts = [data for data in DATA if any(record["part"] == data for record in records)]
    figure = Figure(figsize=(7.5 * len(parts), 5.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, part in zip(np.atleast_1d(figure.subplots(1, len(parts))), parts, strict=True):
        own = [{**record, "label": record["series"]} for record in records if record["part"] == part]
        labels: list[tuple[float, float, str, str]] = []
        for label, runs in by_label(own).items():
            color = COLORS[_kind(label)]
            size = float(np.mean([run["parameters"] for run in runs])) / 1e6
            accuracy = 100 * float(np.mean([run["test_accuracy"] for run in runs]))
            printed = _error((RESNETS if by_network else CNNS)[label], part)
            if printed is not None:
                axes.plot([size, size], [accuracy, 100 - printed], color="0.85", linewidth=0.8, zorder=0)
                axes.plot(size, 100 - printed, "o", markerfacecolor="none", color=color)
            axes.plot(size, accuracy, "o", color=color)
            labels.append((size, accuracy, label, color))
        for label, others in QUOTED.items() if by_network else ():
            if (error := _error(others, part)) is not None:
                axes.plot(others.parameters, 100 - error, "o", markerfacecolor="none", color=COLORS[""])
                labels.append((others.parameters, 100 - error, label, "0.55"))
        axes.margins(0.14, 0.08)
        axes.set(xlabel="parameters, M", ylabel="test accuracy, %", title=part)
        axes.grid(alpha=0.3)
        _write_beside(axes, labels)
    handles = [Line2D([], [], marker="o", linestyle="", color=COLORS[kind], label=KINDS[kind]) for kind in COLORS]
    for fill, name in (("0.4", "ours"), ("none", "printed")):
        handles.append(Line2D([], [], marker="o", linestyle="", color="0.4", markerfacecolor=fill, label=name))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    save(figure, path)


def _error(printed: Printed, part: str) -> float | None:
    return printed.error if part == DATA[0] else printed.cifar100


def _kind(label: str) -> str:
    """Return how a network is crossed: CP, CC or not."""
    end = label.rpartition("-")[2]
    return end if end in COLORS else ""


def _write_beside(axes: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names to the right of points `(x, y, name, colour)`, higher where another name or point is in the way."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    indent, width, gap = 0.012 * (right - left), 0.15 * (right - left), 0.03 * (high - low)
    taken = [(x, x, y) for x, y, _, _ in labels]
    for x, y, name, color in sorted(labels, key=lambda label: label[1]):
        at = y
        for start, end, other in sorted(taken, key=lambda place: place[2]):
            if start < x + width and end > x + indent and abs(other - at) < gap:
                at = other + gap
        taken.append((x + indent, x + width, at))
        axes.annotate(name, (x + indent, at), va="center", fontsize=7, color=color, annotation_clip=False)


def live_paths(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw how many paths an image runs on average behind every decision, a panel for each network.

    Args:
        records: With `live_paths`; the network is their `part`, or their label where tensors are shared out.
        path: The picture.
        title: Its title.
    """
    hard = [record for record in records if record["part"] not in DATA]
    networks = list(dict.fromkeys(record["part"] for record in hard)) or [records[0]["label"]]
    figure = Figure(figsize=(4.2 * len(networks) + 2.2, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    series = list(dict.fromkeys(record["series"] for record in hard))
    panels = np.atleast_1d(figure.subplots(1, len(networks), sharey=True))
    for axes, network in zip(panels, networks, strict=True):
        own = [record for record in hard if record["part"] == network]
        for number, name in enumerate(series):
            runs = [record for record in own if record["series"] == name]
            if runs:
                live = np.mean([run["live_paths"] for run in runs], 0)
                # Lines that lie on each other stay visible.
                dash = (number, (6, number % 3 * 2))
                axes.plot(live, marker="o", markersize=4, linestyle=dash, color=f"C{number}")
        shown = own or records
        axes.set_xticks(
            range(len(shown[0]["decisions"])),
            [decision["name"] for decision in shown[0]["decisions"]],
            rotation=30,
            ha="right",
            fontsize=8,
        )
        axes.set_title(network, fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("paths an image runs, mean")
    panels[0].set_ylim(bottom=0.9)
    handles = [Line2D([], [], marker="o", markersize=4, color=f"C{n}", label=name) for n, name in enumerate(series)]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)
