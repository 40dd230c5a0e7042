"""The networks of diverse experts for Omniglot, and the one for MNIST (Ramachandran and Le 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from routing_gym.blocks import ModuleBlocks
from routing_gym.blocks.experts import double_expert, group_norm, image_bank
from routing_gym.networks.experts import Experts, InTurn, OnFirst, RoutedExperts, experts_per_layer
from routing_gym.networks.options import check_choice, check_counts, check_image

DIVERSE = ("conv3", "conv5", "conv7", "conv1x7", "max-pool", "average-pool", "identity")
CONVS = ("conv3", "conv3", "conv5", "conv5", "conv7", "conv7", "conv1x7")
"""Footnote 1: two of each pair of square kernels, and one 1x7 -> 7x1."""

POOLED_AFTER = (2, 4, 6)
SHARED_LAYERS = 3


def omniglot_experts(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 48,
    expert_mid: int = 48,
    layers: int = 8,
    readout: Literal["pooled", "flat"] = "pooled",
    experts: Experts = DIVERSE,
    num_tasks: int = 1,
) -> RoutedExperts:
    """Build a shared 3x3 convolution and layers of experts.

    Source: Ramachandran and Le (2019), section 4.2 and Table 2. The shared convolution, every convolution of an expert,
    and every mixture are followed by group normalisation and ReLU. The paper does not say where images are made
    smaller, nor what the readouts see: here 2x2 max-pooling comes after the shared convolution and after layers 2, 4
    and 6, unless they are the last.

    Args:
        input_shape: `(C, H, W)` of an image, at least 16 pixels high and wide.
        num_classes: Width of the logits.
        width: Channels of every layer.
        expert_mid: Channels between the two square convolutions of an expert; 1x7 and 7x1 always have `width`. With 48
            experts are as the paper words them, and omniglot-diverse has 3.37 million parameters for 20 tasks; with 24
            it has 1.84, where the paper prints 1.8.
        layers: Layers of experts.
        readout: Input of a task's linear readout: `"pooled"`, the average over the image, or `"flat"`, all of it.
        experts: Names of the experts of all layers, or a list of names for each layer.
        num_tasks: Number of tasks, each with a readout of its own.

    Raises:
        ValueError: Images too small, or an option out of range, by its name.
    """
    check_image(input_shape, 2 ** (1 + len(POOLED_AFTER)))
    check_counts(width=width, expert_mid=expert_mid, layers=layers)
    check_choice("readout", readout, "pooled", "flat")
    names = experts_per_layer(experts, layers)
    shape, banks, between = (width, input_shape[1] // 2, input_shape[2] // 2), [], []
    for number, layer in enumerate(names, 1):
        banks.append(image_bank([double_expert(kind, width, expert_mid) for kind in layer], shape))
        parts: list[nn.Module] = [group_norm(width), nn.ReLU()]
        if number == layers:
            parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if readout == "pooled" else [nn.Flatten()]
        elif number in POOLED_AFTER:
            parts.append(nn.MaxPool2d(2))
            shape = width, shape[1] // 2, shape[2] // 2
        between.append(InTurn(OnFirst(nn.Sequential(*parts))))
    first = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
    return RoutedExperts(
        input_shape,
        num_classes,
        stem=InTurn(OnFirst(nn.Sequential(first, group_norm(width), nn.ReLU(), nn.MaxPool2d(2)))),
        banks=banks,
        between=between,
        experts=names,
        names=[f"layer {number}" for number in range(1, layers + 1)],
        num_tasks=num_tasks,
    )


class MnistExperts(RoutedExperts):
    """The network of `mnist_experts`."""

    def form_options(self) -> dict[str, Any]:
        """Number of experts, which are all alike."""
        return {"num_experts": self.block_counts[0]}


def mnist_experts(
    input_shape: Sequence[int], num_classes: int, *, width: int = 64, num_experts: int = 5, num_tasks: int = 1
) -> MnistExperts:
    """Build three shared layers and one layer of experts, all fully connected with layer normalisation and ReLU.

    Source: Ramachandran and Le (2019), section 4.1: 64 neurons each, 5 experts of which 2 are mixed (which is up to the
    agent), on MNIST. The linear readout behind them goes without saying there.

    Args:
        input_shape: `(C, H, W)` of an image.
        num_classes: Width of the logits.
        width: Width of every layer.
        num_experts: Number of experts.
        num_tasks: Number of tasks, each with a readout of its own.

    Raises:
        ValueError: An option out of range, by its name.
    """
    check_counts(width=width, num_experts=num_experts)
    widths = [math.prod(input_shape), *[width] * SHARED_LAYERS]
    shared = [_linear_norm_relu(inputs, outputs) for inputs, outputs in zip(widths, widths[1:], strict=False)]
    return MnistExperts(
        input_shape,
        num_classes,
        stem=InTurn(OnFirst(nn.Sequential(nn.Flatten(), *shared))),
        banks=[ModuleBlocks((_linear_norm_relu(width, width) for _ in range(num_experts)), (width,))],
        between=[InTurn()],
        experts=[("fully connected",) * num_experts],
        names=["layer 4"],
        num_tasks=num_tasks,
    )


def _linear_norm_relu(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU())
