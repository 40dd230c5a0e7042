"""From the images of an official data set to its splits."""

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
    """Whether the tasks of a data set (its name is for messages) are to be coarse classes.

    Raises:
        ValueError: `task` can be no such thing.
    """
    if task not in get_args(TaskOf):
        raise ValueError(f"{name}: task must be 'single' or 'coarse', got {task!r}")
    return task == "coarse"


def check_held_out(name: str, held_out: int, fewest: int) -> None:
    """Refuse to hold out so many images of each class that one of `fewest` is left with none to train on."""
    if isinstance(held_out, bool) or not isinstance(held_out, int) or not 0 <= held_out < fewest:
        raise ValueError(f"{name}: held_out must lie in [0, {fewest}), got {held_out!r}")


def hold_out(name: str, kinds: dict[str, Tensor], held_out: int) -> dict[str, Tensor]:
    """Image numbers `(R,)`, ascending, of `train`, `test` and, where something is held out, `validation`.

    Args:
        name: The data set, for messages.
        kinds: `(N,)` int64, the class of every image, for the parts `train` and `test`.
        held_out: Images of each class, the first ones, that leave `train` for `validation`.

    Raises:
        ValueError: A class would be left without images to train on.
    """
    check_held_out(name, held_out, int(kinds["train"].bincount().min()))
    members = {part: torch.arange(len(kind)) for part, kind in kinds.items()}
    if held_out:
        first = torch.cat([(kinds["train"] == kind).nonzero().flatten()[:held_out] for kind in kinds["train"].unique()])
        kept = torch.ones_like(kinds["train"], dtype=torch.bool)
        kept[first] = False
        members["train"], members["validation"] = kept.nonzero().flatten(), (~kept).nonzero().flatten()
    return members


def one_vs_rest(kind: Tensor) -> Tensor:
    """Labels `(K, N)` of the tasks "is it of class t?", from the classes `(N,)` (MNIST-MTL, Rosenbaum et al. 2018)."""
    return (kind == torch.arange(int(kind.max()) + 1)[:, None]).to(torch.int64)


def build_splits(
    name: str,
    images: dict[str, Tensor],
    labels: dict[str, Tensor],
    members: dict[str, Tensor] | None = None,
    *,
    num_classes: int,
    tasks: dict[str, Tensor] | None = None,
    num_tasks: int = 1,
    augmentation: Shift | None = None,
) -> dict[str, MultiTaskDataset]:
    """Build the splits of a data set; the images of `train` normalise them all.

    Images, labels and tasks are given by split; a split without images of its own shares all three of `train`.

    Args:
        name: As in `MultiTaskDataset`.
        images: `(N, C, H, W)` uint8.
        labels: `(N,)` int64, the label of each image, or `(num_tasks, N)`: then every image is in every task.
        members: `(R,)` int64, the images of each split; None: all that it has.
        num_classes: As in `MultiTaskDataset`.
        tasks: `(N,)` int64, the task of each image; None: there is one task, or every image is in every one.
        num_tasks: As in `MultiTaskDataset`.
        augmentation: That of `train`; the other splits have none.
    """
    members = members or {split: torch.arange(len(own)) for split, own in images.items()}
    mean, std = pixel_statistics(images["train"], members["train"])
    built = {}
    for split, image in members.items():
        part = split if split in images else "train"
        label = labels[part][..., image]
        task = torch.zeros_like(image) if tasks is None else tasks[part][image]
        if label.ndim == 2:
            task = torch.arange(num_tasks).repeat_interleave(len(image))
            image, label = image.repeat(num_tasks), label.flatten()
        built[split] = MultiTaskDataset(
            name=name,
            split=split,
            images=images[part],
            image=image,
            task=task,
            label=label,
            num_tasks=num_tasks,
            num_classes=num_classes,
            mean=mean,
            std=std,
            augmentation=augmentation if split == "train" else None,
        )
    return built
