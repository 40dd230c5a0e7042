"""Pictures of where instances leave a network of early exits, in the end and over training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Patch, Wedge
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

RIGHT, WRONG = "#4c9f70", "#d1495b"
DIGITS = ("#08306b", "#2171b5", "#6baed6", "#41ae9c", "#005a50")
PHOTOGRAPHS = ("#7f2704", "#d94801", "#fd8d3c", "#e7298a", "#fdbe3c")
HYBRID_CLASSES = ("0", "1", "2", "3", "4", "airplane", "automobile", "deer", "horse", "frog")

Way = tuple[int, int]


def dataflow(records: Runs, path: Path, title: str) -> None:
    """Draw networks as their ways out, a circle each, whose area is the share of examples that leave there.

    As Figs. 6 and 7 of McGill and Perona (2017): on the left a circle is divided into right and wrong, on the right
    among the classes. Chains stand one below the other, a row for each; a tree is drawn with its branches. All are of
    one structure, and have `exits`, `ways_out`, `decisions` and the price `x`.
    """
    places, edges = layout(records[0])
    wide = max(x for x, _ in places.values()) + 1
    high = max(y for _, y in places.values()) + 1
    rows = len(records)
    height = max(2.8, rows * (high + 0.3) * INCH + 1.0)  # as high as the legend at least
    figure = titled(title, 2 * wide * INCH + 2.5, height)
    grid = figure.subplots(rows, 2, squeeze=False)
    counts = [_counts(record) for record in records]
    shares = [count.sum((1, 2)) / count.sum() for count in counts]
    largest = max(float(share.max()) for share in shares)
    num_classes = counts[0].shape[1]
    hybrid = num_classes == len(HYBRID_CLASSES)
    # Cold colours for the digits of the hybrid data, warm ones for its photographs.
    colors = DIGITS + PHOTOGRAPHS if hybrid else tuple(f"C{number % 10}" for number in range(num_classes))
    for row, (record, count, share) in enumerate(zip(records, counts, shares, strict=True)):
        for column, (divided, palette) in enumerate(((count.sum(1)[:, ::-1], (RIGHT, WRONG)), (count.sum(2), colors))):
            axes = grid[row, column]
            _nodes(axes, places, edges, share, divided, palette, largest, tell_share=column == 0)
            _frame(axes, wide, high, last=row == rows - 1)
        grid[row, 0].set_ylabel(f"k_cpt = {price_text(record['x'])}", rotation=0, ha="right", va="center", fontsize=9)
    grid[0, 0].set_title("right or wrong; share of all examples, %", fontsize=9)
    grid[0, 1].set_title("by class", fontsize=9)
    names = HYBRID_CLASSES if hybrid else tuple(map(str, range(num_classes)))
    handles = [*patches({"right": RIGHT, "wrong": WRONG}), Patch(alpha=0, label="")]
    handles += patches(dict(zip(names, colors, strict=True)))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)


def layout(record: Record) -> tuple[dict[Way, tuple[float, float]], list[tuple[Way, Way]]]:
    """Place the ways out of a network of early exits: depth to the right, branches one above the other.

    Args:
        record: With `ways_out`, and the `next` of its `decisions`, whose choice 0 classifies.

    Returns:
        Where each way out is, `(x, y)`, the first branch uppermost, and which follows which.
    """
    decisions = record["decisions"]
    places: dict[Way, tuple[float, float]] = {}
    edges: list[tuple[Way, Way]] = []
    rows = 0

    def place(way: Way, depth: int) -> float:
        nonlocal rows
        number, choice = way
        heights = []
        for onward, target in enumerate(decisions[number]["next"]):
            if choice == 0 and onward > 0:
                following = (number, onward) if target == EXIT else (target, 0)
                edges.append((way, following))
                heights.append(place(following, depth + 1))
        if not heights:
            heights.append(float(-rows))
            rows += 1
        places[way] = (float(depth), sum(heights) / len(heights))
        return places[way][1]

    place((0, 0), 0)
    return {way: (x, y + rows - 1) for way, (x, y) in places.items()}, edges


def _counts(record: Record) -> np.ndarray:
    """Return `(W, C, 2)`: examples by way out, class, and wrong or right."""
    exits = np.array(record["exits"])
    return np.stack([exits[decision, choice] for decision, choice in record["ways_out"]])


def _nodes(
    axes: Axes,
    places: dict[Way, tuple[float, float]],
    edges: Sequence[tuple[Way, Way]],
    share: np.ndarray,
    divided: np.ndarray,
    palette: Sequence[str],
    largest: float,
    *,
    tell_share: bool,
) -> None:
    """Draw the ways out as circles that are divided among some colours, and lines from each to what follows."""
    for start, end in edges:
        axes.plot(*zip(places[start], places[end], strict=True), color="0.75", linewidth=1, zorder=0)
    for way, part, pieces in zip(sorted(places), share, divided, strict=True):
        x, y = places[way]
        axes.add_patch(Circle((x, y), 0.03, color="0.55", zorder=1))
        if not part:
            continue
        radius = RADIUS * float(np.sqrt(part / largest))
        turns = 90 - 360 * np.concatenate([[0.0], pieces.cumsum() / pieces.sum()])
        for color, start_at, end_at in zip(palette, turns[:-1], turns[1:], strict=True):
            if end_at < start_at:
                axes.add_patch(Wedge((x, y), radius, end_at, start_at, facecolor=color, edgecolor="none", zorder=2))
        if tell_share and part >= 0.005:
            axes.text(x, y - max(radius, 0.1) - 0.03, f"{100 * part:.0f}", ha="center", va="top", fontsize=6)


def _frame(axes: Axes, wide: float, high: float, *, last: bool) -> None:
    axes.set_xlim(-0.6, wide - 0.4)
    axes.set_ylim(-0.72, high - 0.45)
    axes.set_aspect("equal")
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    axes.set_xticks(range(int(wide)), [str(i + 1) for i in range(int(wide))] if last else [])
    if last:
        axes.set_xlabel("columns run", fontsize=8)


def exits_over_training(records: Runs, path: Path, title: str) -> None:
    """Draw the share of examples that leave by each way out after each epoch, a strip for each price `x` (Fig. 8).

    All are of one structure, and have `exits` in their curves.
    """
    ways = len(records[0]["ways_out"])
    figure = titled(title, 7.2, 1.05 * len(records) + 1.1)
    shares = []
    for record in records:
        exits = record["curve"]["exits"]
        counts = np.array([[np.nan] * ways if epoch is None else epoch for epoch in exits], dtype=float)
        shares.append(counts / counts.sum(1, keepdims=True))
    largest = max(float(np.nanmax(share)) for share in shares)
    strips = column_of(figure, len(records), sharex=True)
    for axes, record, share in zip(strips, records, shares, strict=True):
        edges = np.arange(len(share) + 1) + 0.5
        mesh = axes.pcolormesh(edges, np.arange(ways + 1) + 0.5, share.T, cmap="viridis", vmin=0, vmax=largest)
        axes.set_yticks(range(1, ways + 1), [str(way) if way % 2 else "" for way in range(1, ways + 1)])
        axes.set_ylabel("way out", fontsize=8)
        axes.set_title(f"k_cpt = {price_text(record['x'])}", fontsize=9, loc="left", pad=3)
        axes.tick_params(labelsize=8)
    strips[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    strips[-1].set_xlabel("epoch", fontsize=9)
    bar = figure.colorbar(mesh, ax=list(strips), aspect=30, pad=0.02)
    bar.set_label(f"share of {records[0]['curve']['judged_on']} examples", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    save(figure, path)
