"""Figures of Ramachandran and Le (2019), and of who uses which expert where and when, drawn from recorded runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from routing_gym.experiments.engine.figures import learning_curves, save
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.diversity.results import counts_of
from routing_gym.experiments.papers.figures import column_of, despined, patches, row_of, titled
from routing_gym.experiments.papers.reproduction import Drawing, Runs, among, distinct, mean_of

COLORS = [f"C{number}" for number in range(10)]
PANELS = 8
"""Decisions shown over training."""


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
    classes, experts = ([f"{word} {i + first}" for i in range(n)] for word, first, n in zip(
        ("class", "expert"), (0, 1), counts.shape, strict=True))  # fmt: skip
    figure = titled(title, 10, 4.2)
    left, right = row_of(figure, 2)
    _stacked(left, counts, classes, experts, "share of experts per class")
    _stacked(right, counts.T, experts, classes, "share of classes per expert")
    save(figure, path)


def _stacked(axes: Axes, counts: np.ndarray, names: Sequence[str], parts: Sequence[str], title: str) -> None:
    """Draw the shares of `(rows, parts)` counts as bars that lie on their side, the first row at the bottom."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ends = shares.cumsum(1)
    for part, name in enumerate(parts):
        axes.barh(range(len(names)), shares[:, part], 0.8, ends[:, part] - shares[:, part], color=COLORS[part % 10],
                  edgecolor="white", linewidth=0.5, label=name)  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("cumulative share", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    despined(axes)


def _use_over_depth(records: Runs, path: Path, title: str) -> None:
    """Draw every expert's share of all weight, decision by decision; a row of bars per network and kind of decision.

    Experts of one name have one colour, and a line between them.
    """
    rows = [(record, kind) for record in records for kind in _kinds(record)]
    figure = titled(title, 8.5, 0.7 + 1.75 * len(rows))
    for axes, (record, kind) in zip(column_of(figure, len(rows)), rows, strict=True):
        numbers = _kinds(record)[kind]
        colors = _colors(records, kind)
        used = set()
        for place, number in enumerate(numbers):
            below = 0.0
            for name, share in zip(_names(record, number), record["use"][number], strict=False):
                axes.bar(place, share, 0.8, below, color=colors[name], edgecolor="white", linewidth=0.7)
                below += share
                used.add(name)
        axes.set_title(record["label"] + (f": {kind}" if kind else ""), fontsize=9, loc="left")
        # All decisions are named, or every sixth or so where there are many.
        names = [record["decisions"][number]["name"].partition(": ")[0] for number in numbers]
        shown = range(0, len(names), -(-len(names) // 8))
        axes.set_xticks(list(shown), [names[i] for i in shown], fontsize=7)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylim(0, 1)
        axes.tick_params(axis="y", labelsize=7)
        axes.set_ylabel("share of weight", fontsize=8)
        despined(axes)
        _legend(axes, {name: color for name, color in colors.items() if name in used})
    save(figure, path)


def _use_over_training(record: Record, path: Path, title: str) -> None:
    """Draw every expert's share of all weight after every epoch, in some decisions from the first to the last.

    Where all experts of the run are of one name they are numbered.
    """
    if len({name for names in record["experts"] for name in names}) == 1:
        record = {**record, "experts": []}
    known = [i for i, use in enumerate(record["curve"]["use"]) if use is not None]
    epochs = np.array(record["curve"]["epoch"])[known]
    use = np.array([record["curve"]["use"][i] for i in known])
    rows = [(kind, _some(numbers, PANELS)) for kind, numbers in _kinds(record).items()]
    columns = min(4, max(len(numbers) for _, numbers in rows))
    heights = [-(-len(numbers) // columns) for _, numbers in rows]
    figure = titled(title, max(6.5, 2.3 * columns + 1.6), 0.8 + 1.7 * sum(heights))
    grid = figure.subplots(sum(heights), columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat:
        axes.axis("off")
    for first, (kind, numbers) in zip(np.cumsum([0, *heights]), rows, strict=False):
        colors = _colors([record], kind)
        for place, number in enumerate(numbers):
            axes = grid[first + place // columns, place % columns]
            axes.axis("on")
            names = _names(record, number)
            shown = {"colors": [colors[name] for name in names], "edgecolor": "white", "linewidth": 0.5}
            axes.stackplot(epochs, use[:, number, : len(names)].T, **shown)
            axes.set(xlim=(epochs[0], epochs[-1]), ylim=(0, 1))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.set_title(record["decisions"][number]["name"], fontsize=8)
            axes.tick_params(labelsize=7)
        _legend(grid[first, columns - 1], colors)
    for axes in grid[-1]:
        axes.set_xlabel("epoch", fontsize=8)
    figure.supylabel("share of weight", fontsize=8)
    save(figure, path)


def _accuracy_and_cost(records: Runs, path: Path, title: str) -> None:
    """Draw every agent's accuracy as a bar and write what an instance costs, a panel per network."""
    parts, agents = distinct(records, "part"), distinct(records, "series")
    figure = titled(title, 2.6 + 3.9 * len(parts), 1.2 + 0.3 * len(agents))
    for axes, part in zip(row_of(figure, len(parts), sharey=True), parts, strict=True):
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
        axes.set_xlim(0, 135)
        axes.set_xticks(range(0, 101, 20))
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlabel("test accuracy, %; multiply-accumulates per instance", fontsize=8)
        axes.set_title(part, fontsize=9)
        axes.set_yticks(range(len(agents)), agents, fontsize=8)
        axes.set_ylim(len(agents) - 0.4, -0.6)
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


def _colors(records: Runs, kind: str) -> dict[str, str]:
    """Return a colour for each name of the experts at one kind of decision."""
    names = dict.fromkeys(n for r in records for number in _kinds(r).get(kind, ()) for n in _names(r, number))
    return {name: COLORS[place % 10] for place, name in enumerate(names)}


def _some(numbers: Sequence[int], most: int) -> list[int]:
    """Return at most so many, evenly, the first and the last among them."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / (most - 1))] for i in range(most)]


def _legend(axes: Axes, colors: dict[str, str]) -> None:
    """Name the colours to the right of a panel, the lowest bar's last."""
    handles = patches(dict(reversed(colors.items())))
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1.05))
