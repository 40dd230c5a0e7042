"""Figs. 8 to 11 of Tissera et al.: what the gates of one trained network do with single images and with classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from routing_gym.agents import Agent
from routing_gym.experiments.engine.figures import save
from routing_gym.experiments.papers.figures import titled
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

REDS, BLUES = matplotlib.colormaps["Reds"], matplotlib.colormaps["Blues"]
CROSSING, STACK, BOX = 3.0, 1.5, 0.42
"""From the tensors that arrive to those that leave, from there to the next, side of a box."""
PALE, STRONG = 0.12, 0.88
"""Ends of the colour maps that are used: nothing is white, nothing black."""
EDGE: dict[str, Any] = {"edgecolor": "0.25", "linewidth": 0.6}

LookedInto = tuple[Agent, Gates]
"""An agent, and what it does with the test images."""


def look_into(agent: Agent, drawing: Drawing, title: str) -> None:
    """Draw Figs. 8 to 11 of an agent's gates."""
    looked_into = agent, gates_of(agent)
    drawing.add(f"{drawing.group}-routes", routes, looked_into, title)
    drawing.add(f"{drawing.group}-gates", maximal_images, looked_into, title)
    drawing.add(f"{drawing.group}-gates-by-class", class_gates, looked_into, title)
    drawing.add(f"{drawing.group}-weights", path_weight_histograms, agent, title)


def _class_name(label: int, num_classes: int) -> str:
    return NAMES[label] if num_classes == len(NAMES) else f"class {label}"


def routes(looked_into: LookedInto, path: Path, title: str, images: Sequence[int] | None = None) -> None:
    """Draw how images go through the crossings (Fig. 8), a row for each.

    Boxes are tensors, the redder the larger their share of the mean activation; circles are gates and edges what they
    weigh, the bluer and thicker the stronger; white boxes are layers between the crossings. The
    images are three that `tell_apart` finds, if none are given.
    """
    agent, gates = looked_into
    network, dataset = network_of(agent), agent.env.datasets["test"]
    shown = tell_apart(gates) if images is None else tuple(images)
    wide = len(network.decisions) * (CROSSING + STACK) + 1.2
    sought = "" if images is not None else "; sought: b gated as a, of its class, late in the network, and as c early"
    size = 1.9 + 0.62 * wide, 0.7 + (0.8 + 0.62 * network.paths) * len(shown)
    figure = titled(f"{title}: routes of single images{sought}", *size)
    grid = figure.subplots(len(shown), 2, squeeze=False, width_ratios=(1.5, 0.62 * wide))
    for row, ((left, right), number) in enumerate(zip(grid, shown, strict=True)):
        _show(left, _picture(dataset.images[dataset.image[number]]))
        true, said = (_class_name(int(of[number]), dataset.num_classes) for of in (gates.label, gates.predicted))
        left.set_title(f"{'abcdefgh'[row]}: {true}", fontsize=9)
        if said != true:
            left.set_xlabel(f"taken for {said}", fontsize=8)
        _route(right, gates, number, network.paths, named=row == 0)
    save(figure, path)


def _route(axes: Axes, gates: Gates, number: int, paths: int, *, named: bool) -> None:
    """Draw the crossings of one image from left to right."""
    middle = (paths - 1) / 2
    spacing = 1 / (paths + 1)  # gates stand one above the other, evenly, if they are as far along their edges
    x = 0.0
    outputs = [float(paths - 1 - j) for j in range(paths)]
    for crossing in gates.crossings:
        inputs = [middle] if crossing.gates.shape[1] == 1 else outputs
        weights, end = crossing.gates[number], x + CROSSING
        for i, start_y in enumerate(inputs):
            for j, end_y in enumerate(outputs):
                gate = float(weights[i, j])
                color = _shade(BLUES, gate)
                axes.plot((x, end), (start_y, end_y), color=color, linewidth=0.6 + 4.4 * gate, zorder=1 + gate)
                center = (x + spacing * CROSSING, start_y + spacing * (end_y - start_y))
                axes.add_patch(Circle(center, 0.4 * spacing, facecolor=color, zorder=4, **EDGE))
        for i, y in enumerate(inputs):
            _box(axes, x, y, float(crossing.arriving[number, i]))
        for j, y in enumerate(outputs):
            _box(axes, end, y, float(crossing.leaving[number, j]))
            axes.plot((end, end + STACK), (y, y), color="0.6", linewidth=0.8, zorder=0)
            corner = end + STACK / 2 - 0.27, y - 0.32
            axes.add_patch(Rectangle(corner, 0.54, 0.64, facecolor="white", edgecolor="0.4", zorder=3))
        if named:
            axes.text(x + CROSSING / 2, paths - 0.35, crossing.name, ha="center", fontsize=8)
        x = end + STACK
    for y in outputs:
        axes.plot((x, x + 0.6), (y, middle), color="0.6", linewidth=0.8, zorder=0)
    axes.add_patch(Circle((x + 0.6, middle), 0.22, facecolor="white", edgecolor="0.4", zorder=3))
    axes.text(x + 0.6, middle, "ø", ha="center", va="center", fontsize=8, zorder=4)
    axes.set(xlim=(-0.5, x + 1.0), ylim=(-0.55, paths - 0.05), aspect="equal")
    axes.axis("off")


def _shade(colors: Colormap, share: float) -> tuple[float, float, float, float]:
    """Return the colour of a number from 0 to 1."""
    return colors(PALE + (STRONG - PALE) * min(max(share, 0.0), 1.0))


def _box(axes: Axes, x: float, y: float, share: float) -> None:
    corner = x - BOX / 2, y - BOX / 2
    axes.add_patch(Rectangle(corner, BOX, BOX, facecolor=_shade(REDS, share), zorder=5, **EDGE))


def maximal_images(looked_into: LookedInto, path: Path, title: str) -> None:
    """Draw for some gates the ten test images with the highest and the lowest, and one made to open it (Fig. 9)."""
    agent, gates = looked_into
    network, dataset = network_of(agent), agent.env.datasets["test"]
    figure = titled(f"{title}: what opens gates, and what closes them", 11, 7.6)
    panels = np.asarray(figure.subfigures(2, 2, hspace=0.04, wspace=0.04)).flat
    for panel, gate in zip(panels, chosen_gates(network), strict=True):
        strength = gates.strength(gate)
        made, scores = synthesised(agent, gate)
        panel.suptitle(gate.name(network), fontsize=10)
        axes = panel.subplot_mosaic([["highest", "made"], ["lowest", "made"]], width_ratios=(5, 4))
        for name, rows in zip(("highest", "lowest"), extremes(strength), strict=True):
            _show(axes[name], _tiled([_picture(dataset.images[dataset.image[row]]) for row in rows.tolist()]))
            first, last = float(strength[rows[0]]), float(strength[rows[-1]])
            axes[name].set_title(f"{name}: {first:.2f} to {last:.2f}", fontsize=8)
        _show(axes["made"], _picture(made))
        axes["made"].set_title(f"made: score {scores[0]:.1f} to {scores[-1]:.1f}", fontsize=8)
    save(figure, path)


def _tiled(pictures: Sequence[np.ndarray], columns: int = 5, gap: int = 2) -> np.ndarray:
    """Return pictures `(H, W, 3)` side by side, in rows, with white between them."""
    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def _picture(image: Tensor) -> np.ndarray:
    """Return `(C, H, W)` uint8 as `(H, W, 3)`."""
    return image.cpu().expand(3, -1, -1).permute(1, 2, 0).numpy()


def _show(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def class_gates(looked_into: LookedInto, path: Path, title: str, classes: Sequence[int] = CLASSES) -> None:
    """Draw how strong two gates are for the test images of some classes (Fig. 10)."""
    agent, gates = looked_into
    network = network_of(agent)
    early, _, deep, _ = chosen_gates(network)
    figure = titled(f"{title}: gates by class", 9, 1.5 * len(classes) + 0.8)
    grid = figure.subplots(len(classes), 2, sharex="col", squeeze=False)
    for column, gate in enumerate((early, deep)):
        strength = gates.strength(gate)
        # A scale of its own for each gate: some move little.
        edges = np.linspace(float(strength.min()), float(strength.max()) + 1e-6, 41)
        for row, kind in enumerate(classes):
            axes = grid[row, column]
            axes.hist(strength[gates.label == kind].numpy(), bins=edges, color=f"C{row}")
            axes.axvline(float(strength.mean()), color="0.3", linewidth=0.8, linestyle=":")
            axes.set_yticks([])
            axes.set_ylabel(_class_name(kind, agent.env.dataset.num_classes), fontsize=8)
        grid[0, column].set_title(gate.name(network), fontsize=9)
        grid[-1, column].set_xlabel("gate (dotted: mean of all classes)", fontsize=8)
    save(figure, path)


def path_weight_histograms(agent: Agent, path: Path, title: str) -> None:
    """Draw the weights of the paths of some layers, a colour for each path (Fig. 11)."""
    weights = path_weights(network_of(agent))
    figure = titled(f"{title}: weights of the paths", 9, 5.6)
    for axes, name in zip(figure.subplots(2, 2).flat, LAYERS, strict=True):
        values = weights[name].flatten(1).cpu()
        # All but the thousandth part at either end.
        low, high = np.quantile(values.numpy(), (0.001, 0.999))
        edges = np.linspace(low, high, 81)
        for number, own in enumerate(values):
            drawn = {"bins": edges, "density": True, "color": f"C{number}"}
            axes.hist(own.numpy(), alpha=0.45, label=f"path {number + 1}, std {float(own.std()):.3f}", **drawn)
            axes.hist(own.numpy(), histtype="step", **drawn)
        axes.set_title(name, fontsize=9)
        axes.set_yticks([])
        axes.legend(fontsize=7)
    save(figure, path)
