"""The figures of Tissera et al., drawn from recorded runs and from the checkpoint of a cross-connected network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from routing_gym.experiments.engine.figures import learning_curves, save
from routing_gym.experiments.engine.records import by_label
from routing_gym.experiments.engine.statistics import half_interval
from routing_gym.experiments.papers.figures import dashed, panels
from routing_gym.experiments.papers.parallel_paths.drawings import look_into
from routing_gym.experiments.papers.parallel_paths.results import by_series, ensembles
from routing_gym.experiments.papers.parallel_paths.rows import CNNS, DATA, QUOTED, RESNETS, routed
from routing_gym.experiments.papers.reproduction import Drawing, Runs, among, distinct, mean_of
from routing_gym.experiments.train import load_with_env

KINDS = {"CP": ("#2ca02c", "cross-prediction"), "CC": ("#d62728", "cross-connection"), "": ("#1f77b4", "others")}
"""Colours as in Fig. 7, and names, by how the name of a network ends."""
LOOKED_INTO = routed(2, "CC")
"""The network whose gates are drawn."""
SAME_SIZE = 0.1
"""Share of a network's parameters up to which the paper's is taken for one of its size, and drawn beside it."""

Point = tuple[float, float, str, str]
"""Its place, its name and the colour of that."""


def draw(drawing: Drawing) -> None:
    """Draw the figures of a group."""
    group, own = drawing.group, drawing.records
    # A picture of Table 2, of each data set of Table 3, or of each network of hard routes.
    for part in distinct(own, "part"):
        if group != "hard" or part not in DATA:
            # What shares its tensors out stands with the hard routes of the same network.
            shown = by_series([record for record in own if part in (record["part"], record["label"])])
            drawing.add(f"{group}-curves-{part.lower()}", learning_curves, shown, f"{part} ({drawing.settings})")
    if group == "hard":
        if hard := [record for record in own if record["part"] not in DATA]:
            drawing.add(f"{group}-live-paths", _live_paths, hard)
        return
    known = own if group == "resnet" else [*own, *ensembles(own)]
    drawing.add(f"{group}-parameters", _accuracy_and_parameters, known, quoted=group == "resnet")
    checkpoints = [Path(record["folder"]) / "checkpoint.pt" for record in among(own, label=LOOKED_INTO)[:1]]
    if group == "cnn" and checkpoints and checkpoints[0].exists():
        look_into(load_with_env(checkpoints[0]), drawing, f"{LOOKED_INTO} ({drawing.settings})")


def _accuracy_and_parameters(records: Runs, path: Path, title: str, *, quoted: bool) -> None:
    """Draw accuracy and its interval against parameters as in Fig. 7, a panel for each data set.

    Beside it the paper's, of networks as large as its own, and those that Table 3 quotes from others if `quoted`.
    """
    parts = [data for data in DATA if among(records, part=data)]
    figure, axes_of = panels(title, parts, 7.5 * len(parts), 5.5)
    printed = quoted
    for part, axes in axes_of.items():
        points: list[Point] = []
        for label, runs in by_label(by_series(among(records, part=part))).items():
            end = label.rpartition("-")[2]
            color, _ = KINDS.get(end, KINDS[""])
            size, accuracy = mean_of(runs, "parameters") / 1e6, 100 * mean_of(runs, "test_accuracy")
            theirs = {**CNNS, **RESNETS}[label]
            error = theirs.error_on(part)
            if error is not None and abs(size - theirs.parameters) < SAME_SIZE * size:
                axes.plot([size, size], [accuracy, 100 - error], color="0.85", linewidth=0.8, zorder=0)
                axes.plot(size, 100 - error, "o", markerfacecolor="none", color=color)
                printed = True
            half = half_interval([100 * run["test_accuracy"] for run in runs])
            axes.errorbar(size, accuracy, half, fmt="o", color=color)
            points.append((size, accuracy, label, color))
        for label, others in QUOTED.items() if quoted else ():
            if (error := others.error_on(part)) is not None:
                axes.plot(others.parameters, 100 - error, "o", markerfacecolor="none", color=KINDS[""][0])
                points.append((others.parameters, 100 - error, label, "0.55"))
        axes.margins(0.14, 0.08)
        axes.set(xlabel="parameters, M", ylabel="test accuracy, %")
        axes.grid(alpha=0.3)
        _write_beside(axes, points)
    shown = [(color, color, name) for color, name in KINDS.values()]
    if printed:
        shown += [("0.4", "0.4", "ours"), ("0.4", "none", "printed")]
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, markerfacecolor=fill, label=name)
        for color, fill, name in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    save(figure, path)


def _write_beside(axes: Axes, points: list[Point]) -> None:
    """Write the names of points to their right, above those of lower points that are in the way."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    written: list[tuple[float, float]] = []
    for x, y, name, color in sorted(points, key=lambda point: point[1]):
        beside = [other for start, other in written if abs(start - x) < 0.15 * (right - left)]
        at = max([y, *(other + 0.03 * (high - low) for other in beside)])
        written.append((x, at))
        axes.annotate(f"  {name}", (x, at), va="center", fontsize=7, color=color, annotation_clip=False)


def _live_paths(records: Runs, path: Path, title: str) -> None:
    """Draw how many paths an image runs on average behind every decision, a panel for each network."""
    networks, series = distinct(records, "part"), distinct(records, "series")
    figure, axes_of = panels(title, networks, 4.2 * len(networks) + 2.2, 4.2, sharey=True)
    lines: dict[str, Line2D] = {}
    for network, axes in axes_of.items():
        own = among(records, part=network)
        for number, name in enumerate(series):
            if runs := among(own, series=name):
                live = np.mean([run["live_paths"] for run in runs], 0)
                (line,) = axes.plot(live, marker="o", markersize=4, linestyle=dashed(number), color=f"C{number}")
                lines[name] = line
        decisions = [decision["name"] for decision in own[0]["decisions"]]
        axes.set_xticks(range(len(decisions)), decisions, rotation=30, ha="right", fontsize=8)
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0.9)
    figure.supylabel("paths an image runs, mean")
    figure.legend(list(lines.values()), list(lines), loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)
