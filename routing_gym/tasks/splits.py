"""From the images of an official data set to its splits."""

from __future__ import annotations

import torch
from torch import Tensor

from routing_gym.tasks.augmentation import Shift
from routing_gym.tasks.checking import whole_number
from routing_gym.tasks.dataset import MultiTaskDataset, pixel_statistics


def hold_out(name: str, kinds: dict[str, Tensor], held_out: int) -> dict[str, Tensor]:
    """Image numbers `(R,)`, ascending, of `train`, `test` and, where something is held out, `validation`.

    Args:
        name: The data set, for messages.
        kinds: `(N,)` int64, the class of every image, for the parts `train` and `test`.
        held_out: Images of each class, the first ones, that leave `train` for `validation`.

    Raises:
        ValueError: A class would be left without images to train on.
    """
    whole_number(f"{name}: held_out", held_out, 0, int(kinds["train"].bincount().min()) - 1)
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
    members: dict[str, Tensor] | None = None,
    *,
    tasks: dict[str, Tensor] | None = None,
    augmentation: Shift | None = None,
) -> dict[str, MultiTaskDataset]:
    """Build the splits of a data set; the images of `train` normalise them all, its rows say how many tasks there are.

    Images, labels and tasks are given by split; a split without images of its own shares all three of `train`.

    Args:
        name: As in `MultiTaskDataset`.
        images: `(N, C, H, W)` uint8.
        labels: `(N,)` int64, the label of each image, or `(T, N)`: then every image is in every one of T tasks.
        members: `(R,)` int64, the images of each split; None: all that it has.
        tasks: `(N,)` int64, the task of each image; None: there is one task, or every image is in every one.
        augmentation: That of `train`; the other splits have none.
    """
    members = members or {split: torch.arange(len(own)) for split, own in images.items()}
    mean, std = pixel_statistics(images["train"], members["train"])
    num_tasks = int(tasks["train"].max()) + 1 if tasks else len(torch.atleast_2d(labels["train"]))
    num_classes = int(labels["train"].max()) + 1
    built = {}
    for split, image in members.items():
        part, own = split if split in images else "train", augmentation if split == "train" else None
        label = labels[part][..., image].flatten()
        task = tasks[part][image] if tasks else torch.arange(num_tasks).repeat_interleave(len(image))
        image = image if tasks else image.repeat(num_tasks)
        built[split] = MultiTaskDataset(
            name, split, images[part], image, task, label, num_tasks, num_classes, mean, std, own
        )
    return built
