"""SimpleConvNet with routed fully connected layers (Ravi and Larochelle 2017; Rosenbaum et al. 2018, section 4)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from routing_gym.blocks import probe
from routing_gym.networks.columns import ColumnsMLP
from routing_gym.networks.fully_connected import fully_connected
from routing_gym.networks.mlp import RoutedMLP
from routing_gym.networks.route import RoutedModule, route

FILTERS = 32
STAGES = 4


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
    """Build SimpleConvNet: four shared convolutional stages, then routed fully connected layers.

    A stage is a 3x3 convolution with 32 filters, batch norm, ReLU and 2x2 max-pooling.

    The convolutions give 128 features on 32x32 images, 32 on 28x28 and 800 on 84x84.

    Args:
        input_shape: `(C, H, W)` of an image, at least 16 pixels high and wide.
        num_classes: Width of the last layer.
        num_blocks: Blocks per routed layer, or a number for each, as in `RoutedMLP`.
        width: Width of the hidden routed layers: 48 as in the appendix and the authors' code, 128 in section 4.
        layers: Number of routed layers.
        recurrent: Offer every block that fits at every depth, and PASS.
        task_input: Join a one-hot task to the input of the first routed layer.
        form: `"paths"` or `"columns"`, see `fully_connected`.
        routed_stages: How many of the last convolutional stages are routed too, each with its batch norm, 0 to 4: k
            times the parameters where features are made, for the same multiply-accumulates per instance.
        num_tasks: How many tasks there are.

    Raises:
        ValueError: Images too small for four poolings, or routed stages with options they do not go with.
    """
    channels, height, width_of_image = input_shape
    if min(height, width_of_image) < 2**STAGES:
        raise ValueError(
            f"SimpleConvNet halves an image {STAGES} times: 16x16 pixels at least, got {tuple(input_shape)}"
        )
    # Channels last: pooling and batch norm run over neighbouring numbers, 1.6 times as fast on a CPU.
    trunk = nn.Sequential(*(_stage(channels if stage == 0 else FILTERS) for stage in range(STAGES)))
    trunk = trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if routed_stages:
        if not 0 < routed_stages <= STAGES:
            raise ValueError(f"routed_stages must lie in 0 to {STAGES}, got {routed_stages}")
        if recurrent or task_input or form != "paths":
            raise ValueError("routed_stages goes with neither recurrent=True nor task_input=True nor form='columns'")
        return _with_routed_stages(trunk, input_shape, num_classes, num_blocks, width, layers, routed_stages)
    return fully_connected(
        input_shape,
        num_classes,
        num_blocks,
        width=width,
        layers=layers,
        recurrent=recurrent,
        task_input=task_input,
        form=form,
        num_tasks=num_tasks,
        trunk=trunk,
    )


def _stage(inputs: int) -> nn.Sequential:
    # Pooled before it is rectified: the same numbers, and a quarter of them to rectify.
    return nn.Sequential(nn.Conv2d(inputs, FILTERS, 3, padding=1), nn.BatchNorm2d(FILTERS), nn.MaxPool2d(2), nn.ReLU())


def _with_routed_stages(
    trunk: nn.Sequential,
    input_shape: Sequence[int],
    num_classes: int,
    num_blocks: int | Sequence[int],
    width: int,
    layers: int,
    routed_stages: int,
) -> RoutedModule:
    """Return the network whose last stages are decisions like the fully connected layers."""
    image = torch.zeros(1, *input_shape)
    widths = [probe(trunk, lambda: trunk(image)).flatten(1).shape[1], *[width] * (layers - 1), num_classes]
    parts: dict[str, nn.Module] = {f"stage {number + 1}": stage for number, stage in enumerate(trunk)}
    routed = list(parts)[STAGES - routed_stages :]
    parts["flatten"] = nn.Flatten()
    for i in range(layers):
        parts[f"layer {i + 1}"] = nn.Linear(widths[i], widths[i + 1])
        routed.append(f"layer {i + 1}")
        if i < layers - 1:
            parts[f"relu {i + 1}"] = nn.ReLU()
    return route(nn.Sequential(OrderedDict(parts)), routed, num_blocks, input_shape=input_shape)
