"""Routed fully connected layers by their form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from routing_gym.networks.columns import ColumnsMLP
from routing_gym.networks.mlp import RoutedMLP


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
    """Build routed fully connected layers on the pixels.

    Args:
        input_shape: `(C, H, W)` of an image.
        num_classes: Width of the last layer.
        num_blocks: Blocks per layer, or of paths a number for each, as in `RoutedMLP`.
        width: Width of the hidden layers.
        layers: Number of routed layers.
        recurrent: Offer every block that fits at every depth, and PASS.
        task_input: Join a one-hot task to the input of the first routed layer.
        form: `"paths"`: every instance takes one block per layer; or `"columns"`: all blocks stand side by side and
            hand each other their activations, as cross-stitch wants it.
        num_tasks: How many tasks there are.
        trunk: What runs on the images first, shared by all; None for nothing.

    Raises:
        ValueError: Columns that are recurrent or told the task, or what the network itself refuses.
    """
    if form == "paths":
        return RoutedMLP(
            input_shape,
            num_classes,
            num_blocks,
            width=width,
            layers=layers,
            recurrent=recurrent,
            task_input=task_input,
            trunk=trunk,
            num_tasks=num_tasks,
        )
    if form != "columns":
        raise ValueError(f"form must be 'paths' or 'columns', got {form!r}")
    if not isinstance(num_blocks, int):
        raise ValueError(f"form='columns' has as many blocks in every layer as columns, got num_blocks={num_blocks}")
    if recurrent or task_input:
        raise ValueError(
            "form='columns' has neither recurrent=True nor task_input=True: a task has a column of its own"
        )
    return ColumnsMLP(
        input_shape, num_classes, num_blocks, width=width, layers=layers, trunk=trunk, num_tasks=num_tasks
    )
