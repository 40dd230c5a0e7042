"""ResNets in which every instance runs or skips each residual block (He et al. 2016; CoDiNet, Wang et al.)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks.skippable import CHOICES, ResidualBlock, SkippableBlock, one_choice
from routing_gym.networks.checking import check_at_least_one, check_no_num_blocks
from routing_gym.networks.experts import Bank, InTurn, OnFirst, RoutedExperts, experts_per_layer
from routing_gym.networks.resnet_experts import EXPANSION, first_layers


@dataclasses.dataclass(frozen=True)
class Form:
    """A ResNet.

    Attributes:
        stages: Residual blocks of every stage; the first block of all but the first stage halves the image, and the
            channels double there.
        width: Channels of the first stage.
        bottlenecks: Whether it is the form for ImageNet: blocks are bottlenecks, a 7x7 convolution and pooling come
            first, shortcuts that change the shape are convolutions. In the form for CIFAR-10 blocks are pairs of 3x3
            convolutions and shortcuts have no parameters.
    """

    stages: tuple[int, ...]
    width: int
    bottlenecks: bool = False


FORMS = {
    "resnet32-skip": Form((5, 5, 5), 16),
    "resnet74-skip": Form((12, 12, 12), 16),
    "resnet110-skip": Form((18, 18, 18), 16),
    "resnet50-skip": Form((3, 4, 6, 3), 64, bottlenecks=True),
}


class Subsampled(nn.Module):
    """The shortcut without parameters: every second pixel, and channels of zeros behind those there are.

    Args:
        outputs: Channels that come out.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, outputs, ⌈H / 2⌉, ⌈W / 2⌉)`."""
        kept = x[:, :, ::2, ::2].permute(0, 2, 3, 1)  # channels stay last in memory
        return functional.pad(kept, (0, self.outputs - x.shape[1])).permute(0, 3, 1, 2)


def resnet_skip(name: str) -> Callable[..., RoutedExperts]:
    """Return the builder of one of the ResNets.

    Args:
        name: One of `FORMS`.
    """
    form = FORMS[name]
    smallest = 4 * 2 ** (len(form.stages) - 1) if form.bottlenecks else 2 ** (len(form.stages) - 1)

    def build(
        input_shape: Sequence[int],
        num_classes: int,
        num_blocks: int | Sequence[int],
        *,
        width: int = form.width,
        stages: Sequence[int] = form.stages,
        observes: Literal["mean", "map"] = "mean",
        experts: Sequence[Sequence[str]] | None = None,
        num_tasks: int = 1,
    ) -> RoutedExperts:
        check_no_num_blocks(name, num_blocks, num_tasks, "stages=[...] says how many blocks every stage has")
        check_at_least_one(name, width=width)
        if len(stages) != len(form.stages):
            raise ValueError(f"network {name!r} has {len(form.stages)} stages, got stages={list(stages)}")
        check_at_least_one(name, **{f"stages[{stage}]": count for stage, count in enumerate(stages)})
        if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
            raise ValueError(
                f"network {name!r} makes images smaller stage by stage: {smallest}x{smallest} pixels at least, got "
                f"{tuple(input_shape)}"
            )
        choices = experts_per_layer(experts, CHOICES, sum(stages))
        if wrong := [layer for layer in choices if layer not in (CHOICES, CHOICES[:1], CHOICES[1:])]:
            raise ValueError(f"network {name!r}: the choices of a block are some of {CHOICES}, got {list(wrong[0])}")
        first = first_layers if form.bottlenecks else _cifar_stem
        make = _bottleneck if form.bottlenecks else _basic_block
        banks: list[Bank] = []
        names = []
        stem = first(input_shape[0], width)
        shape = (width, *(math.ceil(side / 4) if form.bottlenecks else side for side in input_shape[1:]))
        for stage, count in enumerate(stages):
            for number in range(count):
                block = make(shape[0], width * 2**stage, stride=2 if stage and not number else 1)
                banks.append(_skippable(block, choices[len(banks)], shape))
                names.append(f"stage {stage + 1}, block {number + 1}")
                shape = banks[-1].output_shape
        return RoutedExperts(
            input_shape,
            num_classes,
            stem=InTurn(OnFirst(stem)).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
            banks=banks,
            between=[*(InTurn() for _ in banks[1:]), InTurn(OnFirst(_averaged()))],
            experts=choices,
            names=names,
            num_tasks=num_tasks,
            observes=observes,
        )

    build.__doc__ = f"""Build a ResNet with {sum(form.stages)} residual blocks, each a decision: skip (0) or run (1).

    Source: He et al. (2016), CoDiNet (Wang et al.), section 3.1. Batch norm while training has the statistics of the
    rows that run a block: of all with soft weights, of those with decisions that are hard. What it normalises with
    afterwards is the running average of these, so that it goes with the routes of the last batches: a network that was
    trained softly wants some training with hard decisions before it is used with them (CoDiNet, section 3.4).

    Args:
        input_shape: `(C, H, W)` of an image, at least {smallest} pixels high and wide.
        num_classes: Width of the logits.
        num_blocks: Refused unless it is what `make_network` gives by default: `stages` says how many blocks there are.
        width: Channels of the first stage.
        stages: Residual blocks of each of the {len(form.stages)} stages.
        observes: What a decision sees of what comes into its block: `"mean"`, each channel averaged over the image, or
            `"map"`, all of it, flattened, for routers that convolve.
        experts: The choices of all blocks, or a list for each: what `prune` leaves is skipped, or run, by all.
        num_tasks: How many tasks there are, each with a readout of its own.

    Raises:
        ValueError: Images too small, or an option out of range, by its name.
    """
    return build


def _skippable(block: ResidualBlock, choices: Sequence[str], shape: Sequence[int]) -> Bank:
    block = block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if len(choices) == 1:
        return one_choice(block, choices[0], shape)
    return SkippableBlock(block, shape)


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


def _averaged() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
