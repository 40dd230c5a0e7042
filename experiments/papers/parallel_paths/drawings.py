"""Figs. 8 to 11 of Tissera et al.: what the gates of one trained network do with single images and with classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from routing_gym.agents import Agent
from routing_gym.experiments.engine.figures import save
from routing_gym.experiments.papers.figures import show, titled
from routing_gym.experiments.papers.parallel_paths.gates import (
    Gates,
    chosen_gates,
    extremes,
    gates_of,
    network_of,
    path_weights,
    synthesised,
    tell_apart,
)
from routing_gym.experiments.papers.reproduction import Drawing
from routing_gym.tasks.cifar import NAMES

CLASSES = (0, 8, 6, 7)
"""Fig. 10 shows airplanes, ships, frogs and horses: two kinds before blue, one that is green and one that is not."""
LAYERS = ("conv 2", "conv 4", "conv 6", "dense 1")
"""Fig. 11 shows those before the crossings."""

BLUES = matplotlib.colormaps["Blues"]
SHADE = Normalize(-0.16, 1.16)
"""Numbers from 0 to 1 on a colour map: nothing is white, nothing black."""
CROSSING, STACK, INCH = 3.0, 1.5, 0.62
"""From the tensors that arrive to those that leave, from there to the next, and how many inches that is for 1."""


def look_into(agent: Agent, drawing: Drawing, title: str) -> None:
    """Draw Figs. 8 to 11 of an agent's gates."""
    gates = gates_of(agent)
    drawing.add(f"{drawing.group}-routes", routes, gates, title)
    drawing.add(f"{drawing.group}-gates", maximal_images, gates, title)
    drawing.add(f"{drawing.group}-gates-by-class", class_gates, gates, title)
    drawing.add(f"{drawing.group}-weights", path_weight_histograms, agent, title)


def routes(gates: Gates, path: Path, title: str) -> None:
    """Draw how images go through the crossings (Fig. 8), a row for each.

    Boxes are tensors, the redder the larger their share of the mean activation; circles are gates and edges what they
    weigh, the bluer and thicker the stronger; white boxes are layers between the crossings. The images are those that
    `tell_apart` finds.
    """
    network, dataset = network_of(gates.agent), gates.agent.env.datasets["test"]
    shown = tell_apart(gates)
    wide = INCH * (len(network.decisions) * (CROSSING + STACK) + 1.2)
    sought = "sought: b gated as a, of its class, late in the network, and as c early"
    size = 1.9 + wide, 0.7 + (0.8 + INCH * network.paths) * len(shown)
    figure = titled(f"{title}: routes of single images; {sought}", *size)
    grid = figure.subplots(len(shown), 2, squeeze=False, width_ratios=(1.5, wide))
    for row, ((left, right), number) in enumerate(zip(grid, shown, strict=True)):
        show(left, dataset.images[dataset.image[number]][None])
        true, said = (NAMES[of[number]] for of in (gates.label, gates.predicted))
        left.set_title(f"{'abc'[row]}: {true}", fontsize=9)
        if said != true:
            left.set_xlabel(f"taken for {said}", fontsize=8)
        _route(right, gates, number, network.paths)
    save(figure, path)


def _route(axes: Axes, gates: Gates, number: int, paths: int) -> None:
    """Draw the crossings of one image from left to right."""
    outputs, middle = np.arange(paths)[::-1], (paths - 1) / 2
    spacing = 1 / (paths + 1)  # gates stand one above the other, evenly, if they are as far along their edges
    edge: dict[str, Any] = {"edgecolor": "0.25", "linewidth": 0.6, "norm": SHADE}
    x = 0.0
    for crossing in gates.crossings:
        weights, end = crossing.gates[number].numpy(), x + CROSSING
        inputs = outputs if len(weights) > 1 else np.array([middle])
        starts, ends = (of.flatten() for of in np.broadcast_arrays(inputs[:, None], outputs[None]))
        for start_y, end_y, gate in zip(starts, ends, weights.flat, strict=True):
            shown = {"color": BLUES(SHADE(gate)), "linewidth": 0.6 + 4.4 * gate, "zorder": 1 + gate}
            axes.plot((x, end), (start_y, end_y), **shown)
        along, across = np.full(weights.size, x + spacing * CROSSING), starts + spacing * (ends - starts)
        axes.scatter(along, across, _area(0.8 * spacing), weights.flatten(), cmap="Blues", zorder=4, **edge)
        for at, places, shares in ((x, inputs, crossing.arriving), (end, outputs, crossing.leaving)):
            boxes = {"marker": "s", "cmap": "Reds", "zorder": 5, **edge}
            axes.scatter([at] * len(places), places, _area(0.42), shares[number].numpy(), **boxes)
        axes.hlines(outputs, end, end + STACK, color="0.6", linewidth=0.8, zorder=0)
        axes.scatter([end + STACK / 2] * paths, outputs, _area(0.6), "white", marker="s", edgecolor="0.4")
        axes.text(x + CROSSING / 2, paths - 0.35, crossing.name, ha="center", fontsize=8)
        x = end + STACK
    for y in outputs:
        axes.plot((x, x + 0.6), (y, middle), color="0.6", linewidth=0.8, zorder=0)
    axes.scatter([x + 0.6], [middle], _area(0.44), "white", edgecolor="0.4")
    axes.text(x + 0.6, middle, "ø", ha="center", va="center", fontsize=8, zorder=4)
    axes.set(xlim=(-0.5, x + 1.0), ylim=(-0.55, paths - 0.05), aspect="equal")
    axes.axis("off")


def _area(width: float) -> float:
    """Return the area of a marker as `scatter` takes it."""
    return (72 * INCH * width) ** 2


def maximal_images(gates: Gates, path: Path, title: str) -> None:
    """Draw for some gates the ten test images with the highest and the lowest, and one made to open it (Fig. 9)."""
    network, dataset = network_of(gates.agent), gates.agent.env.datasets["test"]
    figure = titled(f"{title}: what opens gates, and what closes them", 11, 7.6)
    panels = np.asarray(figure.subfigures(2, 2, hspace=0.04, wspace=0.04)).flat
    for panel, gate in zip(panels, chosen_gates(network), strict=True):
        strength = gates.strength(gate)
        made, scores = synthesised(gates.agent, gate)
        panel.suptitle(gate.name(network), fontsize=10)
        axes = panel.subplot_mosaic([["highest", "made"], ["lowest", "made"]], width_ratios=(5, 4))
        for name, rows in zip(("highest", "lowest"), extremes(strength), strict=True):
            show(axes[name], dataset.images[dataset.image[rows]], columns=5)
            first, last = float(strength[rows[0]]), float(strength[rows[-1]])
            axes[name].set_title(f"{name}: {first:.2f} to {last:.2f}", fontsize=8)
        show(axes["made"], made[None])
        axes["made"].set_title(f"made: score {scores[0]:.1f} to {scores[-1]:.1f}", fontsize=8)
    save(figure, path)


def class_gates(gates: Gates, path: Path, title: str) -> None:
    """Draw how strong two gates are for the test images of `CLASSES` (Fig. 10)."""
    network = network_of(gates.agent)
    early, _, deep, _ = chosen_gates(network)
    figure = titled(f"{title}: gates by class", 9, 1.5 * len(CLASSES) + 0.8)
    grid = figure.subplots(len(CLASSES), 2, sharex="col")
    for column, gate in zip(grid.T, (early, deep), strict=True):
        strength = gates.strength(gate)
        # A scale of its own for each gate: some move little.
        edges = np.linspace(float(strength.min()), float(strength.max()) + 1e-6, 41)
        for row, (axes, kind) in enumerate(zip(column, CLASSES, strict=True)):
            axes.hist(strength[gates.label == kind].numpy(), bins=edges, color=f"C{row}")
            axes.axvline(float(strength.mean()), color="0.3", linewidth=0.8, linestyle=":")
            axes.set_yticks([])
            axes.set_ylabel(NAMES[kind], fontsize=8)
        column[0].set_title(gate.name(network), fontsize=9)
        column[-1].set_xlabel("gate (dotted: mean of all classes)", fontsize=8)
    save(figure, path)


def path_weight_histograms(agent: Agent, path: Path, title: str) -> None:
    """Draw the weights of the paths of some layers, a colour for each path (Fig. 11)."""
    weights = path_weights(network_of(agent))
    figure = titled(f"{title}: weights of the paths", 9, 5.6)
    for axes, name in zip(figure.subplots(2, 2).flat, LAYERS, strict=True):
        values = weights[name].flatten(1).cpu().numpy()
        low, high = np.quantile(values, (0.001, 0.999))
        named = [f"path {number}, std {own.std(ddof=1):.3f}" for number, own in enumerate(values, 1)]
        axes.hist(values.T, 80, range=(low, high), density=True, histtype="stepfilled", alpha=0.45, label=named)
        axes.set_title(name, fontsize=9)
        axes.set_yticks([])
        axes.legend(fontsize=7)
    save(figure, path)
