"""CIFAR-100: its twenty superclasses as tasks (Rosenbaum et al. 2018, section 4), or its 100 classes at once."""

from __future__ import annotations

import torch
from torch import Tensor

from routing_gym.tasks.augmentation import shift_or_none
from routing_gym.tasks.dataset import MultiTaskDataset
from routing_gym.tasks.files import CIFAR100, DataError, data_folder, find, how_to_get, read_cifar
from routing_gym.tasks.splits import BY_COARSE_CLASS, TaskOf, are_coarse, build_splits, hold_out

NUM_COARSE, NUM_FINE, FINE_PER_COARSE = 20, 100, 5
ROWS = {"train": 50_000, "test": 10_000}


def cifar100_mtl(
    *, data_dir: str | None = None, held_out: int = 0, shift: int = 0, flip: bool = False
) -> dict[str, MultiTaskDataset]:
    """Build CIFAR-MTL: 20 tasks of 5 classes; 2 500 training and 500 test images per task.

    A task is a coarse label; its labels 0 to 4 are its fine labels in ascending order. Every image is in one task.

    Args:
        data_dir: The data folder; see `routing_gym.tasks.files.data_folder`.
        held_out: Training images of each fine class kept out as the split `validation`, the first of the file; 0, as in
            the paper, for none.
        shift: Training images are moved by up to this many pixels; 0 leaves them as they are.
        flip: Mirror every other training image.
    """
    images, coarse, fine = read_cifar100(data_dir)
    # The fine classes of each coarse one in ascending order, as the labels 0 to 4.
    label_of = torch.empty(NUM_FINE, dtype=torch.int64)
    for task in range(NUM_COARSE):
        label_of[fine["train"][coarse["train"] == task].unique()] = torch.arange(FINE_PER_COARSE)
    return build_splits(
        "CIFAR-MTL",
        images,
        {part: label_of[kind] for part, kind in fine.items()},
        hold_out("CIFAR-MTL", fine, held_out),
        num_classes=FINE_PER_COARSE,
        tasks=coarse,
        num_tasks=NUM_COARSE,
        augmentation=shift_or_none(shift, flip),
    )


def cifar100(
    *, data_dir: str | None = None, task: TaskOf = "single", held_out: int = 0, shift: int = 4, flip: bool = True
) -> dict[str, MultiTaskDataset]:
    """Build CIFAR-100 with its 100 fine classes as labels; 500 training and 100 test images of each.

    The augmentation is by default that of CoDiNet (Wang et al., section 4.1): four black pixels are put around an
    image, 32x32 are cut out at random, and every other one is mirrored.

    With `task="coarse"` agents that tell instances apart by their task only, such as tables, can route every coarse
    class on its own. Whoever routes is then told part of the answer: which five of the classes it can be. The logits
    still range over all 100. A network with a readout for each task has one for each coarse class, and so is told too.

    Args:
        data_dir: The data folder; see `routing_gym.tasks.files.data_folder`.
        task: An instance's task: `"single"`, the same for all; or `"coarse"`, which of the 20 coarse classes of the
            files it is of. The name of the data then says so.
        held_out: Training images of each class kept out as the split `validation`, the first of the file; 0 for none.
        shift: Training images are moved by up to this many pixels; 0 leaves them where they are.
        flip: Mirror every other training image.
    """
    by_coarse = are_coarse("CIFAR-100", task)
    images, coarse, fine = read_cifar100(data_dir)
    return build_splits(
        "CIFAR-100" + (BY_COARSE_CLASS if by_coarse else ""),
        images,
        fine,
        hold_out("CIFAR-100", fine, held_out),
        num_classes=NUM_FINE,
        tasks=coarse if by_coarse else None,
        num_tasks=NUM_COARSE if by_coarse else 1,
        augmentation=shift_or_none(shift, flip),
    )


def read_cifar100(data_dir: str | None) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Images `(N, 3, 32, 32)` uint8 of CIFAR-100, their coarse and their fine classes `(N,)` int64, each by part.

    Raises:
        DataError: Files are missing or damaged, or a class has not its share of the rows.
    """
    images, coarse, fine = {}, {}, {}
    for part, rows in ROWS.items():
        columns = read_cifar(find(CIFAR100, f"{part}.bin", data_dir), (NUM_COARSE, NUM_FINE), expected_rows=rows)
        coarse[part], fine[part], images[part] = (torch.from_numpy(column.copy()) for column in columns)
    coarse_of = torch.full((NUM_FINE,), -1)
    coarse_of[fine["train"]] = coarse["train"]
    even = torch.arange(NUM_COARSE).repeat_interleave(FINE_PER_COARSE)
    for part, rows in ROWS.items():
        whole = torch.equal(coarse_of[fine[part]], coarse[part]) and torch.equal(coarse_of.sort().values, even)
        if not whole or fine[part].bincount(minlength=NUM_FINE).unique().tolist() != [rows // NUM_FINE]:
            raise DataError(
                f"{data_folder(data_dir) / CIFAR100.folder}/{part}.bin is of other data: expected {rows // NUM_FINE} "
                f"images of each of the fine classes, 5 of which are of each coarse one; delete it and "
                f"{how_to_get(CIFAR100, data_dir)}"
            )
    return images, coarse, fine
