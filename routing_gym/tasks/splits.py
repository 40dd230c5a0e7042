"""From the two parts of an official data set, `train` and `test`, to its splits."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from routing_gym.tasks.augmentation import Shift
from routing_gym.tasks.dataset import MultiTaskDataset, pixel_statistics

TaskOf = Literal["single", "coarse"]
"""What an instance's task is: the only one there is, or its coarse class."""

BY_COARSE_CLASS = " by coarse class"
"""Written behind the name of a data set whose tasks are coarse classes."""


def are_coarse(name: str, task: TaskOf) -> bool:
    """Tell whether tasks are to be coarse classes.

    Args:
        name: The data set, for messages.
        task: What an instance's task is to be.

    Raises:
        ValueError: It can be no such thing.
    """
    if task not in get_args(TaskOf):
        raise ValueError(f"{name}: task must be 'single' or 'coarse', got {task!r}")
    return task == "coarse"


def hold_out(name: str, kinds: dict[str, Tensor], held_out: int) -> dict[str, Tensor]:
    """Say which images make up each split.

    Args:
        name: The data set, for messages.
        kinds: `(N,)` int64, the kind of every image, for the parts `train` and `test`.
        held_out: Images of each kind, the first ones, that leave `train` for `validation`.

    Returns:
        `(R,)` int64 image numbers, ascending, of `train`, `test` and, where something is held out, `validation`.

    Raises:
        ValueError: A kind would be left without images to train on.
    """
    fewest = int(kinds["train"].bincount().min())
    if isinstance(held_out, bool) or not isinstance(held_out, int) or not 0 <= held_out < fewest:
        raise ValueError(f"{name}: held_out must lie in [0, {fewest}), got {held_out!r}")
    members = {part: torch.arange(len(kind)) for part, kind in kinds.items()}
    if held_out:
        first = torch.cat([(kinds["train"] == kind).nonzero().flatten()[:held_out] for kind in kinds["train"].unique()])
        kept = torch.ones_like(kinds["train"], dtype=torch.bool)
        kept[first] = False
        members["train"], members["validation"] = kept.nonzero().flatten(), (~kept).nonzero().flatten()
    return members


def build_splits(
    name: str,
    images: dict[str, Tensor],
    labels: dict[str, Tensor],
    members: dict[str, Tensor],
    *,
    num_classes: int,
    tasks: dict[str, Tensor] | None = None,
    num_tasks: int = 1,
    augmentation: Shift | None = None,
) -> dict[str, MultiTaskDataset]:
    """Build the splits of a data set in which every image is of one task.

    All splits are normalised by the images of `train`; `train` and `validation` share theirs.

    Args:
        name: As in `MultiTaskDataset`.
        images: `(N, C, H, W)` uint8 for the parts `train` and `test`.
        labels: `(N,)` int64 in `[0, num_classes)`, the label of each image, by part.
        members: The images of each split, from `hold_out`.
        num_classes: As in `MultiTaskDataset`.
        tasks: `(N,)` int64 in `[0, num_tasks)`, the task of each image, by part; None: there is one task.
        num_tasks: As in `MultiTaskDataset`.
        augmentation: That of `train`; the other splits have none.
    """
    mean, std = pixel_statistics(images["train"], members["train"])
    built = {}
    for split, rows in members.items():
        part = "test" if split == "test" else "train"
        built[split] = MultiTaskDataset(
            name=name,
            split=split,
            images=images[part],
            image=rows,
            task=torch.zeros_like(rows) if tasks is None else tasks[part][rows],
            label=labels[part][rows],
            num_tasks=num_tasks,
            num_classes=num_classes,
            mean=mean,
            std=std,
            augmentation=augmentation if split == "train" else None,
        )
    return built
