"""Routes of the episodes: kept, run again to train the blocks for agents from outside, and drawn."""

from __future__ import annotations

import colorsys
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from routing_gym.blocks import with_gradients
from routing_gym.envs.batch import Batch
from routing_gym.envs.training import BlocksTrainer
from routing_gym.envs.turns import Manner, Turn, along, drive
from routing_gym.networks import Action, RoutedNetwork, actions
from routing_gym.networks.state import Exit
from routing_gym.tasks import MultiTaskDataset


@dataclasses.dataclass(frozen=True)
class Routes:
    """R routes that have ended.

    Attributes:
        instance: `(R,)` int64 row numbers in the data set.
        augmentation: `(R, P)` parameters drawn for each, or None.
        price: `(R,)`.
        action: `(R, N, M)` choices or `(R, N, M, A)` weights by decision; zeros where a route does not pass.
    """

    instance: Tensor
    augmentation: Tensor | None
    price: Tensor
    action: Tensor

    def __len__(self) -> int:
        return len(self.instance)

    @staticmethod
    def join(routes: list[Routes]) -> Routes:
        """Put routes one after the other."""
        names = [name for name, column in vars(routes[0]).items() if column is not None]
        return dataclasses.replace(routes[0], **{n: torch.cat([getattr(part, n) for part in routes]) for n in names})

    def pick(self, rows: slice | Tensor) -> Routes:
        """Some of the routes."""
        picked = {name: column[rows] for name, column in vars(self).items() if column is not None}
        return dataclasses.replace(self, **picked)


class RouteLog:
    """The routes of the episodes that are under way, one per row; `weights` says that actions are weights."""

    def __init__(self, network: RoutedNetwork, batch: int, weights: bool, device: torch.device) -> None:
        form = (batch, len(network.decisions) + 1, network.num_tensors)  # one decision more, for rows that have left
        self.network, self._weights, self._row = network, weights, torch.arange(batch, device=device)
        self.choosing = torch.zeros(form, dtype=torch.bool, device=device)
        self.visited = self.choosing[..., 0].clone()
        self.action = torch.zeros(form, dtype=torch.int64, device=device)
        if weights:
            self.action = torch.zeros(*form, network.num_choices, device=device)

    def write(self, turn: Turn) -> None:
        """Add the action of each row at its decision; weights are kept dense."""
        action = actions.dense(turn.action, self.network.num_choices) if self._weights else turn.action
        assert isinstance(action, Tensor)
        place = self._row, turn.seen.decision
        self.action[place] = action.view(len(action), *self.action.shape[2:]).detach()
        self.choosing[place] = turn.seen.choosing
        self.visited[place] = True

    def routes(self) -> list[list[tuple[int, Any]]]:
        """Each row's route so far as `(decision, action)` pairs of plain values.

        Where several tensors choose an action is a list, with None for those that were not there.
        """

        def told(took: list, chosen: list[bool]) -> Any:
            own = [part if chose else None for part, chose in zip(took, chosen, strict=True)]
            return own if len(own) > 1 else own[0]

        columns = (column[:, :-1].tolist() for column in (self.visited, self.action, self.choosing))
        return [
            [(at, told(took, chosen)) for at, (there, took, chosen) in enumerate(zip(*row, strict=True)) if there]
            for row in zip(*columns, strict=True)
        ]

    def read(self, rows: Tensor, batch: Batch) -> Routes:
        """Copies of the routes of some rows of a batch."""
        return Routes(
            instance=batch.state.instance[rows],
            augmentation=None if batch.augmentation is None else batch.augmentation[rows.cpu()],
            price=batch.state.price[rows],
            action=self.action[rows, :-1],
        )

    def clear(self, rows: Tensor | None) -> None:
        """Begin new routes in some rows (None: in all)."""
        where: Tensor | slice = slice(None) if rows is None else rows
        self.action[where] = 0
        self.visited[where] = False


class Replayer:
    """Trains the blocks on routes that have ended and are `waiting`, `batch` at a time, the oldest first."""

    def __init__(self, dataset: MultiTaskDataset, trainer: BlocksTrainer, batch: int, manner: Manner) -> None:
        self.network, self.dataset, self.trainer, self.batch = trainer.network, dataset, trainer, batch
        self._manner = manner
        self.waiting: list[Routes] = []

    def train(self) -> None:
        """Take a step for every full batch there is."""
        while sum(map(len, self.waiting)) >= self.batch:
            routes = Routes.join(self.waiting)
            self.waiting = [routes.pick(slice(self.batch, None))]
            self._replay(routes.pick(slice(self.batch)))

    @with_gradients()
    def _replay(self, routes: Routes) -> None:
        """Run routes again in train mode, as one batch, take a step on their loss, and leave eval mode behind."""
        self.network.train()
        noted = self.trainer.begin()
        try:
            routes = Routes.join([routes])  # copies: else of `torch.inference_mode`, if steps were taken there
            pixels = self.dataset.pixels(routes.instance, routes.augmentation)
            task, label = self.dataset.task[routes.instance], self.dataset.label[routes.instance]
            with self._manner.forward_pass(task.device, graph=True):
                state = self.network.start(pixels, task, instance=routes.instance, price=routes.price)
            exits: list[Exit] = []
            for turn in drive(self.network, state, along(routes.action), self._manner):
                if self.trainer.throughput is not None:
                    self.trainer.throughput.note(turn)
                exits += turn.exits
            self.trainer.step(self.trainer.loss(exits, label, task), len(routes), noted)
        finally:
            self.network.eval()


CELL = 24
GAP = 2
"""Pixels of a cell of the routing map, and between cells."""


class Pictures:
    """The route of each row in words, and the routing map of all that was decided."""

    def __init__(self, network: RoutedNetwork, num_tasks: int, num_envs: int, device: torch.device) -> None:
        self.names = [decision.name for decision in network.decisions]
        self.routes = ["not begun"] * num_envs
        self.taken = torch.zeros(num_tasks, len(self.names) + 1, network.num_choices, device=device)

    def note_routes(self, task: Tensor, routes: list[list[tuple[int, Any]]]) -> None:
        """Put each row's route so far, `(decision, action)` pairs, into words: `task 3: layer 1 -> 7, layer 2 -> 0`."""
        steps = [[f"{self.names[at]} -> {_plain(action)}" for at, action in route] for route in routes]
        told = zip(task.tolist(), (", ".join(step) or "at the start" for step in steps), strict=True)
        self.routes = [f"task {number}: {route}" for number, route in told]

    def count(self, turn: Turn) -> None:
        """Add what was decided to the routing map, weights by their size."""
        self.taken.index_put_((turn.seen.task, turn.seen.decision), taken(turn), accumulate=True)

    def draw(self, mode: str) -> tuple[Any, ...]:
        """For every row its route as a line (`"ansi"`), or the routing map, one for all (`"rgb_array"`)."""
        return tuple(self.routes) if mode == "ansi" else (routing_map(self.taken[:, :-1]),) * len(self.routes)


def taken(turn: Turn) -> Tensor:
    """Weight of each choice of a row, see `sizes`, times its reach; integer choices count 1."""
    took = sizes(turn.action, turn.seen.choosing, turn.seen.network.num_choices)
    return took * turn.seen.reach.unsqueeze(1) if actions.is_weights(turn.action) else took


def sizes(action: Action, choosing: Tensor, num_choices: int) -> Tensor:
    """Size of the weight `(B, A)` that the tensors that chose, `(B, M)` bool, gave to each choice together."""
    if isinstance(action, tuple):
        action = action[0], action[1].abs()
    each = actions.dense(action, num_choices).detach().abs().view(*choosing.shape, num_choices)
    return (each * choosing.unsqueeze(-1)).sum(1)


def _plain(action: int | float | list | None) -> str:
    if isinstance(action, list):
        return "[" + " ".join(map(_plain, action)) + "]"
    return "-" if action is None else f"{action:.2g}" if isinstance(action, float) else str(action)


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
    image = np.full((num_decisions * step + GAP, num_tasks * step + GAP, 3), 255, dtype=np.uint8)
    for task, decision in zip(*np.nonzero(table.sum(-1)), strict=True):
        bounds = np.rint(np.cumsum(table[task, decision]) / table[task, decision].sum() * CELL).astype(int)
        block_of_pixel = np.searchsorted(bounds, np.arange(CELL), side="right")
        top, left = GAP + decision * step, GAP + task * step
        image[top : top + CELL, left : left + CELL] = colors[block_of_pixel]
    return image
