"""CIFAR-MTL (Rosenbaum et al. 2018, section 4): the twenty superclasses of CIFAR-100 as tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from routing_gym.tasks.augmentation import Shift
from routing_gym.tasks.dataset import MultiTaskDataset, pixel_statistics
from routing_gym.tasks.files import CIFAR100, DataError, find, read_cifar

NUM_COARSE, NUM_FINE = 20, 100
ROWS = {"train": 50_000, "test": 10_000}


def cifar100_mtl(
    *, data_dir: str | None = None, held_out: int = 0, shift: int = 0, flip: bool = False
) -> dict[str, MultiTaskDataset]:
    """Build CIFAR-MTL: 20 tasks of 5 classes; 2 500 training and 500 test images per task.

    A task is a coarse label; its labels 0 to 4 are its fine labels in ascending order. Every image is in one task.

    Args:
        data_dir: The data folder; see `routing_gym.tasks.files.data_folder`.
        held_out: Training images of each fine class kept out as the split `validation`, the first of the file; 0 trains
            on all, as the paper does, and leaves no such split.
        shift: Training images are moved by up to this many pixels; 0 leaves them as they are.
        flip: Mirror every other training image.

    Returns:
        The splits `train`, `test` and, with `held_out`, `validation`.

    Raises:
        DataError: Files are missing or damaged.
        ValueError: `held_out` leaves nothing to train on.
    """
    of_each = ROWS["train"] // NUM_FINE
    if not 0 <= held_out < of_each:
        raise ValueError(f"CIFAR-MTL: held_out must lie in [0, {of_each}), got {held_out}")
    parts: dict[str, tuple[Tensor, ...]] = {}
    for part, rows in ROWS.items():
        columns = read_cifar(find(CIFAR100, f"{part}.bin", data_dir), (NUM_COARSE, NUM_FINE), expected_rows=rows)
        parts[part] = tuple(torch.from_numpy(column.copy()) for column in columns)

    coarse, fine, _ = parts["train"]
    coarse_of = torch.full((NUM_FINE,), -1)
    coarse_of[fine] = coarse
    if not torch.equal(coarse_of[fine], coarse) or bool((torch.bincount(coarse_of.clamp(min=0)) != 5).any()):
        raise DataError("cifar-100-binary/train.bin: the fine classes are not 20 times 5 of a coarse one: other data?")
    label_of = torch.empty(NUM_FINE, dtype=torch.int64)
    for task in range(NUM_COARSE):
        label_of[(coarse_of == task).nonzero().flatten()] = torch.arange(5)

    members = {"train": torch.arange(ROWS["train"]), "test": torch.arange(ROWS["test"])}
    if held_out:
        # The position of each row among the rows of its fine class.
        order = fine.sort(stable=True).indices
        position = torch.empty_like(order)
        position[order] = torch.arange(len(order)) % of_each
        members["validation"] = (position < held_out).nonzero().flatten()
        members["train"] = (position >= held_out).nonzero().flatten()
    mean, std = pixel_statistics(parts["train"][2][members["train"]])
    built = {}
    for split, rows_of_split in members.items():
        coarse, fine, images = parts["test" if split == "test" else "train"]
        augmented = split == "train" and (shift or flip)
        built[split] = MultiTaskDataset(
            name="CIFAR-MTL",
            split=split,
            images=images,
            image=rows_of_split,
            task=coarse[rows_of_split],
            label=label_of[fine[rows_of_split]],
            num_tasks=NUM_COARSE,
            num_classes=5,
            mean=mean,
            std=std,
            augmentation=Shift(shift, flip) if augmented else None,
        )
    return built
