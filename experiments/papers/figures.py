"""What figures of reproduced papers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor


def titled(title: str, width: float, height: float) -> Figure:
    """Return an empty figure, in inches, with a title over all its panels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def single(title: str, width: float, height: float, **names: Any) -> tuple[Figure, Axes]:
    """Return a figure of one panel with a grid; `names` are of its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set(**names)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    return figure, axes


def row_of(figure: Figure, count: int, **shared: Any) -> Sequence[Axes]:
    """Return panels side by side."""
    return figure.subplots(1, count, squeeze=False, **shared)[0]


def panels(
    title: str, names: Sequence[str], width: float, height: float, **shared: Any
) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure, in inches, of panels side by side, and the panels by their names, which stand above them."""
    figure = titled(title, width, height)
    named = dict(zip(names, row_of(figure, len(names), **shared), strict=True))
    for name, axes in named.items():
        axes.set_title(name, fontsize=10)
    return figure, named


def column_of(figure: Figure, count: int, **shared: Any) -> Sequence[Axes]:
    """Return panels one below the other."""
    return figure.subplots(count, 1, squeeze=False, **shared)[:, 0]


def dashed(number: int) -> tuple[int, tuple[int, int]]:
    """Return another dash for each line: lines that lie on each other stay visible."""
    return number, (6, number % 3 * 2)


def despined(axes: Axes) -> None:
    """Leave out the frame above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)


def patches(colors: dict[str, str]) -> list[Patch]:
    """Return what a legend shows of colours."""
    return [Patch(color=color, label=name) for name, color in colors.items()]


def show(axes: Axes, images: Tensor, columns: int = 1) -> None:
    """Show images `(N, C, H, W)` uint8 on a sheet of so many columns, with white between them."""
    framed = torch.nn.functional.pad(images.cpu().expand(-1, 3, -1, -1), (1, 1, 1, 1), value=255)
    rows = [torch.cat(list(row), -1) for row in framed.split(columns)]
    axes.imshow(torch.cat(rows, -2).movedim(0, 2).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
