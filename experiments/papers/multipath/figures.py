"""The figures of Deciding How to Decide (McGill and Perona 2017), drawn from recorded runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from routing_gym.experiments.engine.figures import save
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.figures import row_of, single, titled
from routing_gym.experiments.papers.multipath.dataflow import dataflow, exits_over_training
from routing_gym.experiments.papers.multipath.results import points_of
from routing_gym.experiments.papers.reproduction import Drawing, Runs, among, distinct, mean_of

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


def draw(drawing: Drawing) -> None:
    """Draw the figures of a group."""
    group, own, everything = drawing.group, drawing.records, drawing.all_records
    if group == "fig5":
        if actors := _of_first_seed(own, "actor"):
            drawing.add("dataflow", dataflow, actors, "Fig. 6: where examples leave")
        if known := [record for record in actors if any(record["curve"].get("exits", []))]:
            drawing.add("exits", exits_over_training, known, "Fig. 8: where examples leave, over training")
        drawing.add(group, _strategies, own)
    elif group == "variants":
        if trees := _of_first_seed(own, "actor, branching"):
            drawing.add("branching", dataflow, trees[:1], "Fig. 7: where examples leave a branching network")
        drawing.add(group, _variants, everything)
    elif group == "agents":
        drawing.add(group, _other_agents, own, static=among(everything, series="static"))
    else:
        drawing.add(group, _parts, own, apart=group == "width")


def _of_first_seed(records: Runs, series: str) -> list[Record]:
    """Return one record for each network of a curve, by rising price."""
    return sorted((runs[0] for runs in by_label(among(records, series=series)).values()), key=lambda run: run["x"])


def _strategies(records: Runs, path: Path, title: str) -> None:
    """Draw error against mean operations, a curve for each strategy (Fig. 5); static points tell their columns."""
    figure, axes = single(title, 8, 4.6)
    for series in distinct(records, "series"):
        _curve(axes, records, series, STYLES.get(series, {}))
    for label, runs in by_label(among(records, series="static")).items():
        at = (mean_of(runs, "macs") / 1e6, 100 * (1 - mean_of(runs, "test_accuracy")))
        columns = label.rpartition(", ")[2].partition(" ")[0]
        axes.annotate(columns, at, xytext=(4, 5), textcoords="offset points", fontsize=8)
    _finish(axes, title)
    axes.legend(fontsize=9)
    save(figure, path)


def _variants(records: Runs, path: Path, title: str) -> None:
    """Draw the variants of Fig. 5, a panel for each question, each beside its original and the static networks."""
    figure = titled(title, 10, 7.6)
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, several in zip(grid.flat, PANELS.values(), strict=True):
        for series in ("static", *several):
            _curve(axes, records, series, STYLES[series])
    for axes, question in zip(grid.flat, PANELS, strict=True):
        _finish(axes, question)
        axes.label_outer()
        axes.legend(fontsize=8)
    save(figure, path)


def _parts(records: Runs, path: Path, title: str, *, apart: bool) -> None:
    """Draw actor and static networks of several data sets (Fig. 9) or widths (Fig. 10).

    Each part has a panel of its own where they are `apart`, as costs are of another order.
    """
    names = distinct(records, "part")
    figure = titled(title, 4 * len(names) if apart else 7, 4)
    panels = row_of(figure, len(names) if apart else 1)
    for number, part in enumerate(names):
        axes = panels[number if apart else 0]
        for series, line in (("actor", "-"), ("static", "--")):
            color = STYLES[series]["color"] if apart else OF_PARTS[number % len(OF_PARTS)]
            style = {**STYLES[series], "color": color, "linestyle": line}
            _curve(axes, records, series, style, part, series if apart else f"{part}: {series}")
    for axes, part in zip(panels, names, strict=False):
        _finish(axes, "" if not apart else part if "width" in part else f"{part}, width 16")
        axes.legend(fontsize=8)
    save(figure, path)


def _other_agents(records: Runs, path: Path, title: str, *, static: Runs) -> None:
    """Draw error and mean operations of several agents at one price, each with its cost, over the static networks."""
    figure, axes = single(title, 7, 4.4)
    _curve(axes, static, "static", STYLES["static"])
    for number, runs in enumerate(by_label(records).values()):
        macs = np.array([run["macs"] for run in runs]) / 1e6
        error = 100 * (1 - np.array([run["test_accuracy"] for run in runs]))
        name = f"{runs[0]['series']}, c_inf {mean_of(runs, 'cost'):.3f}"
        axes.plot(macs, error, "o^vDP*X"[number % 7], markersize=9, color=f"C{number}", label=name)
    _finish(axes, title)
    axes.legend(fontsize=8)
    save(figure, path)


def _curve(
    axes: Axes, records: Runs, series: str, style: dict[str, Any], part: str = "hybrid", label: str = ""
) -> None:
    """Draw one curve: means over seeds joined by a line, single seeds as small points; nothing where there is none."""
    own = among(records, series=series, part=part)
    if not own:
        return
    points, label = points_of(own, series, part), label or series
    single = [(p["macs"], 1 - p["test_accuracy"]) for record in own for p in record.get("by_price", [record])]
    macs, error = (np.array(column) for column in zip(*single, strict=True))
    if points is None:  # one network only
        axes.plot(macs / 1e6, 100 * error, **{**style, "linestyle": ""}, markersize=7, label=label)
        return
    axes.plot(points.macs / 1e6, 100 * points.error, **style, linewidth=1.6, markersize=6, label=label)
    if len(macs) > len(points.macs):
        axes.plot(macs / 1e6, 100 * error, ".", color=style.get("color"), markersize=4, alpha=0.5)


def _finish(axes: Axes, title: str) -> None:
    """Name the axes, when all is drawn.

    Errors are on a logarithmic axis, with round numbers, where they are far apart: the cheapest networks may err ten
    times as often as the best.
    """
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < FAR_APART * low:
        axes.set_yscale("linear")
    else:
        steps = [tick * scale for scale in (0.1, 1, 10) for tick in (1, 1.5, 2, 3, 4, 5, 6, 8)]
        axes.yaxis.set_major_locator(FixedLocator([tick for tick in steps if low <= tick <= high]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.set_xlim(left=0)
    axes.set_xlabel("mean operations, millions of multiply-accumulates", fontsize=9)
    axes.set_ylabel("test error, %", fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
