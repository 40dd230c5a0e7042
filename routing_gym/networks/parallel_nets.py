"""What lies between the crossings of networks of parallel paths, and in the single networks they are compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import nn

from routing_gym.blocks import PathConv2d, PathLinear, PathNorm2d, PathResidual, PathSequential, PathSqueezeExcite
from routing_gym.networks.banked import check_image
from routing_gym.networks.resnets import EXPANSION, first_layers

Cross = Literal["connections", "predictions"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A network, but for the number of its paths.

    Attributes:
        name: Name in the paper.
        widths: Channels of the convolutions of each stage (of the blocks, in a ResNet), in units of the first.
        width: Channels of the first.
        pools: Number of stages behind which the image is halved.
        hidden: Width of the hidden dense layers.
        residual: `"basic"` or `"bottleneck"` blocks, None for a network without residuals.
        large: Whether the first layers of a ResNet make images, which are large, four times smaller.
        squeezed: Hidden width of the squeeze and excitation behind every convolution, 0 for none; not printed, but
            the .58 M parameters of SEBaseCNN ask for 32, the 2.06 M of SEDeepCNN for 4.
        crossed: Whether tensors may change paths.
    """

    name: str
    widths: tuple[tuple[int, ...], ...]
    width: int = 32
    pools: int = 2
    hidden: int = 32
    residual: Literal["basic", "bottleneck"] | None = None
    large: bool = False
    squeezed: int = 0
    crossed: bool = True


BASE = Layout("BaseCNN", ((1, 1), (2, 2), (4, 4)))
DEEP = Layout("DeepCNN", ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8)), pools=3)
RESNET20 = Layout("ResNet-20", ((1,) * 3, (2,) * 3, (4,) * 3), width=16, residual="basic")
RESNET32 = Layout("ResNet-32", ((1,) * 5, (2,) * 5, (4,) * 5), width=16, residual="basic")
RESNET18 = Layout("ResNet-18", ((1,) * 2, (2,) * 2, (4,) * 2, (8,) * 2), width=64, residual="basic", large=True)
RESNET50 = Layout("ResNet-50", ((1,) * 3, (2,) * 4, (4,) * 6, (8,) * 3), width=64, residual="bottleneck", large=True)
VGG13 = Layout("VGG-13", ((1, 1), (2, 2), (4, 4), (8, 8), (8, 8)), pools=5, hidden=256)
CROSSES: dict[str, Cross] = {"cp": "predictions", "cc": "connections"}
"""How a name ends."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """What lies between two decisions.

    Attributes:
        name: Name of the decision before it.
        layers: Layers of all paths.
        prediction: Makes each path's input of each tensor, tensor by tensor; None where tensors themselves are mixed.
    """

    name: str
    layers: PathSequential
    prediction: PathSequential | None = None


def stem_and_segments(
    layout: Layout, input_shape: Sequence[int], num_classes: int, paths: int, predicts: bool
) -> tuple[nn.Module | None, list[Segment]]:
    """What runs on the images before all paths, once, if anything does; and what lies behind each decision.

    Source: Tissera et al., Tables 1 to 4. Convolutions have biases and batch norm behind them; shortcuts that change
    shape are 1x1 convolutions with bias, without norm. In ResNets for large images convolutions have no bias, and
    shortcuts are normalised: that gives the printed sizes of these, and of ResNet-50 alone (23.71 M).

    With `predicts` tensors are not mixed themselves, but what they predict.
    """
    halvings = layout.pools if layout.residual is None else len(layout.widths) - 1 + 2 * layout.large
    check_image(input_shape, 2**halvings)
    if predicts and (not layout.crossed or layout.squeezed or layout.large):
        raise ValueError("the paper has no form of it with cross='predictions'")
    stem = _shared_stem(input_shape[0], layout) if layout.residual and not predicts else None
    return stem, (_resnet if layout.residual else _convnet)(layout, input_shape, num_classes, paths, predicts)


def _convnet(layout: Layout, input_shape: Sequence[int], num_classes: int, paths: int, predicts: bool) -> list[Segment]:
    """Segments of a plain convolutional network: one for each stage, and one for each dense layer.

    Predictions take the place of the first convolution of each stage and of the second dense layer.
    """
    channels, height, width = input_shape
    segments: list[Segment] = []
    name, convs = "input", 0
    for number, stage in enumerate(layout.widths):
        layers: list[nn.Module] = []
        prediction = None
        for position, factor in enumerate(stage):
            outputs = factor * layout.width
            if predicts and not position:
                prediction = PathSequential(*_conv_norm(paths * (paths if segments else 1), channels, outputs))
            else:
                layers += [*_conv_norm(paths, channels, outputs), nn.ReLU()]
                if layout.squeezed:
                    layers.append(PathSqueezeExcite(paths, outputs, layout.squeezed))
            channels = outputs
        convs += len(stage)
        if number < layout.pools:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        segments.append(Segment(name, PathSequential(*layers), prediction))
        name = f"after conv {convs}"
    first = [nn.Flatten(), PathLinear(paths, channels * height * width, layout.hidden), nn.ReLU()]
    last = PathLinear(paths, layout.hidden, num_classes)
    second = PathLinear(paths * paths if predicts else paths, layout.hidden, layout.hidden)
    if predicts:
        segments[-1].layers.extend(first)
        return [*segments, Segment("after dense 1", PathSequential(last), PathSequential(second))]
    dense = Segment("after dense 1", PathSequential(second, nn.ReLU(), last))
    return [*segments, Segment(name, PathSequential(*first)), dense]


def _resnet(layout: Layout, input_shape: Sequence[int], num_classes: int, paths: int, predicts: bool) -> list[Segment]:
    """Segments of a ResNet behind its stem: one for each stack, and the classifier.

    Predictions take the place of the first convolution, and stand before all other stacks as layers of their own.
    """
    channels, name = layout.width, "input" if predicts else "stem"
    segments: list[Segment] = []
    for number, stack in enumerate(layout.widths):
        prediction = None
        if predicts:
            inputs, pairs = (channels, paths * paths) if segments else (input_shape[0], paths)
            prediction = PathSequential(*_conv_norm(pairs, inputs, channels))
        blocks = []
        for position, factor in enumerate(stack):
            stride = 2 if number and not position else 1
            block, channels = _residual(layout, paths, channels, factor * layout.width, stride)
            blocks.append(block)
        segments.append(Segment(name, PathSequential(*blocks), prediction))
        name = f"after stack {number + 1}"
    classifier = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), PathLinear(paths, channels, num_classes)]
    if predicts:
        segments[-1].layers.extend(classifier)
    else:
        segments.append(Segment(name, PathSequential(*classifier)))
    return segments


def _residual(layout: Layout, paths: int, inputs: int, width: int, stride: int) -> tuple[PathResidual, int]:
    """Residual block of all paths, and its output's channels."""
    conv = partial(_conv_norm, bias=not layout.large)
    if layout.residual == "bottleneck":
        outputs = EXPANSION * width
        layers = [*conv(paths, inputs, width, 1), nn.ReLU(), *conv(paths, width, width, 3, stride), nn.ReLU()]
        layers += conv(paths, width, outputs, 1)
    else:
        outputs = width
        layers = [*conv(paths, inputs, width, 3, stride), nn.ReLU(), *conv(paths, width, width)]
    shortcut = PathSequential()
    if stride > 1 or inputs != outputs:
        projected = conv(paths, inputs, outputs, 1, stride)
        shortcut.extend(projected if layout.large else projected[:1])
    return PathResidual(PathSequential(*layers), shortcut), outputs


def _conv_norm(
    paths: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, bias: bool = True
) -> tuple[nn.Module, nn.Module]:
    return PathConv2d(paths, inputs, outputs, kernel, stride=stride, bias=bias), PathNorm2d(paths, outputs)


def _shared_stem(channels: int, layout: Layout) -> nn.Sequential:
    """First layers of a ResNet, which all its paths share."""
    if layout.large:
        stem = first_layers(channels, layout.width)
    else:
        stem = nn.Sequential(nn.Conv2d(channels, layout.width, 3, padding=1), nn.BatchNorm2d(layout.width), nn.ReLU())
    nn.init.kaiming_normal_(stem[0].weight, nonlinearity="relu")  # type: ignore[arg-type]
    return stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
