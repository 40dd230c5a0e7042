"""Routes of the episodes, kept to draw and to replay them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from routing_gym.envs.batch import Batch
from routing_gym.envs.turns import Turn
from routing_gym.networks import RoutedNetwork, actions


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
