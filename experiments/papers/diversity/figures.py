"""Figures of Ramachandran and Le (2019), and of who uses which expert where and when, drawn from recorded runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from routing_gym.experiments.engine.figures import learning_curves, save
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.diversity.claims import counts_of
from routing_gym.experiments.papers.reproduction import Drawing

COLORS = [f"C{number}" for number in range(10)]
PANELS = 8
"""Decisions shown over training."""


def draw(drawing: Drawing) -> list[Path]:
    """Draw the figures of a group; return their files."""
    group, own, titled = drawing.group, drawing.records, drawing.title
    drawn = [drawing.path(group)]
    if group == "mnist":
        classes_and_experts(own[0], drawn[0], titled)
    elif group == "agents":
        accuracy_and_cost(own, drawn[0], titled)
    else:
        learning_curves(own, drawn[0], titled)
    gated = [runs[0] for runs in by_label(own).values() if runs[0]["agent"] == "top-k"]
    if group in ("omniglot", "few-steps", "depth") and gated:
        drawn.append(drawing.path(f"{group}-experts"))
        expert_use_over_depth(gated, drawn[-1], f"{titled}: who is used where")
    if group != "agents" and gated and _epochs_known(gated[0]) > 1:
        drawn.append(drawing.path(f"{group}-training"))
        name = f"{gated[0]['label']} ({gated[0]['settings']})"
        expert_use_over_training(gated[0], drawn[-1], f"{name}: use over training")
    return drawn


def classes_and_experts(record: Record, path: Path, title: str) -> None:
    """Draw both panels of Fig. 4: where every class goes, and who comes to every expert.

    Args:
        record: A run of one decision.
        path: The picture.
        title: Its title.
    """
    counts = counts_of(record)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2)
    classes, experts = ([f"{word} {i}" for i in range(first, n + first)] for word, first, n in (
        ("class", 0, len(counts)), ("expert", 1, counts.shape[1])))  # fmt: skip
    _stacked(left, _shares(counts), classes, experts, "share of experts per class")
    _stacked(right, _shares(counts.T), experts, classes, "share of classes per expert")
    save(figure, path)


def expert_use_over_depth(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw every expert's share of all weight, decision by decision; a row of bars per network and kind of decision.

    Experts of one name have one colour, and a line between them.

    Args:
        records: One per network.
        path: The picture.
        title: Its title.
    """
    rows = [(record, kind) for record in records for kind in _kinds(record)]
    figure = Figure(figsize=(8.5, 0.7 + 1.75 * len(rows)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, (record, kind) in zip(panels, rows, strict=True):
        numbers = _kinds(record)[kind]
        colors = _colors(records, kind)
        use = np.array(record["use"])[numbers]
        for place, (number, shares) in enumerate(zip(numbers, use, strict=True)):
            names = _names(record, number)
            below = 0.0
            for name, share in zip(names, shares, strict=False):
                axes.bar(place, share, 0.8, below, color=colors[name], edgecolor="white", linewidth=0.7)
                below += share
        axes.set_title(record["label"] + (f": {kind}" if kind else ""), fontsize=9, loc="left")
        _depth_axis(axes, record, numbers)
        own = {name for number in numbers for name in _names(record, number)}
        _legend(axes, {name: color for name, color in colors.items() if name in own})
    save(figure, path)


def expert_use_over_training(record: Record, path: Path, title: str) -> None:
    """Draw every expert's share of all weight after every epoch, in some decisions from the first to the last.

    Args:
        record: A run of two epochs or more; where all its experts are of one name they are numbered.
        path: The picture.
        title: Its title.
    """
    if len({name for names in record["experts"] for name in names}) == 1:
        record = {**record, "experts": []}
    known = [i for i, use in enumerate(record["curve"]["use"]) if use is not None]
    epochs = np.array(record["curve"]["epoch"])[known]
    use = np.array([record["curve"]["use"][i] for i in known])
    kinds = _kinds(record)
    rows = [(kind, _some(numbers, PANELS)) for kind, numbers in kinds.items()]
    columns = min(4, max(len(numbers) for _, numbers in rows))
    heights = [-(-len(numbers) // columns) for _, numbers in rows]
    figure = Figure(figsize=(max(6.5, 2.3 * columns + 1.6), 0.8 + 1.7 * sum(heights)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(sum(heights), columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat:
        axes.axis("off")
    for first, (kind, numbers) in zip(np.cumsum([0, *heights]), rows, strict=False):
        colors = _colors([record], kind)
        for place, number in enumerate(numbers):
            axes = grid[first + place // columns, place % columns]
            axes.axis("on")
            names = _names(record, number)
            shares = use[:, number, : len(names)].T
            of_names = [colors[name] for name in names]
            axes.stackplot(epochs, shares, colors=of_names, edgecolor="white", linewidth=0.5)
            axes.set_xlim(epochs[0], epochs[-1])
            axes.set_ylim(0, 1)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.set_title(record["decisions"][number]["name"], fontsize=8)
            axes.tick_params(labelsize=7)
        _legend(grid[first, columns - 1], colors)
    for axes in grid[-1]:
        axes.set_xlabel("epoch", fontsize=8)
    figure.supylabel("share of weight", fontsize=8)
    save(figure, path)


def accuracy_and_cost(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw every agent's accuracy as a bar and write what an instance costs, a panel per network.

    Args:
        records: With `series`, the agent, and `part`, the network.
        path: The picture.
        title: Its title.
    """
    parts = list(dict.fromkeys(record["part"] for record in records))
    agents = list(dict.fromkeys(record["series"] for record in records))
    figure = Figure(figsize=(2.6 + 3.9 * len(parts), 1.2 + 0.3 * len(agents)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False, sharey=True)[0], parts, strict=True):
        for place, agent in enumerate(agents):
            runs = [record for record in records if (record["series"], record["part"]) == (agent, part)]
            if not runs:
                axes.text(1, place, "refused or not run", va="center", fontsize=7.5, color="0.45", style="italic")
                continue
            accuracy = [100 * run["test_accuracy"] for run in runs]
            mean, macs = float(np.mean(accuracy)), np.mean([run["macs"] for run in runs]) / 1e6
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
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _stacked(axes: Axes, shares: np.ndarray, names: Sequence[str], parts: Sequence[str], title: str) -> None:
    """Draw `(rows, parts)` shares as bars that lie on their side, the first row at the bottom."""
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
    axes.spines[["top", "right"]].set_visible(False)


def _epochs_known(record: Record) -> int:
    """Return after how many epochs the use of experts was written down."""
    return sum(use is not None for use in record["curve"]["use"])


def _shares(counts: np.ndarray) -> np.ndarray:
    """Return rows that add up to 1, or are 0."""
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


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


def _colors(records: Sequence[Record], kind: str) -> dict[str, str]:
    """Return a colour for each name of the experts at one kind of decision."""
    names = dict.fromkeys(n for r in records for number in _kinds(r).get(kind, ()) for n in _names(r, number))
    return {name: COLORS[place % 10] for place, name in enumerate(names)}


def _some(numbers: Sequence[int], most: int) -> list[int]:
    """Return at most so many, evenly, the first and the last among them."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / (most - 1))] for i in range(most)]


def _depth_axis(axes: Axes, record: Record, numbers: Sequence[int]) -> None:
    """Name the decisions, or every sixth or so where there are many."""
    names = [record["decisions"][number]["name"].partition(": ")[0] for number in numbers]
    shown = range(0, len(names), -(-len(names) // 8))
    axes.set_xticks(list(shown), [names[i] for i in shown], fontsize=7)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 1)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_ylabel("share of weight", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes, colors: dict[str, str]) -> None:
    """Name the colours to the right of a panel, the lowest bar's last."""
    patches = [Patch(color=color, label=name) for name, color in reversed(colors.items())]
    axes.legend(handles=patches, fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1.05))
