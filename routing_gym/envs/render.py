"""Pictures of routes, without a plotting library."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from routing_gym.envs.turns import Turn
from routing_gym.networks import RoutedNetwork, actions

CELL = 24
GAP = 2
"""Pixels of a cell of the routing map, and between cells."""
BACKGROUND = 255


class Pictures:
    """The route of each row in words, and the routing map of all that was decided."""

    def __init__(self, network: RoutedNetwork, num_tasks: int, num_envs: int, device: torch.device) -> None:
        self.network = network
        self.routes = ["not begun"] * num_envs
        self.taken = torch.zeros(num_tasks, len(network.decisions) + 1, network.num_choices, device=device)

    def note_routes(self, task: Tensor, routes: list[list[tuple[int, Any]]]) -> None:
        """Put each row's route so far, `(decision, action)` pairs, into words: `task 3: layer 1 -> 7, layer 2 -> 0`."""
        names = [decision.name for decision in self.network.decisions]
        self.routes = []
        for number, route in zip(task.tolist(), routes, strict=True):
            steps = [f"{names[at]} -> {_plain(action)}" for at, action in route]
            self.routes.append(f"task {number}: " + (", ".join(steps) or "at the start"))

    def count(self, turn: Turn) -> None:
        """Add what was decided to the routing map, weights by their size."""
        self.taken.index_put_((turn.seen.task, turn.seen.decision), taken(turn), accumulate=True)

    def draw(self, mode: str) -> tuple[Any, ...]:
        """For every row its route as a line (`"ansi"`), or the routing map, one for all (`"rgb_array"`)."""
        return tuple(self.routes) if mode == "ansi" else (routing_map(self.taken[:, :-1]),) * len(self.routes)


def taken(turn: Turn) -> Tensor:
    """Weight of each choice of a row, `(B, A)`, summed over its tensors, times its reach; 0 for rows that have left."""
    seen = turn.seen
    weights = actions.dense(turn.action, seen.network.num_choices).detach().abs()
    took = (weights.view(*seen.choosing.shape, -1) * seen.choosing.unsqueeze(-1)).sum(1)
    return took * seen.reach.unsqueeze(1) if actions.is_weights(turn.action) else took


def _plain(action: int | float | list | None) -> str:
    if action is None:
        return "-"
    if isinstance(action, list):
        return "[" + " ".join(_plain(part) for part in action) + "]"
    return f"{action:.2g}" if isinstance(action, float) else str(action)


def routing_map(counts: Tensor) -> np.ndarray:
    """Draw which block each task takes at each decision (the routing map, Rosenbaum et al. 2018, Fig. 11).

    Args:
        counts: `(T, N, A)`, how often each task took each choice at each decision.

    Returns:
        `(H, W, 3)` uint8: a column per task, a row per decision; each cell is split among the blocks in proportion
        to how often they were taken, a hue per block. A cell nothing was decided in stays white.
    """
    table = counts.cpu().double().numpy()
    num_tasks, num_decisions, num_choices = table.shape
    # Hues alternate in lightness so that neighbours differ.
    hues = [colorsys.hls_to_rgb(c / num_choices, 0.55 if c % 2 else 0.72, 0.7) for c in range(num_choices)]
    colors = (np.asarray(hues) * 255).round().astype(np.uint8)
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
