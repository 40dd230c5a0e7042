"""The figures of Tissera et al., drawn from recorded runs and from the checkpoint of a cross-connected network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from routing_gym.experiments.engine.figures import learning_curves, save
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.figures import dashed, row_of, titled
from routing_gym.experiments.papers.parallel_paths.drawings import look_into
from routing_gym.experiments.papers.parallel_paths.results import ensembles
from routing_gym.experiments.papers.parallel_paths.rows import CNNS, DATA, QUOTED, RESNETS, routed
from routing_gym.experiments.papers.reproduction import Drawing, Runs, among, distinct, mean_of
from routing_gym.experiments.train import load_with_env

COLORS = {"CP": "#2ca02c", "CC": "#d62728", "": "#1f77b4"}
"""As in Fig. 7: cross-predictions green, cross-connections red, others blue."""
KINDS = {"CP": "cross-prediction", "CC": "cross-connection", "": "others"}
LOOKED_INTO = routed(2, "CC")
"""The network whose gates are drawn."""


def draw(drawing: Drawing) -> None:
    """Draw the figures of a group."""
    group, own = drawing.group, drawing.records
    # A picture of Table 2, of each data set of Table 3, or of each network of hard routes.
    for part in distinct(own, "part"):
        if group != "hard" or part not in DATA:
            # What shares its tensors out stands with the hard routes of the same network.
            shown = _by_series([record for record in own if part in (record["part"], record["label"])])
            drawing.add(f"{group}-curves-{part.lower()}", learning_curves, shown, f"{part} ({drawing.settings})")
    if group == "hard":
        if with_live_paths := [record for record in own if "live_paths" in record]:
            drawing.add(f"{group}-live-paths", _live_paths, with_live_paths)
        return
    known = own if group == "resnet" else [*own, *ensembles(own)]
    drawing.add(f"{group}-parameters", _accuracy_and_parameters, known, by_network=group == "resnet")
    checkpoints = [Path(record["folder"]) / "checkpoint.pt" for record in among(own, label=LOOKED_INTO)[:1]]
    if group == "cnn" and checkpoints and checkpoints[0].exists():
        look_into(load_with_env(checkpoints[0]), drawing, f"{LOOKED_INTO} ({drawing.settings})")


def _by_series(records: Runs) -> list[Record]:
    return [{**record, "label": record["series"]} for record in records]


def _accuracy_and_parameters(records: Runs, path: Path, title: str, *, by_network: bool) -> None:
    """Draw accuracy against parameters as in Fig. 7, the paper's above or below ours, a panel for each data set.

    These are the ResNets of Table 3 if `by_network`, or else the networks of Table 2.
    """
    parts = [data for data in DATA if among(records, part=data)]
    figure = titled(title, 7.5 * len(parts), 5.5)
    for axes, part in zip(row_of(figure, len(parts)), parts, strict=True):
        labels: list[tuple[float, float, str, str]] = []
        for label, runs in by_label(_by_series(among(records, part=part))).items():
            color = COLORS[_kind(label)]
            size, accuracy = mean_of(runs, "parameters") / 1e6, 100 * mean_of(runs, "test_accuracy")
            printed = (RESNETS if by_network else CNNS)[label].error_on(part)
            if printed is not None:
                axes.plot([size, size], [accuracy, 100 - printed], color="0.85", linewidth=0.8, zorder=0)
                axes.plot(size, 100 - printed, "o", markerfacecolor="none", color=color)
            axes.plot(size, accuracy, "o", color=color)
            labels.append((size, accuracy, label, color))
        for label, others in QUOTED.items() if by_network else ():
            if (error := others.error_on(part)) is not None:
                axes.plot(others.parameters, 100 - error, "o", markerfacecolor="none", color=COLORS[""])
                labels.append((others.parameters, 100 - error, label, "0.55"))
        axes.margins(0.14, 0.08)
        axes.set(xlabel="parameters, M", ylabel="test accuracy, %", title=part)
        axes.grid(alpha=0.3)
        _write_beside(axes, labels)
    shown = [(COLORS[kind], COLORS[kind], name) for kind, name in KINDS.items()]
    shown += [("0.4", "0.4", "ours"), ("0.4", "none", "printed")]
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, markerfacecolor=fill, label=name)
        for color, fill, name in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    save(figure, path)


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


def _live_paths(records: Runs, path: Path, title: str) -> None:
    """Draw how many paths an image runs on average behind every decision, a panel for each network.

    The network is the records' `part`, or their label where tensors are shared out.
    """
    hard = [record for record in records if record["part"] not in DATA]
    networks, series = distinct(hard, "part") or [records[0]["label"]], distinct(hard, "series")
    figure = titled(title, 4.2 * len(networks) + 2.2, 4.2)
    panels = row_of(figure, len(networks), sharey=True)
    for axes, network in zip(panels, networks, strict=True):
        own = among(hard, part=network)
        for number, name in enumerate(series):
            if runs := among(own, series=name):
                live = np.mean([run["live_paths"] for run in runs], 0)
                axes.plot(live, marker="o", markersize=4, linestyle=dashed(number), color=f"C{number}")
        decisions = [decision["name"] for decision in (own or records)[0]["decisions"]]
        axes.set_xticks(range(len(decisions)), decisions, rotation=30, ha="right", fontsize=8)
        axes.set_title(network, fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("paths an image runs, mean")
    panels[0].set_ylim(bottom=0.9)
    handles = [Line2D([], [], marker="o", markersize=4, color=f"C{n}", label=name) for n, name in enumerate(series)]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)
