"""Networks with a bank of blocks behind every decision; what is left of them after training; checks of options."""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Self

import torch
from torch import Tensor, nn

from routing_gym.blocks import FunctionBlocks, ModuleBlocks, OwnedParameter, plain
from routing_gym.blocks.macs import cost_of
from routing_gym.networks.actions import Action, dense, is_weights
from routing_gym.networks.network import RoutedNetwork
from routing_gym.networks.state import EXIT, Activation, Decision
from routing_gym.tasks.checking import whole_number


class BankedNetwork(RoutedNetwork):
    """A network in which the choices of a decision are the blocks of a bank.

    A subclass sets `banks` and implements `stem`. Unless it says otherwise one tensor goes from bank to bank, and what
    the last one gives are the logits.

    Attributes:
        banks: Blocks that decisions offer.
        bank_of: Index into `banks` for each decision; None where each has its own, in order.
    """

    banks: nn.ModuleList
    _sizes: Tensor
    bank_of: Sequence[int] | None = None

    def bank(self, decision: int) -> FunctionBlocks:
        """Blocks that a decision offers."""
        bank = self.banks[decision if self.bank_of is None else self.bank_of[decision]]
        assert isinstance(bank, FunctionBlocks)
        return bank

    def let_blocks_merge(self, on: bool) -> None:
        """Let weights mix the blocks' parameters, of which one merged block then runs, instead of their outputs.

        Raises:
            ValueError: A decision offers other than blocks with the same parameters.
        """
        for number, decision in enumerate(self.decisions if on else ()):
            if decision.m > 1 or not self.bank(number).mergeable:
                raise ValueError(
                    f"merge_blocks=True: what decision {decision.name!r} of this network offers cannot be merged: "
                    "blocks need the same parameters, no batch norm, no RNN, and one tensor, as in the network 'mlp'"
                )
        if on:
            sizes = torch.tensor([sum(of.value.numel() for of in part) for part in self.parts()], device="cpu")
            self.register_buffer("_sizes", sizes.to(self.costs).view_as(self.costs), persistent=False)
        self.merge_blocks = on

    def macs(self, decision: int, action: Action) -> tuple[Tensor, Tensor]:
        """See `RoutedNetwork.macs`; of merged blocks the cost of one, and one for every parameter that is mixed."""
        if not (self.merge_blocks and is_weights(action)):
            return super().macs(decision, action)
        count = self.decisions[decision].n
        used = dense(action, count).detach() != 0
        executed = (used * self.costs[decision, :count]).amax(1) + (used * self._sizes[decision, :count]).sum(1)
        return executed, executed

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


class Deployable(BankedNetwork):
    """A network in which every instance passes every decision, in order, and a route is a chain of modules.

    Attributes:
        block_counts: Number of blocks of each bank, PASS, which comes last, not counted.
    """

    block_counts: tuple[int, ...]

    @abstractmethod
    def static_route(self, route: Sequence[int], task: int) -> list[nn.Module]:
        """Modules to be run in turn, from normalised images to logits `(B, num_classes)`, with their own parameters.

        The route is the choice at each decision, of which PASS leaves no module; the task is the one that takes it.
        """

    def pruned(self, routes: Tensor) -> tuple[Self, Tensor]:
        """Copy of the network without the blocks that no route takes, and the routes in its numbering.

        Routes are `(T, N)` int64 on the CPU: the choice of each task at each decision. Decisions that share a bank keep
        what any of them needs; PASS, which costs nothing, stays.
        """
        smaller, at = copy.deepcopy(self).cpu(), list(self.bank_of or range(len(self.decisions)))
        smaller.used = None
        counts: list[int] = []
        choices: list[Tensor] = []
        for number, (count, bank) in enumerate(zip(self.block_counts, smaller.banks, strict=True)):
            assert isinstance(bank, FunctionBlocks)
            taken = routes[:, torch.tensor(at, device="cpu") == number]
            kept = taken[taken < count].unique().tolist()
            left = [*kept, *range(count, bank.num_blocks)]
            width = self.decisions[at.index(number)].width  # of what passes, where PASS is all that is left
            own = bank.select(left) if kept else ModuleBlocks([nn.Identity()], (width,))
            smaller.banks[number], smaller.stem_macs = own, smaller.stem_macs + own.shared_macs - bank.shared_macs
            counts.append(len(kept))
            choices.append(torch.tensor(left, device="cpu"))
        smaller.block_counts = tuple(counts)
        smaller.set_decisions(
            dataclasses.replace(decision, macs=bank.macs, next=decision.next[:1] * bank.num_blocks)
            for decision, bank in zip(self.decisions, map(smaller.bank, range(len(at))), strict=True)
        )
        columns = [torch.searchsorted(choices[i], route.contiguous()) for i, route in zip(at, routes.t(), strict=True)]
        return smaller.to(self.costs.device), torch.stack(columns, 1)

    def form_options(self) -> dict[str, Any]:
        """Options, plain values, that build the like of this network."""
        return {"num_blocks": list(self.block_counts)}


class Normalize(nn.Module):
    """Turns pixels from 0 to 255, uint8 or floating point, into the images a network was trained on.

    Mean and deviation are `(C,)`, in pixel units, as in `MultiTaskDataset`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone().view(-1, 1, 1))
        self.register_buffer("std", std.clone().view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Images `(B, C, H, W)`, each channel less its mean and divided by its deviation."""
        return (pixels.to(self.mean.dtype) - self.mean) / self.std


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
    macs, shape = (0.0, input_shape) if trunk is None else cost_of(trunk, torch.zeros(1, *input_shape))
    return math.prod(shape), macs


def blocks_per_bank(num_blocks: int | Sequence[int], layers: Sequence[int]) -> list[int]:
    """Blocks of each bank, of `num_blocks` per layer, so many layers sharing each, or a number for each bank."""
    if isinstance(num_blocks, str) or not isinstance(num_blocks, Sequence):
        return [whole_number("num_blocks", num_blocks) * sharing for sharing in layers]
    if len(num_blocks) != len(layers):
        raise ValueError(
            f"num_blocks must be one number, or one for each of the {len(layers)} sets of blocks, got {num_blocks!r}"
        )
    return [count if count == 0 else whole_number("num_blocks", count) for count in num_blocks]


def check_image(input_shape: Sequence[int], smallest: int) -> None:
    """Refuse `(C, H, W)` images of fewer pixels in a row or a column than a network can make smaller."""
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ValueError(
            f"input_shape=(C, H, W) must be of at least {smallest}x{smallest} pixels, got {tuple(input_shape)}"
        )
