"""Networks of which something is left after training: the blocks in use, or one route as a plain network."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from routing_gym.blocks import FunctionBlocks, first_weights
from routing_gym.networks.banked import BankedNetwork
from routing_gym.tasks.checking import whole_number


class Deployable(BankedNetwork):
    """A network in which every instance passes every decision, in order, and a route is a chain of modules.

    A subclass implements `static_route`, and `rebuilt` or `pruned` itself.

    Attributes:
        block_counts: Number of blocks of each bank, PASS, which comes last, not counted.
    """

    block_counts: tuple[int, ...]

    @abstractmethod
    def static_route(self, route: Sequence[int], task: int) -> list[nn.Module]:
        """Modules to be run in turn, from normalised images to logits `(B, num_classes)`, with their own parameters.

        Args:
            route: The choice at each decision; PASS leaves no module.
            task: The task that takes it, for networks that are told the task.
        """

    def pruned(self, routes: Tensor) -> tuple[Deployable, Tensor]:
        """Copy of the network without the blocks that no route takes, and the routes in its numbering.

        Decisions that share a bank keep what any of them needs; PASS, which costs nothing, stays.

        Args:
            routes: `(T, N)` int64 on the CPU: the choice of each task at each decision.
        """
        whole, at = copy.deepcopy(self).cpu(), torch.tensor([self.bank_number(i) for i in range(len(self.decisions))])
        kept: list[list[int]] = []
        choices: list[list[int]] = []
        for number, (count, bank) in enumerate(zip(self.block_counts, whole.banks, strict=True)):
            assert isinstance(bank, FunctionBlocks)
            taken = routes[:, at == number]
            kept.append(taken[taken < count].unique().tolist())
            choices.append([*kept[-1], *range(count, bank.num_blocks)])
            if kept[-1]:
                whole.banks[number] = bank.select(choices[-1])
        with first_weights(0):  # they are not used
            smaller = whole.rebuilt(kept)
        for number, left in enumerate(kept):
            if left:
                smaller.banks[number] = whole.banks[number]
        columns = [torch.searchsorted(torch.tensor(choices[at[i]]), routes[:, i].contiguous()) for i in range(len(at))]
        return smaller.to(self.costs.device), torch.stack(columns, 1)

    def rebuilt(self, kept: Sequence[Sequence[int]]) -> Deployable:
        """Network like this one, a copy on the CPU whose banks are smaller already; what it puts into them is replaced.

        Args:
            kept: Former numbers of the blocks left in each bank, PASS not counted.
        """
        raise ValueError(f"{type(self).__name__} cannot be pruned: implement rebuilt(), or pruned()")

    def form_options(self) -> dict[str, Any]:
        """Options, plain values, that build the like of this network."""
        return {"num_blocks": list(self.block_counts)}


class Normalize(nn.Module):
    """Turns pixels from 0 to 255, uint8 or floating point, into the images a network was trained on.

    Args:
        mean: `(C,)`, in pixel units, as in `MultiTaskDataset`.
        std: `(C,)` likewise.
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


def blocks_per_bank(num_blocks: int | Sequence[int], layers: Sequence[int]) -> list[int]:
    """Number of blocks of each bank, from blocks per layer or a number for each bank; others are refused.

    Args:
        num_blocks: Blocks per layer, or a number for each bank.
        layers: Number of layers that share each bank.
    """
    if isinstance(num_blocks, str) or not isinstance(num_blocks, Sequence):
        return [whole_number("num_blocks", num_blocks) * sharing for sharing in layers]
    if len(num_blocks) != len(layers):
        raise ValueError(
            f"num_blocks must be one number, or one for each of the {len(layers)} sets of blocks, got {num_blocks!r}"
        )
    return [count if count == 0 else whole_number("num_blocks", count) for count in num_blocks]
