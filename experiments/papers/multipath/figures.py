"""The figures of Deciding How to Decide (McGill and Perona 2017), drawn from recorded runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from routing_gym.experiments.engine.figures import save
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.multipath.claims import points_of
from routing_gym.experiments.papers.multipath.dataflow import dataflow, exits_over_training
from routing_gym.experiments.papers.reproduction import Drawing

STYLES: dict[str, dict[str, Any]] = {
    "static": {"color": "black", "marker": "s", "linestyle": "--"},
    "actor": {"color": "tab:blue", "marker": "o"},
    "pragmatic critic": {"color": "tab:orange", "marker": "^"},
    "optimistic critic": {"color": "tab:red", "marker": "v"},
    "actor, no TALR": {"color": "tab:cyan", "marker": "D"},
    "actor, k_dec = 0": {"color": "tab:olive", "marker": "D"},
    "actor, regularised policy": {"color": "tab:green", "marker": "P"},
    "actor, branching": {"color": "tab:purple", "marker": "*"},
    "actor, dynamic k_cpt": {"color": "tab:pink", "marker": "X"},
    "pragmatic critic, no TALR": {"color": "gold", "marker": "D"},
    "pragmatic critic, classification error": {"color": "tab:brown", "marker": "P"},
}
PANELS = {
    "learning rates": ("actor", "actor, no TALR", "pragmatic critic", "pragmatic critic, no TALR"),
    "what actors minimise": ("actor", "actor, k_dec = 0", "actor, regularised policy"),
    "what critics minimise": ("pragmatic critic", "pragmatic critic, classification error"),
    "one network for all prices; branches": ("actor", "actor, dynamic k_cpt", "actor, branching"),
}
"""The variants of Fig. 5, each beside what it is a variant of."""

FAR_APART = 2.5
"""Ratio of errors from which on the axis is logarithmic."""

OF_PARTS = ("tab:blue", "tab:green", "tab:red")


def draw(drawing: Drawing) -> list[Path]:
    """Draw the figures of a group; return their files."""
    group, own, titled = drawing.group, drawing.records, drawing.title
    path = drawing.path(group)
    drawn = []
    if group == "fig5":
        strategies(own, path, titled)
        drawn += _flows(own, "actor", drawing.path("dataflow"), "Fig. 6: where examples leave")
        drawn += _over_training(own, drawing.path("exits"))
    elif group == "variants":
        variants(drawing.all_records, path, titled)
        branching = "Fig. 7: where examples leave a branching network"
        drawn += _flows(own, "actor, branching", drawing.path("branching"), branching)
    elif group == "agents":
        other_agents(drawing.all_records, own, path, titled)
    else:
        parts(own, path, titled, apart=group == "width")
    return [*drawn, path]


def strategies(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw error against mean operations, a curve for each strategy (Fig. 5); static points tell their columns."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for series in dict.fromkeys(record["series"] for record in records):
        _curve(axes, records, series, "hybrid", STYLES.get(series, {}), series)
    _annotate_static(axes, records)
    _finish(axes, title)
    axes.legend(fontsize=9)
    save(figure, path)


def variants(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw the variants of Fig. 5, a panel for each question, each beside its original and the static networks."""
    figure = Figure(figsize=(10, 7.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    there = {record["series"] for record in records if record["part"] == "hybrid"}
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, several in zip(grid.flat, PANELS.values(), strict=True):
        for series in ("static", *several):
            if series in there:
                _curve(axes, records, series, "hybrid", STYLES[series], series)
    for axes, question in zip(grid.flat, PANELS, strict=True):
        _finish(axes, question)
        axes.label_outer()
        axes.legend(fontsize=8)
    save(figure, path)


def parts(records: Sequence[Record], path: Path, title: str, *, apart: bool) -> None:
    """Draw actor and static networks of several data sets (Fig. 9) or widths (Fig. 10).

    Args:
        records: Records with their `part`.
        path: The picture.
        title: Its title.
        apart: Whether each part has a panel of its own, as costs are of another order.
    """
    names = list(dict.fromkeys(record["part"] for record in records))
    figure = Figure(figsize=(4 * len(names) if apart else 7, 4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(1, len(names) if apart else 1, squeeze=False)[0]
    for number, part in enumerate(names):
        axes = panels[number if apart else 0]
        for series, line in (("actor", "-"), ("static", "--")):
            color = STYLES[series]["color"] if apart else OF_PARTS[number % len(OF_PARTS)]
            style = {**STYLES[series], "color": color, "linestyle": line}
            _curve(axes, records, series, part, style, series if apart else f"{part}: {series}")
    for axes, part in zip(panels, names, strict=False):
        _finish(axes, "" if not apart else part if "width" in part else f"{part}, width 16")
        axes.legend(fontsize=8)
    save(figure, path)


def other_agents(all_records: Sequence[Record], records: Sequence[Record], path: Path, title: str) -> None:
    """Draw error and mean operations of several agents at one price, each with its cost, over the static networks."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.add_subplot()
    _curve(axes, all_records, "static", "hybrid", STYLES["static"], "static")
    for number, runs in enumerate(by_label(records).values()):
        macs = np.array([run["macs"] for run in runs]) / 1e6
        error = 100 * (1 - np.array([run["test_accuracy"] for run in runs]))
        cost = float(np.mean([run["cost"] for run in runs]))
        name = f"{runs[0]['series']}, c_inf {cost:.3f}"
        axes.plot(macs, error, "o^vDP*X"[number % 7], markersize=9, color=f"C{number}", label=name)
    _finish(axes, title)
    axes.legend(fontsize=8)
    save(figure, path)


def _curve(axes: Axes, records: Sequence[Record], series: str, part: str, style: Mapping[str, Any], label: str) -> None:
    """Draw one curve: means over seeds joined by a line, single seeds as small points."""
    points = points_of(records, series, part)
    own = [record for record in records if record["series"] == series and record["part"] == part]
    if not own:
        return
    single = [(p["macs"], 1 - p["test_accuracy"]) for record in own for p in record.get("by_price", [record])]
    macs, error = (np.array(column) for column in zip(*single, strict=True))
    if points is None:  # one network only
        axes.plot(macs / 1e6, 100 * error, **{**style, "linestyle": ""}, markersize=7, label=label)
        return
    axes.plot(points.macs / 1e6, 100 * points.error, **style, linewidth=1.6, markersize=6, label=label)
    if len(macs) > len(points.macs):
        axes.plot(macs / 1e6, 100 * error, ".", color=style.get("color"), markersize=4, alpha=0.5)


def _annotate_static(axes: Axes, records: Sequence[Record]) -> None:
    """Write at each static network how many columns it has."""
    static = [record for record in records if record["series"] == "static"]
    for label, runs in by_label(static).items():
        at = (np.mean([run["macs"] for run in runs]) / 1e6, 100 * (1 - np.mean([run["test_accuracy"] for run in runs])))
        columns = label.rpartition(", ")[2].partition(" ")[0]
        axes.annotate(columns, at, xytext=(4, 5), textcoords="offset points", fontsize=8)


def _finish(axes: Axes, title: str) -> None:
    """Name the axes, when all is drawn.

    Errors are on a logarithmic axis where they are far apart: the cheapest networks may err ten times as often as the
    best.
    """
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < FAR_APART * low:
        axes.set_yscale("linear")
    else:
        _few_ticks(axes, low, high)
    axes.set_xlim(left=0)
    axes.set_xlabel("mean operations, millions of multiply-accumulates", fontsize=9)
    axes.set_ylabel("test error, %", fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)


def _few_ticks(axes: Axes, low: float, high: float) -> None:
    """Mark round numbers on a logarithmic axis."""
    steps = [tick * scale for scale in (0.1, 1, 10) for tick in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    ticks = [tick for tick in steps if low <= tick <= high]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(FixedLocator([]))


def _of_first_seed(records: Sequence[Record], series: str) -> list[Record]:
    """Return one record for each network of a curve, by rising price."""
    own = [runs[0] for runs in by_label([record for record in records if record["series"] == series]).values()]
    return sorted(own, key=lambda record: record["x"])


def _flows(records: Sequence[Record], series: str, path: Path, title: str) -> list[Path]:
    """Draw where the examples leave the networks of a curve, of a tree the one without price or the least."""
    networks = _of_first_seed(records, series)
    if series != "actor":
        networks = networks[:1]
    if not networks:
        return []
    dataflow(networks, path, title)
    return [path]


def _over_training(records: Sequence[Record], path: Path) -> list[Path]:
    """Draw how exits changed over training, where that was written down."""
    networks = [r for r in _of_first_seed(records, "actor") if any(r["curve"].get("exits", []))]
    if not networks:
        return []
    exits_over_training(networks, path, "Fig. 8: where examples leave, over training")
    return [path]
