"""Routes of the episodes: kept, run again to train the blocks for agents from outside, and drawn."""

from __future__ import annotations

import colorsys
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.envs.batch import Batch, batch_loss
from routing_gym.envs.training import BlocksTrainer
from routing_gym.envs.turns import Manner, Turn, drive
from routing_gym.networks import RoutedNetwork, actions
from routing_gym.tasks import MultiTaskDataset


@dataclasses.dataclass(frozen=True)
class Routes:
    """R routes that have ended.

    Attributes:
        instance: `(R,)` int64 row numbers in the data set.
        augmentation: `(R, P)` parameters drawn for each, or None.
        price: `(R,)`.
        action: `(R, N, M)` choices or `(R, N, M, A)` weights in order; zeros behind the last.
        length: `(R,)` int64, number of actions.
    """

    instance: Tensor
    augmentation: Tensor | None
    price: Tensor
    action: Tensor
    length: Tensor

    def __len__(self) -> int:
        return len(self.instance)

    @staticmethod
    def join(routes: list[Routes]) -> Routes:
        """Put routes one after the other."""
        names = [name for name, column in vars(routes[0]).items() if column is not None]
        joined = {name: torch.cat([getattr(part, name) for part in routes]) for name in names}
        return dataclasses.replace(routes[0], **joined)

    def pick(self, rows: slice | Tensor) -> Routes:
        """Some of the routes."""
        picked = {name: column[rows] for name, column in vars(self).items() if column is not None}
        return dataclasses.replace(self, **picked)


class RouteLog:
    """The routes of the episodes that are under way, one per row; `weights` says that actions are weights."""

    def __init__(self, network: RoutedNetwork, batch: int, weights: bool, device: torch.device) -> None:
        steps = len(network.decisions)
        form = (network.num_tensors, network.num_choices) if weights else (network.num_tensors,)
        self.network, self._weights = network, weights
        self.decision = torch.zeros(batch, steps, dtype=torch.int64, device=device)
        dtype = torch.get_default_dtype() if weights else torch.int64
        self.action = torch.zeros(batch, steps, *form, dtype=dtype, device=device)
        self.choosing = torch.zeros(batch, steps, network.num_tensors, dtype=torch.bool, device=device)
        self.length = torch.zeros(batch, dtype=torch.int64, device=device)

    def write(self, turn: Turn) -> None:
        """Add the action of each active row; weights are kept dense."""
        action = actions.dense(turn.action, self.network.num_choices) if self._weights else turn.action
        assert isinstance(action, Tensor)
        seen, rows = turn.seen, turn.seen.active.nonzero().flatten()
        place = self.length[rows]
        self.decision[rows, place] = seen.decision[rows]
        self.action[rows, place] = action.view(len(action), *self.action.shape[2:])[rows].detach()
        self.choosing[rows, place] = seen.choosing[rows]
        self.length[rows] += 1

    def routes(self) -> list[list[tuple[int, Any]]]:
        """Each row's route so far as `(decision, action)` pairs of plain values.

        Where several tensors choose an action is a list, with None for those that were not there.
        """
        columns = (self.decision, self.action, self.choosing, self.length)
        return [
            [
                (at, [part if chose else None for part, chose in zip(took, chosen, strict=True)])
                if self.network.num_tensors > 1
                else (at, took[0])
                for at, took, chosen in zip(decisions[:length], taken[:length], choosing[:length], strict=True)
            ]
            for decisions, taken, choosing, length in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def read(self, rows: Tensor, batch: Batch) -> Routes:
        """Copies of the routes of some rows of a batch."""
        return Routes(
            instance=batch.state.instance[rows],
            augmentation=None if batch.augmentation is None else batch.augmentation[rows.cpu()],
            price=batch.state.price[rows],
            action=self.action[rows],
            length=self.length[rows],
        )

    def clear(self, rows: Tensor | None) -> None:
        """Begin new routes in some rows (None: in all)."""
        where: Tensor | slice = slice(None) if rows is None else rows
        self.action[where] = 0
        self.length[where] = 0


class Replayer:
    """Keeps routes that have ended and trains the blocks on them, `batch` at a time, the oldest first."""

    def __init__(
        self,
        network: RoutedNetwork,
        dataset: MultiTaskDataset,
        trainer: BlocksTrainer,
        batch: int,
        precision: str = "float32",
    ) -> None:
        self.network, self.dataset, self.trainer, self.batch = network, dataset, trainer, batch
        self._manner = Manner(graph=True, precision=precision)
        self._waiting: list[Routes] = []

    def push(self, routes: Routes) -> None:
        """Add routes."""
        self._waiting.append(routes)

    def clear(self) -> None:
        """Give up all routes that have not been trained on."""
        self._waiting = []

    def train(self) -> None:
        """Take a step for every full batch there is."""
        while sum(map(len, self._waiting)) >= self.batch:
            routes = Routes.join(self._waiting)
            self._waiting = [routes.pick(slice(self.batch, None))]
            self._replay(routes.pick(slice(self.batch)))

    def _replay(self, routes: Routes) -> None:
        """Run routes again in train mode, as one batch, take a step on their loss, and leave eval mode behind."""
        self.network.train()
        noted = self.trainer.begin()
        try:
            with torch.enable_grad():
                pixels = self.dataset.pixels(routes.instance, routes.augmentation)
                task, label = self.dataset.task[routes.instance], self.dataset.label[routes.instance]
                with self._manner.forward_pass(task.device, graph=True):
                    state = self.network.start(pixels, task, instance=routes.instance, price=routes.price)
                # The action of every row turn by turn; rows whose route has ended get zeros.
                recorded = iter(routes.action[:, : int(routes.length.max())].unbind(1))
                exits: list[tuple[Tensor, Tensor]] = []
                for turn in drive(self.network, state, lambda seen: next(recorded), self._manner):
                    if self.trainer.throughput is not None:
                        self.trainer.throughput.note(turn)
                    for exit in turn.exits:
                        own = label if exit.rows is None else label.index_select(0, exit.rows)
                        exits.append((exit.weight, functional.cross_entropy(exit.logits, own, reduction="none")))
                self.trainer.step(batch_loss(exits, len(routes)), len(routes), noted)
        finally:
            self.network.eval()


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
