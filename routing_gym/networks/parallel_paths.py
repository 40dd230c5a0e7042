"""Paths side by side, with a gate for every pair of a tensor and a path, crossed or predicting each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks import OwnedParameter, PathBlocks
from routing_gym.blocks.macs import cost_of
from routing_gym.networks.actions import Action, dense
from routing_gym.networks.banked import BankedNetwork, one_after_the_other
from routing_gym.networks.parallel_nets import Cross, Layout, stem_and_segments
from routing_gym.networks.state import Activation
from routing_gym.tasks.checking import check_choice, check_counts


class RoutedPaths(BankedNetwork):
    """A network in which m tensors arrive at a decision and n paths lie behind it.

    An m x n gate says how much of each tensor goes to each path. Under hard choices every tensor goes to one path:
    tensors merge and never split. A path that nothing was sent to is not run, not even with `dense_backward`, and sends
    nothing on.

    The activation at a decision is `(columns, alive)`: `(r, m, ...)`, zeros where nothing came, and `(r, m)` bool.
    """

    def alive(self, decision: int, activation: Activation) -> Tensor:
        """Mask `(r, m)` of the tensors that carry something."""
        return tensors_of(activation)[1]

    def transition(self, decision: int, activation: Activation, action: Action, task: Tensor) -> Activation:
        """Outputs `(r, n, ...)` of the paths that were sent something, and which these are, `(r, n)` bool."""
        columns, alive = tensors_of(activation)
        gates = dense(action, self.decisions[decision].n).to(columns.dtype)
        gates = gates if gates.ndim == 3 else gates.unsqueeze(1)
        mixed, reached = self.feed(decision, columns, alive, gates)
        return self.bank(decision).run_each(mixed, reached), reached

    def feed(self, decision: int, columns: Tensor, alive: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs `(r, n, ...)` of the paths, and which were sent something, `(r, n)` bool.

        Columns are `(r, m, ...)`, some of them `alive (r, m)`; gates `(r, m, n)` are 0 for the others.
        """
        return mix(columns, gates), (gates.detach() != 0).any(1)

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
    """Mixtures `(r, n, ...)`: Σ_i g_ij X_i for every j, of `(r, m, ...)` and `(r, m, n)` (Tissera et al., Eqs. 5-6)."""
    if columns.ndim == 3:
        return torch.einsum("rij,ric->rjc", gates, columns)
    # Pixel by pixel, as they lie in memory with their channels last, forwards and backwards.
    pixels = columns.permute(0, 3, 4, 1, 2).flatten(1, 2)
    mixed = torch.matmul(gates.transpose(1, 2).unsqueeze(1), pixels)
    return mixed.unflatten(1, columns.shape[3:]).permute(0, 3, 4, 1, 2)


def weighed_sum(predicted: Tensor, gates: Tensor) -> Tensor:
    """Mixtures `(r, n, ...)`: Σ_i g_ij U_ij for every j, of `(r, m, n, ...)` and `(r, m, n)` (Eq. 4 without ReLU)."""
    if predicted.ndim == 4:
        return (predicted * gates.unsqueeze(3)).sum(1)
    pixels = predicted.permute(0, 4, 5, 1, 2, 3) * gates[:, None, None, :, :, None]
    return pixels.sum(3).permute(0, 3, 4, 1, 2)


class ParallelPaths(RoutedPaths):
    """Paths side by side with crossings between them, whose outputs are averaged.

    Source: Tissera et al., "End-to-End Data-Dependent Routing in Multi-Path Neural Networks". Cross-connection
    (Algorithm 2) feeds path j with Y_j = Σ_i g_ij X_i; cross-prediction (Algorithm 1) with
    Y_j = ReLU(Σ_i g_ij U_ij), where U_ij = W_ij X_i + b_ij is what tensor i predicts for path j.

    Under hard routing only paths that were reached run, each on its own rows, only predictions that were asked for are
    made, and the output is the average over the paths that were reached last. Batch norm has the statistics of the rows
    that run a path, unweighted by gates: its running averages go with the routes of the last batches.

    Args:
        layout: The network, but for the number of its paths.
        input_shape: `(C, H, W)` of an image.
        paths: Number of paths.
        width: Channels of the first convolution; the others are multiples of it.
        hidden: Width of the hidden dense layers, where there are any.
        form: Whether the way into the paths is a decision (`"gated-columns"`) or all begin alike (`"columns"`).
        cross: Whether tensors themselves are mixed (`"connections"`) or what they predict (`"predictions"`).
    """

    def __init__(
        self,
        layout: Layout,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        paths: int = 1,
        width: int,
        hidden: int,
        form: Literal["columns", "gated-columns"] = "columns",
        cross: Cross = "connections",
    ) -> None:
        check_counts(paths=paths, width=width, hidden=hidden)
        check_choice("cross", cross, "connections", "predictions")
        check_choice("form", form, "columns", "gated-columns")
        made = dataclasses.replace(layout, width=width, hidden=hidden)
        stem, segments = stem_and_segments(made, input_shape, num_classes, paths, cross == "predictions")
        fixed, shape = 0.0, tuple(input_shape)
        if stem is not None:
            fixed, shape = cost_of(stem, torch.zeros(1, *input_shape))
        banks: list[PathBlocks] = []
        predictions: list[PathBlocks | None] = []
        tensors, widths, costs = [1, *[paths] * (len(segments) - 1)], [], []
        for arriving, segment in zip(tensors, segments, strict=True):
            widths.append(arriving * shape[0])
            predicted = None
            if segment.prediction is not None:
                predicted = PathBlocks(segment.prediction, arriving * paths, shape)
                shape = predicted.output_shape
            bank = PathBlocks(segment.layers, paths, shape)
            shape = bank.output_shape
            banks.append(bank)
            predictions.append(predicted)
            costs.append(tuple(cost + (predicted.macs[0] if predicted else 0.0) for cost in bank.macs))
        first = 0 if form == "gated-columns" else 1
        masks = None
        if not layout.crossed:
            masks = torch.eye(paths, dtype=torch.bool).repeat(len(segments) - first, 1, 1)
            masks[: 1 - first] = True  # the one tensor of the connector may go everywhere
        names = [segment.name for segment in segments[first:]]
        fixed += sum(map(sum, costs[:first]))
        decisions = one_after_the_other(names, costs[first:], widths[first:], tensors[first:])
        super().__init__(decisions, num_classes=num_classes, input_shape=input_shape, stem_macs=fixed, masks=masks)
        self.form, self.cross, self.paths = form, cross, paths
        self._first, self.bank_of = first, range(first, len(segments))
        self.trunk, self.banks = stem, nn.ModuleList(banks)
        self.predictions = nn.ModuleList(nn.Identity() if made is None else made for made in predictions)

    def predicting(self, decision: int) -> PathBlocks | None:
        """Predictions of the paths' inputs at a decision; None where tensors themselves are mixed."""
        blocks = self.predictions[decision + self._first]
        return blocks if isinstance(blocks, PathBlocks) else None

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Tensors `(B, m, ...)`, all alive, of the stem or, where no decision is before them, the first layers."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = (x if self.trunk is None else self.trunk(x)).unsqueeze(1)
        if self._first:
            if (predicted := self.predicting(-1)) is not None:
                x = functional.relu(predicted.run_each(x))
            x = cast(PathBlocks, self.banks[0]).run_each(x)
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)

    def feed(self, decision: int, columns: Tensor, alive: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """See `RoutedPaths.feed`: of the tensors, or of what they predict."""
        blocks = self.predicting(decision)
        if blocks is None:
            return super().feed(decision, columns, alive, gates)
        used = gates.detach() != 0
        reached = used.any(1)
        blocks.note_use(used.flatten(1).any(0))
        if self.dense_backward and self.training and gates.requires_grad:
            used = alive.unsqueeze(2) & reached.unsqueeze(1)  # what is not weighed has a gradient by its weight
        predicted = blocks.run_each(columns, used.flatten(1)).unflatten(1, (-1, self.paths))
        return functional.relu(weighed_sum(predicted, gates)), reached

    def macs(self, decision: int, action: Action) -> tuple[Tensor, Tensor]:
        """Executed and expected multiply-accumulates `(r,)`: the union of what tensors reach, and each prediction."""
        blocks = self.predicting(decision)
        if blocks is None or self.decisions[decision].m == 1:
            return super().macs(decision, action)
        weights = dense(action, self.num_choices)
        used, chance = weights.detach() != 0, weights.clamp(0, 1)
        behind, price = self.bank(decision).macs[0], blocks.macs[0]
        executed = behind * used.any(1).sum(1) + price * used.sum((1, 2))
        return executed.to(weights.dtype), behind * (1 - (1 - chance).prod(1)).sum(1) + price * chance.sum((1, 2))

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Logits `(r, num_classes)`: the average of the paths that were reached; zeros where none was."""
        outputs, alive = tensors_of(activation)
        return outputs.sum(1) / alive.sum(1, keepdim=True).clamp(min=1)  # paths that were not reached are zeros

    def parameters_of(self, decision: int, choice: int) -> list[OwnedParameter]:
        """Parameters of a path, and of all predictions for it."""
        own = super().parameters_of(decision, choice)
        if (blocks := self.predicting(decision)) is not None:
            for pair in range(choice, blocks.num_blocks, self.paths):
                own += blocks.parameters_of(pair)
        return own
