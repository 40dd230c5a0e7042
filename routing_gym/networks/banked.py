"""Networks with a bank of blocks behind every decision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import repeat

import torch
from torch import Tensor, nn

from routing_gym.blocks import FunctionBlocks, OwnedParameter, count_macs, plain, probe
from routing_gym.networks.actions import Action
from routing_gym.networks.decision import EXIT, Decision
from routing_gym.networks.network import RoutedNetwork
from routing_gym.networks.state import Activation


class BankedNetwork(RoutedNetwork):
    """A network in which the choices of a decision are the blocks of a bank.

    A subclass sets `banks` and implements `stem`. Unless it says otherwise one tensor goes from bank to bank, and what
    the last one gives are the logits.

    Attributes:
        banks: One for each decision, unless `bank_number` says otherwise.
    """

    banks: nn.ModuleList

    def bank_number(self, decision: int) -> int:
        """Index into `banks` of what stands behind a decision."""
        return decision

    def bank(self, decision: int) -> FunctionBlocks:
        """Blocks that a decision offers."""
        bank = self.banks[self.bank_number(decision)]
        assert isinstance(bank, FunctionBlocks)
        return bank

    def transition(self, decision: int, activation: Activation, action: Action, task: Tensor) -> Activation:
        """Output `(r, ...)` of the chosen blocks, or their mixture."""
        return (self.bank(decision)(plain(activation[0]), action),)

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Logits `(r, num_classes)`: the last blocks' output as it is."""
        return plain(activation[0])

    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Observation `(r, width)`: the blocks' input, averaged over space."""
        return averaged(plain(activation[0]))

    def parameters_of(self, decision: int, choice: int) -> list[OwnedParameter]:
        """Parameters of a block."""
        return self.bank(decision).parameters_of(choice)


def averaged(x: Tensor) -> Tensor:
    """Averages `(r, C)` over space of `(r, C, ...)`."""
    return x if x.ndim == 2 else x.mean(tuple(range(2, x.ndim)))


def one_after_the_other(
    names: Iterable[str], macs: Sequence[tuple[float, ...]], widths: Iterable[int], tensors: Iterable[int] = repeat(1)
) -> list[Decision]:
    """Decisions that every instance passes in order, with the costs of their choices, and how many tensors arrive."""
    targets = [*range(1, len(macs)), EXIT]
    return [
        Decision(name=name, macs=costs, next=(target,) * len(costs), m=m, width=width)
        for name, costs, width, target, m in zip(names, macs, widths, targets, tensors, strict=False)
    ]


def features_of(trunk: nn.Module | None, input_shape: Sequence[int]) -> tuple[int, float]:
    """Number of features that a trunk makes of an image, and its multiply-accumulates; without one, of the pixels."""
    image = torch.zeros(1, *input_shape)
    if trunk is None:
        return image.numel(), 0.0
    return probe(trunk, partial(trunk, image)).numel(), count_macs(trunk, image)
