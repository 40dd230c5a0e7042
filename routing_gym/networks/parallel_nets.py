"""The networks of parallel paths by name, and the single networks they are compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import nn

from routing_gym.blocks import (
    PathConv2d,
    PathLinear,
    PathNorm2d,
    PathResidual,
    PathSequential,
    PathSqueezeExcite,
)
from routing_gym.networks.checking import check_at_least_one, check_no_num_blocks
from routing_gym.networks.parallel_paths import Form, ParallelPaths, Segment
from routing_gym.networks.resnet_experts import EXPANSION, first_layers

Cross = Literal["connections", "predictions"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A network, but for the number of its paths.

    Attributes:
        widths: Channels of the convolutions of each stage (of the blocks, in a ResNet), in units of the first.
        width: Channels of the first.
        pools: Behind how many stages the image is halved.
        hidden: Width of the hidden dense layers.
        residual: `"basic"` or `"bottleneck"` blocks, None for a network without residuals.
        large: Whether images are large: the first layers of a ResNet then make them four times smaller.
        squeezed: Hidden width of the squeeze and excitation behind every convolution, 0 for none. The paper does not
            print it: 32 is what the .58 M parameters of SEBaseCNN ask for, 4 what the 2.06 M of SEDeepCNN do.
    """

    widths: tuple[tuple[int, ...], ...]
    width: int = 32
    pools: int = 2
    hidden: int = 32
    residual: Literal["basic", "bottleneck"] | None = None
    large: bool = False
    squeezed: int = 0

    @property
    def halvings(self) -> int:
        """How often an image is halved."""
        if self.residual is None:
            return self.pools
        return len(self.widths) - 1 + 2 * self.large


BASE = Layout(((1, 1), (2, 2), (4, 4)))
DEEP = Layout(((1, 1), (2, 2), (4, 4, 4), (8, 8, 8)), pools=3)
RESNET20 = Layout(((1,) * 3, (2,) * 3, (4,) * 3), width=16, residual="basic")
RESNET32 = Layout(((1,) * 5, (2,) * 5, (4,) * 5), width=16, residual="basic")
RESNET18 = Layout(((1,) * 2, (2,) * 2, (4,) * 2, (8,) * 2), width=64, residual="basic", large=True)
RESNET50 = Layout(((1,) * 3, (2,) * 4, (4,) * 6, (8,) * 3), width=64, residual="bottleneck", large=True)
VGG13 = Layout(((1, 1), (2, 2), (4, 4), (8, 8), (8, 8)), pools=5, hidden=256)


@dataclasses.dataclass(frozen=True)
class Named:
    """What a name stands for; see `parallel_network`."""

    layout: Layout
    paths: int = 1
    cross: Cross = "connections"
    crossed: bool = True


CROSSES: dict[str, Cross] = {"cp": "predictions", "cc": "connections"}
"""How a name ends."""
FORMS = {
    "basecnn": Named(BASE),
    "widecnn": Named(dataclasses.replace(BASE, width=64)),
    "deepcnn": Named(DEEP),
    "sebasecnn": Named(dataclasses.replace(BASE, squeezed=32)),
    "sedeepcnn": Named(dataclasses.replace(DEEP, squeezed=4)),
    "basecnn-3": Named(BASE, 3, crossed=False),
    "crstitch2": Named(BASE, 2),
    **{
        f"{name}-{paths}-{short}": Named(layout, paths, cross)
        for name, layout in (("basecnn", BASE), ("resnet20", RESNET20), ("resnet32", RESNET32))
        for short, cross in CROSSES.items()
        for paths in (2, 3, 4)
    },
    "resnet18-2-cc": Named(RESNET18, 2),
    "resnet50-2-cc": Named(RESNET50, 2),
    "vgg13-2-cc": Named(VGG13, 2),
}
"""Networks by their names in the paper, and in `make_network`."""
LARGE = tuple(name for name, named in FORMS.items() if named.layout.large or named.layout is VGG13)
"""Those that are made for images of 224x224 pixels."""


def parallel_network(name: str) -> Callable[..., ParallelPaths]:
    """Return the builder of a network of `FORMS`."""
    default = FORMS[name]

    def build(
        input_shape: Sequence[int],
        num_classes: int,
        num_blocks: int | Sequence[int],
        *,
        paths: int = default.paths,
        width: int = default.layout.width,
        hidden: int = default.layout.hidden,
        form: Form = "columns",
        cross: Cross = default.cross,
        num_tasks: int = 1,
    ) -> ParallelPaths:
        check_no_num_blocks(name, num_blocks, num_tasks, "`paths` says how many there are")
        check_at_least_one(name, paths=paths, width=width, hidden=hidden)
        layout = dataclasses.replace(default.layout, width=width, hidden=hidden)
        smallest = 2**layout.halvings
        if len(input_shape) != 3 or any(side < smallest for side in input_shape[1:]):
            raise ValueError(
                f"network {name!r} needs input_shape=(C, H, W) of at least {smallest}x{smallest} pixels, got "
                f"{tuple(input_shape)}"
            )
        if cross not in ("connections", "predictions"):
            raise ValueError(f"network {name!r}: cross must be 'connections' or 'predictions', got {cross!r}")
        predicts = cross == "predictions"
        if predicts and (not default.crossed or layout.squeezed or layout.large):
            raise ValueError(f"network {name!r}: the paper has no form of it with cross='predictions'")
        make = _resnet if layout.residual else _convnet
        stem, segments = make(layout, tuple(input_shape), num_classes, paths, predicts)
        return ParallelPaths(
            input_shape,
            num_classes,
            paths=paths,
            segments=segments,
            stem=stem,
            form=form,
            crossed=default.crossed,
        )

    build.__doc__ = f"""Build {name}: {default.paths} path(s); see `ParallelPaths`.

    Source: Tissera et al., Tables 1 to 4. Convolutions have biases and batch norm behind them; shortcuts that change
    shape are 1x1 convolutions with bias, without norm. In ResNets for large images convolutions have no bias, and
    shortcuts are normalised: that gives the printed sizes of these, and of ResNet-50 alone (23.71 M).

    Args:
        input_shape: `(C, H, W)` of an image.
        num_classes: Width of the logits.
        num_blocks: Refused unless it is what `make_network` gives by default: `paths` says how many there are.
        paths: How many paths there are.
        width: Channels of the first convolution; the others are multiples of it.
        hidden: Width of the hidden dense layers, where there are any.
        form: Whether the way into the paths is a decision (`"gated-columns"`) or all begin alike (`"columns"`).
        cross: Whether tensors themselves are mixed (`"connections"`) or what they predict (`"predictions"`).
        num_tasks: Without effect: all tasks share the network; routes can tell them apart.

    Raises:
        ValueError: Images too small, or an option out of range, by its name.
    """
    return build


def _convnet(
    layout: Layout, input_shape: tuple[int, ...], num_classes: int, paths: int, predicts: bool
) -> tuple[None, list[Segment]]:
    """Return the segments of a plain convolutional network: one for each stage, and one for each dense layer.

    Predictions take the place of the first convolution of each stage and of the second dense layer.
    """
    channels, height, width = input_shape
    segments: list[Segment] = []
    name = "input"
    convs = 0
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
    if predicts:
        segments[-1].layers.extend(first)
        second = PathSequential(PathLinear(paths * paths, layout.hidden, layout.hidden))
        segments.append(Segment("after dense 1", PathSequential(last), second))
    else:
        segments.append(Segment(name, PathSequential(*first)))
        layers = [PathLinear(paths, layout.hidden, layout.hidden), nn.ReLU(), last]
        segments.append(Segment("after dense 1", PathSequential(*layers)))
    return None, segments


def _resnet(
    layout: Layout, input_shape: tuple[int, ...], num_classes: int, paths: int, predicts: bool
) -> tuple[nn.Module | None, list[Segment]]:
    """Return what all paths of a ResNet share, and its segments: one for each stack, and the classifier.

    Predictions take the place of the first convolution, and stand before all other stacks as layers of their own.
    """
    stem = None if predicts else _shared_stem(input_shape[0], layout)
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
    return stem, segments


def _residual(layout: Layout, paths: int, inputs: int, width: int, stride: int) -> tuple[PathResidual, int]:
    """Return a residual block and the channels it gives."""
    conv = partial(_conv_norm, bias=not layout.large)
    if layout.residual == "bottleneck":
        outputs = EXPANSION * width
        layers = [
            *conv(paths, inputs, width, 1),
            nn.ReLU(),
            *conv(paths, width, width, 3, stride),
            nn.ReLU(),
            *conv(paths, width, outputs, 1),
        ]
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
    if layout.large:
        stem = first_layers(channels, layout.width)
    else:
        stem = nn.Sequential(nn.Conv2d(channels, layout.width, 3, padding=1), nn.BatchNorm2d(layout.width), nn.ReLU())
    nn.init.kaiming_normal_(stem[0].weight, nonlinearity="relu")  # type: ignore[arg-type]
    return stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
