"""ResNets (He et al. 2016) with layers of experts, or residual blocks that every instance runs or skips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks import ModuleBlocks, subsample_first
from routing_gym.blocks.experts import image_bank, single_expert
from routing_gym.blocks.skippable import CHOICES, ResidualBlock, skippable_bank
from routing_gym.networks.banked import check_image
from routing_gym.networks.experts import Bank, Experts, InTurn, OnFirst, RoutedExperts, experts_per_layer
from routing_gym.tasks.checking import check_counts

DIVERSE_3X3 = ("conv3", "conv5", "conv1x7", "max-pool", "squeeze-excite")
BOTTLENECKS = (3, 4, 6, 3)
EXPANSION = 4
ROUTED = sum(count - (stage > 0) for stage, count in enumerate(BOTTLENECKS))
"""Bottlenecks that leave the size of the image as it is: all but the first of stages 2, 3 and 4."""


class Opening(nn.Module):
    """First part of a bottleneck (He et al. 2016): the 1x1 convolution to its `width` channels, and the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.reduce = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            projection = subsample_first(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input of the 3x3 convolution, or of the experts in its place, and the shortcut."""
        return self.reduce(x), self.shortcut(x)


class Closing(nn.Module):
    """Last part of a bottleneck: batch norm and ReLU of the 3x3 convolution, 1x1 convolution, sum and ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        conv = nn.Conv2d(width, EXPANSION * width, 1, bias=False)
        self.expand = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), conv, nn.BatchNorm2d(EXPANSION * width))

    def forward(self, x: Tensor, shortcut: Tensor) -> tuple[Tensor]:
        """Output of the bottleneck."""
        return ((self.expand(x) + shortcut).relu(),)


def resnet50_experts(
    input_shape: Sequence[int], num_classes: int, *, width: int = 64, experts: Experts = DIVERSE_3X3, num_tasks: int = 1
) -> RoutedExperts:
    """Build ResNet-50 with layers of experts.

    Source: Ramachandran and Le (2019), section 4.2.2; He et al. (2016). Experts stand in place of the 3x3 convolution
    of the 13 bottlenecks that leave the size of the image as it is, before its batch norm and ReLU. As worded the
    network has 59.7 million parameters with diverse experts and 56.8 with 3x3 convolutions alone, at 196 classes; the
    paper prints 52 and 50.

    Args:
        input_shape: `(C, H, W)` of an image, at least 32 pixels high and wide.
        num_classes: Width of the logits.
        width: Channels of the first stage's bottlenecks.
        experts: Names of the experts of all layers, or a list of names for each layer.
        num_tasks: Number of tasks, each with a readout of its own.
    """
    check_counts(width=width)
    check_image(input_shape, 32)
    kinds = experts_per_layer(experts, ROUTED)
    height, breadth = ((side + 3) // 4 for side in input_shape[1:])  # a convolution and a pooling of stride 2
    segments: list[list[nn.Module]] = [[OnFirst(first_layers(input_shape[0], width))]]
    banks: list[ModuleBlocks] = []
    names, channels = [], width
    for stage, count in enumerate(BOTTLENECKS):
        inner = width * 2**stage
        for number in range(count):
            stride = 2 if stage and not number else 1
            segments[-1].append(Opening(channels, inner, stride))
            channels = EXPANSION * inner
            if stride == 2:
                height, breadth = (height + 1) // 2, (breadth + 1) // 2
                segments[-1].append(OnFirst(nn.Conv2d(inner, inner, 3, stride=2, padding=1, bias=False)))
            else:
                layer = [single_expert(kind, inner) for kind in kinds[len(banks)]]
                banks.append(image_bank(layer, (inner, height, breadth)))
                names.append(f"stage {stage + 1}, bottleneck {number + 1}")
                segments.append([])
            segments[-1].append(Closing(inner))
    segments[-1].append(OnFirst(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())))
    stem, *between = (InTurn(*segment).to(memory_format=torch.channels_last) for segment in segments)  # type: ignore[call-overload]
    return RoutedExperts(input_shape, num_classes, stem, banks, between, kinds, names, num_tasks)


def first_layers(channels: int, width: int) -> nn.Sequential:
    """Build the first layers of ResNets for ImageNet: a 7x7 convolution and a pooling, each of stride 2."""
    conv = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))


class Subsampled(nn.Module):
    """The shortcut without parameters: every second pixel, and channels of zeros behind those there are."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """Shortcut `(B, outputs, ⌈H / 2⌉, ⌈W / 2⌉)`."""
        kept = x[:, :, ::2, ::2].permute(0, 2, 3, 1)  # channels stay last in memory
        return functional.pad(kept, (0, self.outputs - x.shape[1])).permute(0, 3, 1, 2)


def resnet_skip(
    bottlenecks: bool,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    width: int,
    stages: Sequence[int],
    observes: Literal["mean", "map"] = "mean",
    experts: Experts = CHOICES,
    num_tasks: int = 1,
) -> RoutedExperts:
    """Build a ResNet whose residual blocks are decisions: skip (0) or run (1).

    Source: He et al. (2016), CoDiNet (Wang et al.), section 3.1. Every stage but the first begins with half the image
    and twice the channels. Batch norm while training has the statistics of the rows that run a block (all with soft
    weights), and their running average goes with the routes of the last batches: a network that was trained softly
    wants some training with hard decisions before it is used with them (CoDiNet, section 3.4).

    Args:
        bottlenecks: The form for ImageNet: blocks are bottlenecks, a 7x7 convolution and pooling come first, shortcuts
            that change the shape are convolutions. In the form for CIFAR-10 blocks are pairs of 3x3 convolutions and
            shortcuts have no parameters.
        input_shape: `(C, H, W)` of an image, at least 4 pixels high and wide, with bottlenecks 32.
        num_classes: Width of the logits.
        width: Channels of the first stage.
        stages: Residual blocks of each stage; there are three, with bottlenecks four.
        observes: Observation of a block's input: `"mean"`, each channel averaged over the image, or `"map"`, all of it,
            flattened, for routers that convolve.
        experts: Choices of all blocks, or a list for each: what `prune` leaves is skipped, or run, by all.
        num_tasks: Number of tasks, each with a readout of its own.
    """
    if len(stages) != (wanted := 4 if bottlenecks else 3):
        raise ValueError(f"this network has {wanted} stages, got stages={list(stages)}")
    check_counts(width=width, **{f"stages[{stage}]": count for stage, count in enumerate(stages)})
    check_image(input_shape, 32 if bottlenecks else 4)
    choices = experts_per_layer(experts, sum(stages))
    make = _bottleneck if bottlenecks else _basic_block
    if bottlenecks:
        stem: nn.Module = first_layers(input_shape[0], width)
    else:
        stem = nn.Sequential(*_conv_norm(input_shape[0], width, 3), nn.ReLU())
    shape = (width, *(math.ceil(side / 4) if bottlenecks else side for side in input_shape[1:]))
    banks: list[Bank] = []
    names = []
    for stage, count in enumerate(stages):
        for number in range(count):
            block = make(shape[0], width * 2**stage, stride=2 if stage and not number else 1)
            block = block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            banks.append(skippable_bank(block, choices[len(banks)], shape))
            names.append(f"stage {stage + 1}, block {number + 1}")
            shape = banks[-1].output_shape
    averaged = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    between = [*(InTurn() for _ in banks[1:]), InTurn(OnFirst(averaged))]
    stem = InTurn(OnFirst(stem)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return RoutedExperts(input_shape, num_classes, stem, banks, between, choices, names, num_tasks, observes)


def _basic_block(inputs: int, width: int, *, stride: int) -> ResidualBlock:
    # In place: batch norm goes back from its input, not from its output.
    relu = nn.ReLU(inplace=True)
    residual = nn.Sequential(*_conv_norm(inputs, width, 3, stride), relu, *_conv_norm(width, width, 3))
    return ResidualBlock(residual, nn.Identity() if stride == 1 else Subsampled(width))


def _bottleneck(inputs: int, width: int, *, stride: int) -> ResidualBlock:
    outputs = EXPANSION * width
    layers = [*_conv_norm(inputs, width, 1), nn.ReLU(inplace=True)]
    layers += [*_conv_norm(width, width, 3, stride), nn.ReLU(inplace=True)]
    residual = nn.Sequential(*layers, *_conv_norm(width, outputs, 1))
    same = stride == 1 and inputs == outputs
    return ResidualBlock(residual, nn.Identity() if same else nn.Sequential(*_conv_norm(inputs, outputs, 1, stride)))


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(outputs)
