"""Networks of paths side by side: before every layer each path's tensor is sent to some of them, or shared out."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.blocks import LinearBlocks, PathBlocks
from routing_gym.networks.actions import Action
from routing_gym.networks.banked import BankedNetwork
from routing_gym.networks.state import Activation

Paths = LinearBlocks | PathBlocks
"""A layer of paths."""


class RoutedPaths(BankedNetwork):
    """A network in which m tensors arrive at a decision and n paths lie behind it.

    An m x n gate says how much of each tensor goes to each path: path j is fed with Y_j = Σ_i g_ij X_i. Under hard
    choices every tensor goes to one path, where it meets others: tensors merge and never split. A path that nothing was
    sent to is not run, not even with `dense_backward`, and sends nothing on.

    The activation at a decision is `(columns, alive)`: `(r, m, ...)`, zeros where nothing came, and `(r, m)` bool.
    """

    def bank(self, decision: int) -> Paths:
        """Paths behind a decision."""
        return cast(Paths, super().bank(decision))

    def alive(self, decision: int, activation: Activation) -> Tensor:
        """Mask `(r, m)` of the tensors that carry something."""
        return tensors_of(activation)[1]

    def transition(self, decision: int, activation: Activation, action: Action, task: Tensor) -> Activation:
        """Outputs `(r, n, ...)` of the paths that were sent something, and which these are, `(r, n)` bool."""
        columns, alive = tensors_of(activation)
        gates = self.gates(decision, action).to(columns.dtype)
        mixed, reached = self.feed(decision, columns, alive, gates)
        return self.bank(decision).run_each(mixed, reached), reached

    def feed(self, decision: int, columns: Tensor, alive: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs `(r, n, ...)` of the paths, and which were sent something, `(r, n)` bool.

        Args:
            decision: Its number.
            columns: `(r, m, ...)`.
            alive: `(r, m)` bool.
            gates: `(r, m, n)`, 0 for tensors that are not alive.
        """
        return mix(columns, gates), (gates.detach() != 0).any(1)

    def gates(self, decision: int, action: Action) -> Tensor:
        """Weights `(r, m, n)` of an action of whatever form."""
        assert isinstance(action, Tensor)
        if not action.is_floating_point():
            action = functional.one_hot(action, self.decisions[decision].n)
        return action if action.ndim == 3 else action.unsqueeze(1)

    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Observation `(r, width)`: all tensors, images averaged over space, one after the other."""
        columns = tensors_of(activation)[0]
        return (columns.mean((3, 4)) if columns.ndim == 5 else columns).flatten(1)


def tensors_of(activation: Activation) -> tuple[Tensor, Tensor]:
    """Tensors `(r, m, ...)` of an activation, and which are alive, `(r, m)` bool."""
    columns, alive = activation
    assert isinstance(columns, Tensor) and isinstance(alive, Tensor)
    return columns, alive


def mix(columns: Tensor, gates: Tensor) -> Tensor:
    """Mixtures `(r, n, ...)`: Σ_i g_ij X_i for every j, of `(r, m, ...)` and `(r, m, n)`.

    Source: Tissera et al., "End-to-End Data-Dependent Routing in Multi-Path Neural Networks", Eqs. 5 and 6.
    """
    if columns.ndim == 3:
        return torch.einsum("rij,ric->rjc", gates, columns)
    # Pixel by pixel, as they lie in memory with their channels last, forwards and backwards.
    height_and_width = columns.shape[3:]
    pixels = columns.permute(0, 3, 4, 1, 2).flatten(1, 2)
    mixed = torch.matmul(gates.transpose(1, 2).unsqueeze(1), pixels)
    return mixed.unflatten(1, height_and_width).permute(0, 3, 4, 1, 2)


def weighed_sum(predicted: Tensor, gates: Tensor) -> Tensor:
    """Mixtures `(r, n, ...)`: Σ_i g_ij U_ij for every j, of `(r, m, n, ...)` and `(r, m, n)`.

    Source: Tissera et al., Eq. 4, without the ReLU.
    """
    if predicted.ndim == 4:
        return (predicted * gates.unsqueeze(3)).sum(1)
    pixels = predicted.permute(0, 4, 5, 1, 2, 3) * gates[:, None, None, :, :, None]
    return pixels.sum(3).permute(0, 3, 4, 1, 2)
