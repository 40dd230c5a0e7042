"""Pictures of routes, without a plotting library."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from torch import Tensor

from routing_gym.networks import RoutedNetwork

CELL = 24
GAP = 2
BACKGROUND = 255


def route_text(network: RoutedNetwork, task: int, route: list[tuple[int, Any]]) -> str:
    """Write one route of `(decision, action)` pairs as a line: `task 3: layer 1 -> 7, layer 2 -> 0`."""
    steps = [f"{network.decisions[decision].name} -> {_plain(action)}" for decision, action in route]
    return f"task {task}: " + (", ".join(steps) if steps else "at the start")


def _plain(action: int | float | list) -> str:
    if isinstance(action, list):
        return "[" + " ".join(_plain(part) for part in action) + "]"
    return f"{action:.2g}" if isinstance(action, float) else str(action)


def block_colors(num_choices: int) -> np.ndarray:
    """Return `(A, 3)` uint8: one hue per block, alternating in lightness so that neighbours differ."""
    colors = [colorsys.hls_to_rgb(c / num_choices, 0.55 if c % 2 else 0.72, 0.7) for c in range(num_choices)]
    return (np.asarray(colors) * 255).round().astype(np.uint8)


def routing_map(counts: Tensor) -> np.ndarray:
    """Draw which block each task takes at each decision (the routing map, Rosenbaum et al. 2018, Fig. 11).

    Args:
        counts: `(T, N, A)`: how often each task took each choice at each decision.

    Returns:
        `(H, W, 3)` uint8: a column per task, a row per decision; each cell is split among the blocks in proportion
        to how often they were taken, a hue per block. A cell nothing was decided in stays white.
    """
    table = counts.cpu().double().numpy()
    num_tasks, num_decisions, num_choices = table.shape
    colors = block_colors(num_choices)
    step = CELL + GAP
    image = np.full((num_decisions * step + GAP, num_tasks * step + GAP, 3), BACKGROUND, dtype=np.uint8)
    for task in range(num_tasks):
        for decision in range(num_decisions):
            total = table[task, decision].sum()
            if total == 0:
                continue
            bounds = np.rint(np.cumsum(table[task, decision]) / total * CELL).astype(int)
            block_of_pixel = np.searchsorted(bounds, np.arange(CELL), side="right")
            top, left = GAP + decision * step, GAP + task * step
            image[top : top + CELL, left : left + CELL] = colors[block_of_pixel]
    return image
