"""ResNets in which every instance runs or skips each residual block (He et al. 2016; CoDiNet, Wang et al.)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks.skippable import CHOICES, ResidualBlock, SkippableBlock, one_choice
from routing_gym.networks.experts import Bank, Experts, InTurn, OnFirst, RoutedExperts, experts_per_layer
from routing_gym.networks.options import check_counts, check_image
from routing_gym.networks.resnet_experts import EXPANSION, first_layers


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

    Source: He et al. (2016), CoDiNet (Wang et al.), section 3.1. The first block of every stage but the first halves
    the image, and the channels double there. Batch norm while training has the statistics of the rows that run a block
    (all with soft weights), and normalises with their running average afterwards, which goes with the routes of the
    last batches: a network that was trained softly wants some training with hard decisions before it is used with them
    (CoDiNet, section 3.4).

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

    Raises:
        ValueError: Images too small, or an option out of range, by its name.
    """
    if len(stages) != (wanted := 4 if bottlenecks else 3):
        raise ValueError(f"this network has {wanted} stages, got stages={list(stages)}")
    check_counts(width=width, **{f"stages[{stage}]": count for stage, count in enumerate(stages)})
    check_image(input_shape, 32 if bottlenecks else 4)
    choices = experts_per_layer(experts, sum(stages))
    if wrong := [layer for layer in choices if layer not in (CHOICES, CHOICES[:1], CHOICES[1:])]:
        raise ValueError(f"the choices of a block are some of {CHOICES}, got {list(wrong[0])}")
    make = _bottleneck if bottlenecks else _basic_block
    stem = (first_layers if bottlenecks else _cifar_stem)(input_shape[0], width)
    shape = (width, *(math.ceil(side / 4) if bottlenecks else side for side in input_shape[1:]))
    banks: list[Bank] = []
    names = []
    for stage, count in enumerate(stages):
        for number in range(count):
            block = make(shape[0], width * 2**stage, stride=2 if stage and not number else 1)
            block = block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            left = choices[len(banks)]
            banks.append(SkippableBlock(block, shape) if left == CHOICES else one_choice(block, left[0], shape))
            names.append(f"stage {stage + 1}, block {number + 1}")
            shape = banks[-1].output_shape
    averaged = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return RoutedExperts(
        input_shape,
        num_classes,
        stem=InTurn(OnFirst(stem)).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        banks=banks,
        between=[*(InTurn() for _ in banks[1:]), InTurn(OnFirst(averaged))],
        experts=choices,
        names=names,
        num_tasks=num_tasks,
        observes=observes,
    )


def _basic_block(inputs: int, width: int, *, stride: int) -> ResidualBlock:
    residual = nn.Sequential(*_conv_norm(inputs, width, 3, stride), nn.ReLU(), *_conv_norm(width, width, 3))
    return ResidualBlock(residual, nn.Identity() if stride == 1 else Subsampled(width))


def _bottleneck(inputs: int, width: int, *, stride: int) -> ResidualBlock:
    outputs = EXPANSION * width
    residual = nn.Sequential(
        *_conv_norm(inputs, width, 1),
        nn.ReLU(),
        *_conv_norm(width, width, 3, stride),
        nn.ReLU(),
        *_conv_norm(width, outputs, 1),
    )
    same = stride == 1 and inputs == outputs
    return ResidualBlock(residual, nn.Identity() if same else nn.Sequential(*_conv_norm(inputs, outputs, 1, stride)))


def _cifar_stem(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(*_conv_norm(channels, width, 3), nn.ReLU())


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(outputs)
