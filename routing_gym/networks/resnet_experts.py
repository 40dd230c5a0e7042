"""ResNet-50 whose 3x3 convolutions are layers of experts (Ramachandran and Le 2019, section 4.2.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from routing_gym.blocks import ModuleBlocks, subsample_first
from routing_gym.blocks.experts import image_bank, single_expert
from routing_gym.networks.checking import check_at_least_one, check_no_num_blocks
from routing_gym.networks.experts import InTurn, OnFirst, RoutedExperts, experts_per_layer

EXPERTS = {
    "resnet50-diverse": ("conv3", "conv5", "conv1x7", "max-pool", "squeeze-excite"),
    "resnet50-conv3": ("conv3",) * 5,
}
"""The experts of every layer."""

BOTTLENECKS = (3, 4, 6, 3)
EXPANSION = 4
ROUTED = sum(count - (stage > 0) for stage, count in enumerate(BOTTLENECKS))
"""How many bottlenecks leave the size of the image as it is: all but the first of stages 2, 3 and 4."""

SMALLEST = 32


class Opening(nn.Module):
    """What comes first in a bottleneck (He et al. 2016): the 1x1 convolution to fewer channels, and the shortcut.

    Args:
        inputs: Channels that come in.
        width: Channels of the bottleneck.
        stride: Of the 3x3 convolution that follows, hence of the shortcut.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.reduce = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            projection = subsample_first(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what goes into the 3x3 convolution, or into the experts in its place, and the shortcut."""
        return self.reduce(x), self.shortcut(x)


class Closing(nn.Module):
    """What comes last in a bottleneck: batch norm and ReLU of the 3x3 convolution, 1x1 convolution, sum and ReLU.

    Args:
        width: Channels of the bottleneck.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.expand = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor, shortcut: Tensor) -> tuple[Tensor]:
        """Return the bottleneck's output."""
        return ((self.expand(x) + shortcut).relu(),)


@dataclasses.dataclass
class Parts:
    """What the network is made of.

    Attributes:
        stem: From images to the first layer of experts.
        banks: The layers of experts.
        between: What runs behind each of them.
        names: Their names.
        features: What the readout sees.
    """

    stem: nn.Module
    banks: list[ModuleBlocks]
    between: list[nn.Module]
    names: list[str]
    features: int


def resnet50_parts(input_shape: Sequence[int], experts: Sequence[Sequence[str]], width: int) -> Parts:
    """Build all but the readout.

    Under `torch.device("meta")` nothing is drawn and nothing computed, so that the real size costs nothing to look at.

    Args:
        input_shape: `(C, H, W)` of an image.
        experts: The names of every layer's experts.
        width: Channels of the first stage's bottlenecks, 64 in ResNet-50.
    """
    height, width_of_image = ((side + 3) // 4 for side in input_shape[1:])  # a convolution and a pooling of stride 2
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
                height, width_of_image = (height + 1) // 2, (width_of_image + 1) // 2
                segments[-1].append(OnFirst(nn.Conv2d(inner, inner, 3, stride=2, padding=1, bias=False)))
            else:
                layer = [single_expert(kind, inner) for kind in experts[len(banks)]]
                banks.append(image_bank(layer, (inner, height, width_of_image)))
                names.append(f"stage {stage + 1}, bottleneck {number + 1}")
                segments.append([])
            segments[-1].append(Closing(inner))
    segments[-1].append(OnFirst(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())))
    stem, *between = (InTurn(*segment).to(memory_format=torch.channels_last) for segment in segments)  # type: ignore[call-overload]
    return Parts(stem, banks, between, names, channels)


def first_layers(channels: int, width: int) -> nn.Sequential:
    """Build what comes first in ResNets for ImageNet: a 7x7 convolution and a pooling, each of stride 2."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def resnet50_network(name: str) -> Callable[..., RoutedExperts]:
    """Return the builder of one of the ResNet-50 networks.

    Args:
        name: One of `EXPERTS`.
    """

    def build(
        input_shape: Sequence[int],
        num_classes: int,
        num_blocks: int | Sequence[int],
        *,
        width: int = 64,
        experts: Sequence[str] | Sequence[Sequence[str]] | None = None,
        num_tasks: int = 1,
    ) -> RoutedExperts:
        check_no_num_blocks(name, num_blocks, num_tasks, "experts=[...] names those of every layer")
        check_at_least_one(name, width=width)
        if min(input_shape[1:]) < SMALLEST:
            raise ValueError(
                f"network {name!r} halves an image five times: {SMALLEST}x{SMALLEST} pixels at least, got "
                f"{tuple(input_shape)}"
            )
        names = experts_per_layer(experts, EXPERTS[name], ROUTED)
        parts = resnet50_parts(input_shape, names, width)
        return RoutedExperts(
            input_shape,
            num_classes,
            stem=parts.stem,
            banks=parts.banks,
            between=parts.between,
            experts=names,
            names=parts.names,
            num_tasks=num_tasks,
        )

    build.__doc__ = f"""Build ResNet-50 with layers of experts: {", ".join(EXPERTS[name])}.

    Source: Ramachandran and Le (2019), section 4.2.2; He et al. (2016). Experts stand in place of the 3x3 convolution
    of the {ROUTED} bottlenecks that leave the size of the image as it is; where the size is halved, the 3x3
    convolution halves it and stays. The mixture goes through the bottleneck's own batch norm and ReLU. As worded the
    network has 59.7 million parameters with diverse experts and 56.8 with 3x3 convolutions alone, at 196 classes; the
    paper prints 52 and 50.

    Args:
        input_shape: `(C, H, W)` of an image, at least {SMALLEST} pixels high and wide.
        num_classes: Width of the logits.
        num_blocks: Refused unless it is what `make_network` gives by default: `experts` says which there are.
        width: Channels of the first stage's bottlenecks.
        experts: Names of the experts of all layers, or a list of names for each layer.
        num_tasks: How many tasks there are, each with a readout of its own.

    Raises:
        ValueError: Images too small, or an option out of range, by its name.
    """
    return build
