"""Figures of Ramachandran and Le (2019), and of who uses which expert where and when, drawn from recorded runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

from routing_gym.experiments.engine.figures import learning_curves, save
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.diversity.results import counts_of
from routing_gym.experiments.papers.figures import column_of, despined, panels, patches, titled
from routing_gym.experiments.papers.reproduction import Drawing, Runs, among, distinct, mean_of

COLORS = [f"C{number}" for number in range(10)]
PANELS, COLUMNS = 8, 4
"""Decisions of a kind shown over training, and in a row."""
NAMED = 8
"""Decisions whose names fit below an axis."""


def draw(drawing: Drawing) -> None:
    """Draw the figures of a group."""
    group, own = drawing.group, drawing.records
    drawing.add(group, {"mnist": _classes_and_experts, "agents": _accuracy_and_cost}.get(group, learning_curves), own)
    gated = [runs[0] for runs in by_label(own).values() if runs[0]["agent"] == "top-k"]
    if group in ("omniglot", "few-steps", "depth") and gated:
        drawing.add(f"{group}-experts", _use_over_depth, gated, f"{drawing.title}: who is used where")
    if group != "agents" and gated and sum(use is not None for use in gated[0]["curve"]["use"]) > 1:
        title = f"{gated[0]['label']} ({drawing.settings}): use over training"
        drawing.add(f"{group}-training", _use_over_training, gated[0], title)


def _classes_and_experts(records: Runs, path: Path, title: str) -> None:
    """Draw both panels of Fig. 4, of a run of one decision: where every class goes, and who comes to every expert."""
    counts = counts_of(records[0])
    classes = [f"class {number}" for number in range(len(counts))]
    experts = [f"expert {number + 1}" for number in range(counts.shape[1])]
    figure, axes_of = panels(title, ("share of experts per class", "share of classes per expert"), 10, 4.2)
    left, right = axes_of.values()
    _stacked(left, counts, classes, experts)
    _stacked(right, counts.T, experts, classes)
    save(figure, path)


def _stacked(axes: Axes, counts: np.ndarray, names: Sequence[str], parts: Sequence[str]) -> None:
    """Draw the shares of `(rows, parts)` counts as bars that lie on their side, the first row at the bottom."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    starts = shares.cumsum(1) - shares
    for color, part, share, start in zip(COLORS, parts, shares.T, starts.T, strict=False):
        axes.barh(names, share, 0.8, start, color=color, edgecolor="white", linewidth=0.5, label=part)
    axes.set(xlim=(0, 1), xlabel="cumulative share")
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    despined(axes)


def _use_over_depth(records: Runs, path: Path, title: str) -> None:
    """Draw every expert's share of all weight, decision by decision; a row of bars per network and kind of decision.

    Experts of one name have one colour, and a line between them.
    """
    rows = [(record, kind, numbers) for record in records for kind, numbers in _kinds(record).items()]
    figure, colors = titled(title, 8.5, 0.7 + 1.75 * len(rows)), _colors(records)
    for axes, (record, kind, numbers) in zip(column_of(figure, len(rows)), rows, strict=True):
        for place, number in enumerate(numbers):
            names = _names(record, number)
            shares = np.array(record["use"][number][: len(names)])
            starts, shown = shares.cumsum() - shares, [colors[name] for name in names]
            axes.bar([place] * len(names), shares, 0.8, starts, color=shown, edgecolor="white", linewidth=0.7)
        axes.set_title(record["label"] + (f": {kind}" if kind else ""), fontsize=9, loc="left")
        ticks = range(0, len(numbers), -(-len(numbers) // NAMED))
        named = [record["decisions"][numbers[place]]["name"].partition(": ")[0] for place in ticks]
        axes.set_xticks(list(ticks), named)
        axes.set(xlim=(-0.6, len(numbers) - 0.4), ylim=(0, 1))
        axes.tick_params(labelsize=7)
        despined(axes)
    figure.supylabel("share of weight", fontsize=8)
    figure.legend(handles=patches(colors)[::-1], fontsize=7, frameon=False, loc="outside right upper")
    save(figure, path)


def _use_over_training(record: Record, path: Path, title: str) -> None:
    """Draw every expert's share of all weight after every epoch, in some decisions from the first to the last.

    Where all experts of the run are of one name they are numbered.
    """
    if len({name for names in record["experts"] for name in names}) == 1:
        record = {**record, "experts": []}
    curve, colors = record["curve"], _colors([record])
    known = [(epoch, use) for epoch, use in zip(curve["epoch"], curve["use"], strict=True) if use is not None]
    epochs, use = [epoch for epoch, _ in known], np.array([use for _, use in known])
    shown = [number for numbers in _kinds(record).values() for number in _some(numbers)]
    height, width = -(-len(shown) // COLUMNS), min(COLUMNS, len(shown))
    figure = titled(title, max(6.5, 2.3 * width + 1.6), 0.8 + 1.7 * height)
    grid = figure.subplots(height, width, squeeze=False, sharex=True, sharey=True).flat
    for axes in grid[len(shown) :]:
        axes.axis("off")
    for axes, number in zip(grid, shown, strict=False):
        names = _names(record, number)
        filled = {"colors": [colors[name] for name in names], "edgecolor": "white", "linewidth": 0.5}
        axes.stackplot(epochs, use[:, number, : len(names)].T, **filled)
        axes.set(xlim=(epochs[0], epochs[-1]), ylim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_title(record["decisions"][number]["name"], fontsize=8)
        axes.tick_params(labelsize=7)
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("share of weight", fontsize=8)
    figure.legend(handles=patches(colors)[::-1], fontsize=7, frameon=False, loc="outside right upper")
    save(figure, path)


def _accuracy_and_cost(records: Runs, path: Path, title: str) -> None:
    """Draw every agent's accuracy as a bar and write what an instance costs, a panel per network."""
    parts, agents = distinct(records, "part"), distinct(records, "series")
    size = 2.6 + 3.9 * len(parts), 1.2 + 0.3 * len(agents)
    figure, axes_of = panels(title, parts, *size, sharey=True)
    for part, axes in axes_of.items():
        for place, agent in enumerate(agents):
            runs = among(records, series=agent, part=part)
            if not runs:
                axes.text(1, place, "refused or not run", va="center", fontsize=7.5, color="0.45", style="italic")
                continue
            accuracy = [100 * run["test_accuracy"] for run in runs]
            mean, macs = float(np.mean(accuracy)), mean_of(runs, "macs") / 1e6
            axes.barh(place, mean, 0.7, color=COLORS[0] if runs[0]["agent"] == "top-k" else "0.72")
            axes.plot(accuracy, [place] * len(accuracy), ".", color="black", markersize=4)
            axes.text(mean + 1.5, place, f"{mean:.1f} %, {macs:.1f} M", va="center", fontsize=7.5)
        axes.set(xlim=(0, 135), xticks=range(0, 101, 20), ylim=(len(agents) - 0.4, -0.6))
        axes.set_yticks(range(len(agents)), agents)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("test accuracy, %; multiply-accumulates per instance", fontsize=8)
        despined(axes)
    save(figure, path)


def _kinds(record: Record) -> dict[str, list[int]]:
    """Return the numbers of the decisions of each kind: what a name says behind a colon, as in cells."""
    kinds: dict[str, list[int]] = {}
    for number, decision in enumerate(record["decisions"]):
        kinds.setdefault(decision["name"].partition(": ")[2], []).append(number)
    return kinds


def _names(record: Record, number: int) -> list[str]:
    """Return the names of a decision's experts, numbers where they have none."""
    if record["experts"]:
        return record["experts"][number]
    return [f"expert {choice + 1}" for choice in range(len(record["decisions"][number]["next"]))]


def _colors(records: Runs) -> dict[str, str]:
    """Return a colour for each name of experts."""
    names = dict.fromkeys(n for r in records for number in range(len(r["decisions"])) for n in _names(r, number))
    shades = COLORS if len(names) <= len(COLORS) else [f"{to_hex(colormaps['tab20'](place))}" for place in range(20)]
    return {name: shades[place % len(shades)] for place, name in enumerate(names)}


def _some(numbers: Sequence[int]) -> list[int]:
    """Return at most `PANELS` of them, evenly, the first and the last among them."""
    places = np.linspace(0, len(numbers) - 1, min(len(numbers), PANELS))
    return [numbers[round(place)] for place in places]
