"""Pictures of where instances leave a network of early exits, in the end and over training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from routing_gym.experiments.engine.figures import save
from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.papers.figures import column_of, patches, titled
from routing_gym.experiments.papers.reproduction import Runs
from routing_gym.experiments.papers.tables import price_text
from routing_gym.networks import EXIT

RADIUS = 0.46
"""Of the largest circle, where neighbours are 1 apart."""

INCH = 0.72
"""From one to the next."""

RIGHT_WRONG = {"right": "#4c9f70", "wrong": "#d1495b"}
DIGITS = dict(zip("01234", ("#08306b", "#2171b5", "#6baed6", "#41ae9c", "#005a50"), strict=True))
PHOTOGRAPHS = {"airplane": "#7f2704", "automobile": "#d94801", "deer": "#fd8d3c", "horse": "#e7298a", "frog": "#fdbe3c"}
HYBRID = DIGITS | PHOTOGRAPHS
"""Cold colours for the digits of the hybrid data, warm ones for its photographs."""

Way = tuple[int, int]


def dataflow(records: Runs, path: Path, title: str) -> None:
    """Draw networks as their ways out, a circle each, whose area is the share of examples that leave there.

    As Figs. 6 and 7 of McGill and Perona (2017): on the left a circle is divided into right and wrong, on the right
    among the classes. Chains stand one below the other, a row for each; a tree is drawn with its branches. All are of
    one structure, and have `exits`, `ways_out`, `decisions` and the price `x`.
    """
    places, edges = layout(records[0])
    wide, high = (int(max(along)) + 1 for along in zip(*places.values(), strict=True))
    figure = titled(title, 2 * wide * INCH + 2.5, max(2.8, len(records) * (high + 0.3) * INCH + 1.0))  # or the legend's
    grid = figure.subplots(len(records), 2, squeeze=False, sharex=True)
    ways = sorted(places)
    counts = [np.array(record["exits"])[tuple(zip(*ways, strict=True))] for record in records]  # (W, C, wrong or right)
    shares = [count.sum((1, 2)) / count.sum() for count in counts]
    largest = np.max(shares)
    num_classes = counts[0].shape[1]
    classes = HYBRID if num_classes == len(HYBRID) else {str(i): f"C{i % 10}" for i in range(num_classes)}
    for (left, right), record, count, share in zip(grid, records, counts, shares, strict=True):
        for axes, divided, colors in ((left, count.sum(1)[:, ::-1], RIGHT_WRONG), (right, count.sum(2), classes)):
            for edge in edges:
                axes.plot(*zip(*(places[way] for way in edge), strict=True), color="0.75", linewidth=1, zorder=0)
            axes.plot(*zip(*places.values(), strict=True), ".", color="0.55", markersize=3, zorder=1)
            for way, part, pieces in zip(ways, share, divided, strict=True):
                if part:
                    pie = {"center": places[way], "radius": RADIUS * np.sqrt(part / largest)}
                    axes.pie(pieces, colors=colors.values(), startangle=90, counterclock=False, frame=True, **pie)
            axes.set(xlim=(-0.6, wide - 0.4), ylim=(-0.72, high - 0.45), aspect="equal", yticks=[])
            axes.set_xticks(range(wide), [str(column + 1) for column in range(wide)])
            axes.tick_params(length=0, labelsize=8)
            axes.spines[:].set_visible(False)
        for (x, y), part in zip((places[way] for way in ways), share, strict=True):
            if part >= 0.005:
                below = y - max(RADIUS * np.sqrt(part / largest), 0.1) - 0.03
                left.text(x, below, f"{100 * part:.0f}", ha="center", va="top", fontsize=6)
        left.set_ylabel(f"k_cpt = {price_text(record['x'])}", rotation=0, ha="right", va="center", fontsize=9)
    for axes, what in zip(grid[0], ("right or wrong; share of all examples, %", "by class"), strict=True):
        axes.set_title(what, fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("columns run", fontsize=8)
    handles = [*patches(RIGHT_WRONG), Patch(alpha=0, label=""), *patches(classes)]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)


def layout(record: Record) -> tuple[dict[Way, tuple[float, float]], list[tuple[Way, Way]]]:
    """Place the ways out of a network of early exits: depth to the right, branches one above the other.

    Args:
        record: With the `next` of its `decisions`, whose choice 0 classifies.

    Returns:
        Where each way out is, `(x, y)`, the first branch uppermost, and which follows which.
    """
    places: dict[Way, tuple[float, float]] = {}
    edges: list[tuple[Way, Way]] = []
    rows = 0

    def place(way: Way, depth: int) -> float:
        nonlocal rows
        number, choice = way
        onward = enumerate(record["decisions"][number]["next"]) if choice == 0 else ()
        following = [(number, turn) if target == EXIT else (target, 0) for turn, target in onward if turn > 0]
        edges.extend((way, after) for after in following)
        if following:
            height = float(np.mean([place(after, depth + 1) for after in following]))
        else:
            height, rows = float(-rows), rows + 1
        places[way] = float(depth), height
        return height

    place((0, 0), 0)
    return {way: (x, y + rows - 1) for way, (x, y) in places.items()}, edges


def exits_over_training(records: Runs, path: Path, title: str) -> None:
    """Draw the share of examples that leave by each way out after each epoch, a strip for each price `x` (Fig. 8).

    All are of one structure, and have `exits` in their curves.
    """
    ways = len(records[0]["ways_out"])
    shares = []
    for record in records:
        counts = np.array([epoch or [np.nan] * ways for epoch in record["curve"]["exits"]], dtype=float)
        shares.append(counts / counts.sum(1, keepdims=True))
    figure = titled(title, 7.2, 1.05 * len(records) + 1.1)
    strips = column_of(figure, len(records), sharex=True)
    largest = max(np.nanmax(share) for share in shares)
    for axes, record, share in zip(strips, records, shares, strict=True):
        edges = np.arange(len(share) + 1) + 0.5
        mesh = axes.pcolormesh(edges, np.arange(ways + 1) + 0.5, share.T, cmap="viridis", vmin=0, vmax=largest)
        axes.set_yticks(range(1, ways + 1), [str(way) if way % 2 else "" for way in range(1, ways + 1)])
        axes.set_ylabel("way out", fontsize=8)
        axes.set_title(f"k_cpt = {price_text(record['x'])}", fontsize=9, loc="left", pad=3)
        axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch", fontsize=9)
    bar = figure.colorbar(mesh, ax=list(strips), aspect=30, pad=0.02)
    bar.set_label(f"share of {records[0]['curve']['judged_on']} examples", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    save(figure, path)
