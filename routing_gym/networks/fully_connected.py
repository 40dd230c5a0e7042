"""The networks of Rosenbaum et al. (2018): fully connected layers on pixels, or on the features of a SimpleConvNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import nn

from routing_gym.networks.banked import features_of
from routing_gym.networks.columns import ColumnsMLP
from routing_gym.networks.mlp import RoutedMLP
from routing_gym.networks.options import check_choice, check_image, check_range
from routing_gym.networks.route import RoutedModule, route

FILTERS = 32
STAGES = 4


def fully_connected(
    input_shape: Sequence[int],
    num_classes: int,
    num_blocks: int | Sequence[int],
    *,
    width: int = 48,
    layers: int = 3,
    recurrent: bool = False,
    task_input: bool = False,
    form: Literal["paths", "columns"] = "paths",
    num_tasks: int = 1,
    trunk: nn.Module | None = None,
) -> RoutedMLP | ColumnsMLP:
    """Build routed fully connected layers: a `RoutedMLP` or a `ColumnsMLP`.

    Args:
        input_shape: `(C, H, W)` of an image.
        num_classes: Width of the last layer.
        num_blocks: Blocks per layer, or of paths a number for each.
        width: Width of the hidden layers.
        layers: Number of routed layers.
        recurrent: Offer every block that fits at every depth, and PASS.
        task_input: Join a one-hot task to the input of the first routed layer.
        form: `"paths"`: every instance takes one block per layer; or `"columns"`: all blocks stand side by side and
            hand each other their activations, as cross-stitch wants it.
        num_tasks: Number of tasks.
        trunk: Runs on the images first, shared by all; None for nothing.

    Raises:
        ValueError: Columns that are recurrent or told the task, or what the network itself refuses.
    """
    check_choice("form", form, "paths", "columns")
    common: dict[str, Any] = {"width": width, "layers": layers, "trunk": trunk, "num_tasks": num_tasks}
    if form == "paths":
        return RoutedMLP(input_shape, num_classes, num_blocks, recurrent=recurrent, task_input=task_input, **common)
    if recurrent or task_input:
        raise ValueError(
            "form='columns' has neither recurrent=True nor task_input=True: a task has a column of its own"
        )
    return ColumnsMLP(input_shape, num_classes, cast(int, num_blocks), **common)  # which checks it


def simple_convnet(
    input_shape: Sequence[int],
    num_classes: int,
    num_blocks: int | Sequence[int],
    *,
    width: int = 48,
    layers: int = 3,
    recurrent: bool = False,
    task_input: bool = False,
    form: Literal["paths", "columns"] = "paths",
    routed_stages: int = 0,
    num_tasks: int = 1,
) -> RoutedMLP | ColumnsMLP | RoutedModule:
    """Build SimpleConvNet: four convolutional stages, then routed fully connected layers.

    Source: Ravi and Larochelle (2017), Rosenbaum et al. (2018), section 4. A stage is a 3x3 convolution with 32
    filters, batch norm, ReLU and 2x2 max-pooling: 128 features of 32x32 images, 32 of 28x28 and 800 of 84x84.

    Args:
        input_shape: `(C, H, W)` of an image, at least 16 pixels high and wide.
        num_classes: Width of the last layer.
        num_blocks: Blocks per routed layer, or a number for each.
        width: Width of the hidden routed layers: 48 as in the appendix and the authors' code, 128 in section 4.
        layers: Number of routed layers.
        recurrent: Offer every block that fits at every depth, and PASS.
        task_input: Join a one-hot task to the input of the first routed layer.
        form: `"paths"` or `"columns"`, see `fully_connected`.
        routed_stages: How many of the last convolutional stages are routed too, each with its batch norm, 0 to 4: k
            times the parameters where features are made, for the same multiply-accumulates per instance.
        num_tasks: Number of tasks.

    Raises:
        ValueError: Images too small for four poolings, or routed stages with options they do not go with.
    """
    check_image(input_shape, 2**STAGES)
    check_range("routed_stages", routed_stages, 0, STAGES)
    # Channels last: pooling and batch norm run over neighbouring numbers, 1.6 times as fast on a CPU.
    trunk = nn.Sequential(*(_stage(FILTERS if stage else input_shape[0]) for stage in range(STAGES)))
    trunk = trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not routed_stages:
        options: dict[str, Any] = {"width": width, "layers": layers, "recurrent": recurrent, "task_input": task_input}
        return fully_connected(
            input_shape, num_classes, num_blocks, form=form, num_tasks=num_tasks, trunk=trunk, **options
        )
    if recurrent or task_input or form != "paths":
        raise ValueError("routed_stages goes with neither recurrent=True nor task_input=True nor form='columns'")
    widths = [features_of(trunk, input_shape)[0], *[width] * (layers - 1), num_classes]
    parts: dict[str, nn.Module] = {f"stage {number + 1}": stage for number, stage in enumerate(trunk)}
    routed = list(parts)[STAGES - routed_stages :]
    parts["flatten"] = nn.Flatten()
    for i in range(layers):
        parts[f"layer {i + 1}"] = nn.Linear(widths[i], widths[i + 1])
        routed.append(f"layer {i + 1}")
        if i < layers - 1:
            parts[f"relu {i + 1}"] = nn.ReLU()
    return route(nn.Sequential(OrderedDict(parts)), routed, num_blocks, input_shape=input_shape)


def _stage(inputs: int) -> nn.Sequential:
    # Pooled before it is rectified: the same numbers, and a quarter of them to rectify.
    return nn.Sequential(nn.Conv2d(inputs, FILTERS, 3, padding=1), nn.BatchNorm2d(FILTERS), nn.MaxPool2d(2), nn.ReLU())
