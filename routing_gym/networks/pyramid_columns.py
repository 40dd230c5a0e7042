"""Columns of the multiscale pyramid (McGill and Perona 2017), alone and as a plain network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from routing_gym.blocks import count_macs, probe
from routing_gym.networks.options import check_counts, check_image, check_range

CHANNELS = ((1, 1, 1, 1), (1, 1, 1, 1), (2, 2, 2), (2, 2, 2), (4, 4), (4, 4), (8,), (8,))
"""Channels of each scale of each column in units of `width`, finest first; a shorter list is of the coarser scales."""

SCALES = len(CHANNELS[0])
EPSILON = 1e-6
DECAY = 0.9  # of the running averages of batch norm (section 4.7); PyTorch's momentum is what is left to 1


class Column(nn.Module):
    """One column of the pyramid (section 3.1, Fig. 3): 3x3 convolutions at several scales, batch norm, ReLU.

    A scale adds up two convolutions: of the same scale of the column before, with a bias, and of the next finer scale
    of this column, 2x2 max-pooled, before its batch norm and ReLU, without one. Scales that do not go out have neither
    batch norm nor ReLU.

    Args:
        inputs: Channels of each input scale, finest first; only the coarsest `len(outputs)` are read.
        outputs: Channels of each scale that is computed, finest first.
        kept: Number of scales that go out, the coarsest ones.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], kept: int) -> None:
        super().__init__()
        inputs = inputs[-len(outputs) :]
        self.across = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in zip(inputs, outputs, strict=True)
        )
        self.down = nn.ModuleList(
            nn.Conv2d(finer, coarser, 3, padding=1, bias=False)
            for finer, coarser in zip(outputs[:-1], outputs[1:], strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c, eps=EPSILON, momentum=1 - DECAY) for c in outputs[-kept:])

    def forward(self, *scales: Tensor, rows: int | None = None) -> tuple[Tensor, ...]:
        """Scales, `kept` of them, from those of the column before, `(r, C, H, W)` each, finest first.

        Args:
            scales: Those of the column before.
            rows: Number of first rows that count; the others fill the convolutions' batch up. All by default.
        """
        unread = len(self.across) - len(self.norms)
        outputs = []
        finer = scales[0]
        for i, (across, x) in enumerate(zip(self.across, scales[-len(self.across) :], strict=True)):
            y = across(x)
            if i > 0:
                y = y + self.down[i - 1](max_pool(finer))
            if i >= unread:
                outputs.append(functional.relu(self.norms[i - unread](y if rows is None else y[:rows]), inplace=True))
            finer = y
        return tuple(outputs)


@fx.wrap
def max_pool(x: Tensor) -> Tensor:
    """Maxima of 2x2 pixels, `torch.nn.functional.max_pool2d(x, 2)`, faster where no one trains."""
    if torch.is_grad_enabled() and x.requires_grad:
        return functional.max_pool2d(x, 2)
    # PyTorch looks for the place of each maximum too, which is needed for the gradient only.
    height, width = (size - size % 2 for size in x.shape[-2:])
    rows = torch.maximum(x[:, :, :height:2, :width], x[:, :, 1:height:2, :width])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


@fx.wrap
def average_pool(x: Tensor) -> Tensor:
    """Means of 2x2 pixels, `torch.nn.functional.avg_pool2d(x, 2)`, several times as fast where no one trains."""
    if torch.is_grad_enabled() and x.requires_grad:
        return functional.avg_pool2d(x, 2)
    height, width = (size - size % 2 for size in x.shape[-2:])
    rows = x[:, :, :height:2, :width] + x[:, :, 1:height:2, :width]
    return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)


class StaticPyramid(nn.Module):
    """Columns one after the other and a classifier: a plain network, the statically routed one of section 5.1.

    Args:
        columns: The first reads an image pyramid; the last loses the batch norms of all scales but the coarsest.
        classifier: Takes the coarsest scale of the last column, flattened.
    """

    def __init__(self, columns: Iterable[Column], classifier: nn.Module) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)
        last = cast(Column, self.columns[-1])
        last.norms = last.norms[-1:]
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)`."""
        scales = image_pyramid(images)
        for column in self.columns:
            scales = column(*scales)
        return self.classifier(scales[-1].flatten(1))


def static_pyramid(input_shape: Sequence[int], num_classes: int, *, columns: int = 8, width: int = 16) -> StaticPyramid:
    """Build the first columns of the chain and one classifier, with weights of their own (section 5.1).

    Args:
        input_shape: `(C, H, W)` of an image, at least 8 pixels high and wide.
        num_classes: Width of the logits.
        columns: Number of columns, 1 to 8.
        width: Channels of the finest scale.

    Raises:
        ValueError: An option out of range, by its name.
    """
    check_form(input_shape, num_classes, width)
    check_range("columns", columns, 1, len(CHANNELS))
    return StaticPyramid(
        (make_column(input_shape, width, depth, columns) for depth in range(columns)),
        make_classifier(input_shape, num_classes, width, columns - 1),
    )


def image_pyramid(images: Tensor) -> tuple[Tensor, ...]:
    """Images `(B, C, H, W)` at four scales, finest first; each coarser one averages 2x2 pixels."""
    # Channels last in memory: max-pooling on a CPU is several times as fast.
    scales = [images.contiguous(memory_format=torch.channels_last)]
    for _ in range(SCALES - 1):
        scales.append(average_pool(scales[-1]))
    return tuple(scales)


def channels_of(width: int, depth: int) -> list[int]:
    """Channels of each scale of a column, finest first; the first column has depth 0."""
    return [width * times for times in CHANNELS[depth]]


def make_column(input_shape: Sequence[int], width: int, depth: int, columns: int) -> Column:
    """Build a column of a network of so many, with the first weights of section 4.7."""
    inputs = [input_shape[0]] * SCALES if depth == 0 else channels_of(width, depth - 1)
    kept = 1 if depth == columns - 1 else len(CHANNELS[depth + 1])
    column = Column(inputs, channels_of(width, depth), kept)
    _draw(column)
    # Channels last, as in `simple_convnet`: 1.5 times as fast on a CPU.
    return column.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_classifier(input_shape: Sequence[int], num_classes: int, width: int, depth: int) -> nn.Linear:
    """Build the classifier on the coarsest scale of a column, with the first weights of section 4.7."""
    classifier = nn.Linear(num_features(input_shape, width, depth), num_classes)
    _draw(classifier)
    return classifier


def _draw(module: nn.Module) -> None:
    """Draw Xavier's first weights; all biases begin at 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def num_features(input_shape: Sequence[int], width: int, depth: int) -> int:
    """Number of features of the coarsest scale of a column."""
    _, height, breadth = input_shape
    shrunk = 2 ** (SCALES - 1)
    return channels_of(width, depth)[-1] * (height // shrunk) * (breadth // shrunk)


@cache
def costs_by_depth(
    input_shape: tuple[int, ...], num_classes: int, width: int, columns: int
) -> tuple[tuple[float, float], ...]:
    """Multiply-accumulates per row of the column of each depth and its classifier."""
    # Cached: counting takes longer than building.
    with torch.device("meta"):
        chain = [make_column(input_shape, width, depth, columns) for depth in range(columns)]
        heads = [make_classifier(input_shape, num_classes, width, depth) for depth in range(columns)]
        scales = image_pyramid(torch.zeros(1, *input_shape))
        costs = []
        for column, head in zip(chain, heads, strict=True):
            cost = count_macs(column, *scales)
            scales = probe(column, partial(column, *scales))
            costs.append((cost, count_macs(head, scales[-1].flatten(1))))
    return tuple(costs)


def check_form(input_shape: Sequence[int], num_classes: int, width: int) -> None:
    """Refuse images too small for the scales, and numbers out of range."""
    check_image(input_shape, 2 ** (SCALES - 1))
    check_counts(num_classes=num_classes, width=width)
