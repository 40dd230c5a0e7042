"""Networks of which something is left after training: the blocks in use, or one route as a plain network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.networks.network import RoutedNetwork
from routing_gym.tasks.checking import whole_number


class Deployable(RoutedNetwork):
    """A network in which every instance passes every decision, in order, and a route is a chain of modules.

    Attributes:
        block_counts: How many blocks each set of blocks holds, PASS not counted.
    """

    block_counts: tuple[int, ...]

    @abstractmethod
    def static_route(self, route: Sequence[int], task: int) -> list[nn.Module]:
        """Return one route as plain modules to be run one after the other, from normalised images to logits.

        Args:
            route: The choice at each decision.
            task: The task that takes it, for networks that are told the task.

        Returns:
            Modules on the network's device, with parameters of their own. PASS leaves none.
        """

    @abstractmethod
    def pruned(self, routes: Tensor) -> tuple[Deployable, Tensor]:
        """Return a copy without the blocks that no route takes, and the routes in its numbering.

        Args:
            routes: `(T, N)` int64 on the CPU: the choice of each task at each decision.
        """

    def form_options(self) -> dict[str, Any]:
        """Return the options, plain values, that build the like of this network instead of the whole one."""
        return {"num_blocks": list(self.block_counts)}


class JoinTask(nn.Module):
    """Joins a one-hot task, always the same, to `(B, D)` features.

    Args:
        task: The task.
        num_tasks: How many tasks there are.
    """

    one_hot: Tensor

    def __init__(self, task: int, num_tasks: int) -> None:
        super().__init__()
        self.register_buffer("one_hot", functional.one_hot(torch.tensor([task]), num_tasks).float())

    def forward(self, features: Tensor) -> Tensor:
        """Return `(B, D + num_tasks)`."""
        # shape[0], not len(): torch.export would take the latter for a constant.
        return torch.cat([features, self.one_hot.to(features.dtype).expand(features.shape[0], -1)], 1)


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
        """Return `(B, C, H, W)`, each channel less its mean and divided by its deviation."""
        return (pixels.to(self.mean.dtype) - self.mean) / self.std


def blocks_per_set(num_blocks: int | Sequence[int], layers: Sequence[int]) -> list[int]:
    """Return the number of blocks of each set.

    Args:
        num_blocks: Blocks per layer, or a number for each set.
        layers: How many layers share each set.

    Raises:
        ValueError: More or fewer numbers than there are sets, or one that is no number of blocks.
    """
    if isinstance(num_blocks, str) or not isinstance(num_blocks, Sequence):
        return [whole_number("num_blocks", num_blocks) * sharing for sharing in layers]
    if len(num_blocks) != len(layers):
        raise ValueError(
            f"num_blocks must be one number, or one for each of the {len(layers)} sets of blocks, got {num_blocks!r}"
        )
    return [count if count == 0 else whole_number("num_blocks", count) for count in num_blocks]
