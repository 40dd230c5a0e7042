"""Remembering the way of each instance, to draw it and to replay it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from routing_gym.networks import Action, RoutedNetwork, RoutingState, actions, is_weights


@dataclasses.dataclass(frozen=True)
class Routes:
    """R routes that have ended.

    Attributes:
        instance: `(R,)` int64 row numbers in the data set.
        augmentation: `(R, P)` parameters drawn for each, or None.
        price: `(R,)`.
        decision: `(R, N)` int64: where each action was taken.
        action: `(R, N, ...)`: the actions in order; zeros behind the last.
        length: `(R,)` int64: how many actions.
    """

    instance: Tensor
    augmentation: Tensor | None
    price: Tensor
    decision: Tensor
    action: Tensor
    length: Tensor

    def __len__(self) -> int:
        return len(self.instance)

    @staticmethod
    def join(routes: list[Routes]) -> Routes:
        """Put lists of routes one after the other."""
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(Routes):
            parts = [getattr(part, field.name) for part in routes]
            columns[field.name] = None if parts[0] is None else torch.cat(parts)
        return Routes(**columns)

    def pick(self, rows: slice | Tensor) -> Routes:
        """Return some of the routes."""
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(Routes):
            column = getattr(self, field.name)
            columns[field.name] = None if column is None else column[rows]
        return Routes(**columns)


class RouteLog:
    """The routes of the episodes that are under way, one per sub-environment.

    Args:
        network: Whose routes they are.
        batch: Number of sub-environments.
        weights: Whether actions are weights.
        device: Where to keep the log.
    """

    def __init__(self, network: RoutedNetwork, batch: int, weights: bool, device: torch.device) -> None:
        steps = len(network.decisions)
        tensors = (network.num_tensors,) if network.num_tensors > 1 else ()
        form = (*tensors, network.num_choices) if weights else tensors
        self.network = network
        self.decision = torch.zeros(batch, steps, dtype=torch.int64, device=device)
        self.action = torch.zeros(
            batch, steps, *form, dtype=torch.get_default_dtype() if weights else torch.int64, device=device
        )
        self.choosing = torch.zeros(batch, steps, network.num_tensors, dtype=torch.bool, device=device)
        self.length = torch.zeros(batch, dtype=torch.int64, device=device)

    def write(self, state: RoutingState, action: Action) -> None:
        """Add one action for each active row.

        Args:
            state: Where the rows stood.
            action: What each row did; weights are kept dense.
        """
        taken = actions.dense(action, self.network.num_choices) if is_weights(action) else action
        assert isinstance(taken, Tensor)
        rows = state.active.nonzero().flatten()
        place = self.length[rows]
        self.decision[rows, place] = state.at[rows]
        self.action[rows, place] = taken[rows].detach()
        self.choosing[rows, place] = self.network.choosing(state)[rows]
        self.length[rows] += 1

    def routes(self) -> list[list[tuple[int, Any]]]:
        """Return each row's route so far as `(decision, action)` pairs of plain values.

        Where several tensors choose an action is a list, with None for those that were not there.
        """
        columns = (self.decision, self.action, self.choosing, self.length)
        return [
            [
                (at, [part if chose else None for part, chose in zip(took, chosen, strict=True)])
                if self.network.num_tensors > 1
                else (at, took)
                for at, took, chosen in zip(decisions[:length], taken[:length], choosing[:length], strict=True)
            ]
            for decisions, taken, choosing, length in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def read(self, rows: Tensor, instance: Tensor, augmentation: Tensor | None, price: Tensor) -> Routes:
        """Return copies of the routes of some rows; `instance`, `augmentation` and `price` are of all rows."""
        return Routes(
            instance=instance[rows],
            augmentation=None if augmentation is None else augmentation[rows.cpu()],
            price=price[rows],
            decision=self.decision[rows],
            action=self.action[rows],
            length=self.length[rows],
        )

    def clear(self, rows: Tensor | None) -> None:
        """Begin new routes in some rows (None: in all)."""
        where: Tensor | slice = slice(None) if rows is None else rows
        self.decision[where] = 0
        self.action[where] = 0
        self.length[where] = 0


def replayed_actions(routes: Routes) -> list[Action]:
    """Return the action of every row for each step of a replay; rows whose route has ended get zeros."""
    return list(routes.action[:, : int(routes.length.max())].unbind(1))
