"""A combination lock: blocks that are given and never learn, so that all there is to learn is the route."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from routing_gym.blocks import ModuleBlocks, static_copy
from routing_gym.networks.banked import Deployable, blocks_per_bank, one_after_the_other
from routing_gym.networks.state import Activation
from routing_gym.tasks.checking import check_counts
from routing_gym.tasks.planted.parts import lock_order


class Permutation(nn.Module):
    """Features `(B, D)` in another order."""

    order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order)

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, D)`."""
        return features.index_select(1, self.order)


class Gain(nn.Module):
    """Features `(B, D)` times a number, all that a lock learns: the size of its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(5.0))

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, D)`."""
        return features * self.gain


class Lock(Deployable):
    """A combination lock: only the right block at every layer gives the right class, any wrong one gives chance.

    Block b of layer d permutes the numbers of an image in a way that is the same in every lock for images of its size;
    the logits are what comes of that.

    Args:
        input_shape: Shape of an image, as many numbers as classes.
        num_blocks: Blocks per layer, or a number for each.
        layers: Number of layers.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, num_blocks: int | Sequence[int], *, layers: int = 1
    ) -> None:
        check_counts(layers=layers)
        if (size := math.prod(input_shape)) != num_classes:
            raise ValueError(
                f"a lock takes an image with a number for each of the {num_classes} classes, got shape "
                f"{tuple(input_shape)}"
            )
        self.block_counts = tuple(blocks_per_bank(num_blocks, [1] * layers))
        banks = [
            ModuleBlocks([Permutation(lock_order(depth, block, size)) for block in range(count)], (size,))
            for depth, count in enumerate(self.block_counts)
        ]
        names, macs = [f"layer {depth + 1}" for depth in range(layers)], [bank.macs for bank in banks]
        decisions = one_after_the_other(names, macs, [size] * layers)
        super().__init__(decisions, num_classes=num_classes, input_shape=input_shape)
        self.banks, self.gain = nn.ModuleList(banks), Gain()

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Numbers `(B, num_classes)` of the images, times the gain."""
        return (self.gain(images.flatten(1)),)

    def static_route(self, route: Sequence[int], task: int) -> list[nn.Module]:
        """The gain, and the chosen permutations."""
        chosen = [module for decision, choice in enumerate(route) for module in self.bank(decision).as_modules(choice)]
        return [nn.Flatten(), static_copy(self.gain), *chosen]
