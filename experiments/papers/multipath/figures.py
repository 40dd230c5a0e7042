"""The figures of Deciding How to Decide (McGill and Perona 2017), drawn from recorded runs."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from routing_gym.experiments.engine.figures import save
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.figures import row_of, single, titled
from routing_gym.experiments.papers.judging import error_of
from routing_gym.experiments.papers.multipath.dataflow import dataflow, exits_over_training
from routing_gym.experiments.papers.multipath.results import curve_of
from routing_gym.experiments.papers.reproduction import Drawing, Runs, among, distinct, mean_of

STYLES = {
    "static": ("black", "s--"),
    "actor": ("tab:blue", "o-"),
    "pragmatic critic": ("tab:orange", "^-"),
    "optimistic critic": ("tab:red", "v-"),
    "actor, no TALR": ("tab:cyan", "D-"),
    "actor, k_dec = 0": ("tab:olive", "D-"),
    "actor, regularised policy": ("tab:green", "P-"),
    "actor, branching": ("tab:purple", "*-"),
    "actor, dynamic k_cpt": ("tab:pink", "X-"),
    "pragmatic critic, no TALR": ("gold", "D-"),
    "pragmatic critic, classification error": ("tab:brown", "P-"),
}
"""Colour, and marker and line, of every curve."""

PANELS = {
    "learning rates": ("actor", "actor, no TALR", "pragmatic critic", "pragmatic critic, no TALR"),
    "what actors minimise": ("actor", "actor, k_dec = 0", "actor, regularised policy"),
    "what critics minimise": ("pragmatic critic", "pragmatic critic, classification error"),
    "one network for all prices; branches": ("actor", "actor, dynamic k_cpt", "actor, branching"),
}
"""The variants of Fig. 5, each beside what it is a variant of."""

FAR_APART = 2.5
"""Ratio of errors from which on the axis is logarithmic."""


def draw(drawing: Drawing) -> None:
    """Draw the figures of a group."""
    group, own, everything = drawing.group, drawing.records, drawing.all_records
    if group == "fig5":
        if actors := _of_first_seed(own, "actor"):
            drawing.add("dataflow", dataflow, actors, "Fig. 6: where examples leave")
        if known := [record for record in actors if any(record["curve"]["exits"])]:
            drawing.add("exits", exits_over_training, known, "Fig. 8: where examples leave, over training")
        drawing.add(group, _strategies, own)
    elif group == "variants":
        if trees := _of_first_seed(own, "actor, branching"):
            drawing.add("branching", dataflow, trees[:1], "Fig. 7: where examples leave a branching network")
        drawing.add(group, _variants, everything)
    elif group == "agents":
        drawing.add(group, _other_agents, own, static=among(everything, series="static"))
    elif group == "cifar-2":
        drawing.add(group, _strategies, own)
    elif group == "skipping":
        drawing.add(group, _beside_skipping, own, skipping=drawing.beside)
    else:
        drawing.add(group, _parts, own, apart=group == "width")


def _of_first_seed(records: Runs, series: str) -> list[Record]:
    """Return one record for each network of a curve, by rising price."""
    return sorted((runs[0] for runs in by_label(among(records, series=series)).values()), key=lambda run: run["x"])


def _strategies(records: Runs, path: Path, title: str) -> None:
    """Draw a curve for each strategy (Fig. 5); static points tell their columns."""
    figure, axes = single(title, 8, 4.6)
    for series in distinct(records, "series"):
        _curve(axes, records, series, records[0]["part"])
    for label, runs in by_label(among(records, series="static")).items():
        at = mean_of(runs, "macs") / 1e6, 100 * (1 - mean_of(runs, "test_accuracy"))
        columns = label.rpartition(", ")[2].partition(" ")[0]
        axes.annotate(columns, at, xytext=(4, 5), textcoords="offset points", fontsize=8)
    _finish(axes, title)
    save(figure, path)


def _beside_skipping(records: Runs, path: Path, title: str, *, skipping: Runs) -> None:
    """Draw early exit over static networks, and CoDiNet at several weights of the cost, judged on the same images.

    They are other networks, trained in other ways: it compares whole systems.
    """
    figure, axes = single(title, 8, 4.6)
    for series in ("static", "actor"):
        _curve(axes, records, series, "CIFAR-10", label=f"{series}, first columns" if series == "static" else series)
    same = [run for run in skipping if "cost" in run["groups"] and run["dataset"] == records[0]["dataset"]]
    if same:
        curve = curve_of(same)
        axes.plot(curve.macs, curve.error, "P-", color="tab:green", label="CoDiNet, one network for each gamma")
        for run in same:
            axes.plot(run["macs"] / 1e6, error_of(run), ".", color="tab:green", markersize=4, alpha=0.5)
    _finish(axes, f"{title}\n{records[0]['dataset']}")
    save(figure, path)


def _variants(records: Runs, path: Path, title: str) -> None:
    """Draw the variants of Fig. 5, a panel for each question, each beside its original and the static networks."""
    figure = titled(title, 10, 7.6)
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, several in zip(grid.flat, PANELS.values(), strict=True):
        for series in ("static", *several):
            _curve(axes, records, series)
    for axes, question in zip(grid.flat, PANELS, strict=True):  # when all is drawn: they share their axes
        _finish(axes, question)
        axes.label_outer()
    save(figure, path)


def _parts(records: Runs, path: Path, title: str, *, apart: bool) -> None:
    """Draw actor and static networks of several data sets (Fig. 9) or widths (Fig. 10).

    Each part has a panel of its own where they are `apart`, as costs are of another order.
    """
    names = distinct(records, "part")
    figure = titled(title, 4 * len(names) if apart else 7, 4)
    panels = row_of(figure, len(names) if apart else 1)
    for number, part in enumerate(names):
        for series in ("actor", "static"):
            of_part = {} if apart else {"label": f"{part}: {series}", "color": f"C{2 * number}"}
            _curve(panels[number if apart else 0], records, series, part, **of_part)
    for axes, part in zip(panels, names, strict=False):
        _finish(axes, "" if not apart else part if "width" in part else f"{part}, width 16")
    save(figure, path)


def _other_agents(records: Runs, path: Path, title: str, *, static: Runs) -> None:
    """Draw several agents at one price, each seed a point and with its cost, over the static networks."""
    figure, axes = single(title, 7, 4.4)
    _curve(axes, static, "static")
    for number, runs in enumerate(by_label(records).values()):
        name = f"{runs[0]['series']}, c_inf {mean_of(runs, 'cost'):.3f}"
        macs = [run["macs"] / 1e6 for run in runs]
        axes.plot(macs, list(map(error_of, runs)), "o^vDP*X"[number % 7], markersize=9, color=f"C{number}", label=name)
    _finish(axes, title)
    save(figure, path)


def _curve(axes: Axes, records: Runs, series: str, part: str = "hybrid", label: str = "", color: str = "") -> None:
    """Draw one curve: means over seeds joined by a line, single seeds as small points; nothing where there is none."""
    runs = among(records, series=series, part=part)
    if not runs:
        return
    usual, style = STYLES[series]
    curve, color = curve_of(runs), color or usual
    axes.plot(curve.macs, curve.error, style, color=color, linewidth=1.6, markersize=6, label=label or series)
    seeds = distinct(runs, "seed")
    for one in (curve_of(among(runs, seed=seed)) for seed in seeds if len(seeds) > 1):
        axes.plot(one.macs, one.error, ".", color=color, markersize=4, alpha=0.5)


def _finish(axes: Axes, title: str) -> None:
    """Name the axes and the curves, when all is drawn.

    Errors are on a logarithmic axis, with round numbers, where they are far apart: the cheapest networks may err ten
    times as often as the best.
    """
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < FAR_APART * low:
        axes.set_yscale("linear")
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.set_xlim(left=0)
    axes.set_xlabel("mean operations, millions of multiply-accumulates", fontsize=9)
    axes.set_ylabel("test error, %", fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
