"""CIFAR-10, and its 5- and 2-class forms (McGill and Perona 2017, section 5.6)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from routing_gym.tasks.augmentation import Fill, Shift, shift_or_none
from routing_gym.tasks.dataset import MultiTaskDataset
from routing_gym.tasks.files import CIFAR10, DataError, data_folder, find, how_to_get, read_cifar
from routing_gym.tasks.splits import BY_COARSE_CLASS, TaskOf, are_coarse, build_splits, hold_out

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The ten classes, in the order of the official labels."""

COARSE = (("airplane", "automobile", "ship", "truck"), ("bird", "cat", "deer", "dog", "frog", "horse"))
"""The coarse classes, which are ours: vehicles and animals."""

PARTS = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
ROWS_PER_FILE = 10_000


def cifar10(
    *,
    data_dir: str | None = None,
    task: TaskOf = "single",
    held_out: int = 0,
    shift: int = 4,
    flip: bool = True,
    fill: Fill = "mean",
    allow_partial: bool = False,
) -> dict[str, MultiTaskDataset]:
    """Build CIFAR-10: 10 classes, 50 000 training and 10 000 test images of 32x32 pixels.

    The augmentation is by default that of McGill and Perona 2017, section 4.8.

    With `task="coarse"` agents that tell instances apart by their task only, such as tables, can route vehicles and
    animals on their own. Whoever routes is then told part of the answer: which four, or six, of the classes it can be.
    The logits still range over all ten. A network with a readout for each task has two, and so is told too.

    Args:
        data_dir: The data folder; see `routing_gym.tasks.files.data_folder`.
        task: An instance's task: `"single"`, the same for all; or `"coarse"`, 0 for vehicles (airplane, automobile,
            ship, truck) and 1 for animals. The name of the data then says so.
        held_out: Training images of each of the ten official classes kept out as the split `validation`, the first of
            the files; 0 for none.
        shift: Training images are moved by up to this many pixels; 0 leaves them where they are.
        flip: Mirror every other training image.
        fill: What moves in: `"mean"`, the image's mean colour after gamma decoding, or `"black"`.
        allow_partial: Take what there is where files or rows of the official ones are missing. The name of the data
            then says how much there was.
    """
    by_coarse, augmentation = are_coarse("CIFAR-10", task), shift_or_none(shift, flip, fill)
    return _of_classes("CIFAR-10", NAMES, data_dir, held_out, augmentation, allow_partial, by_coarse)


def cifar5(
    *,
    data_dir: str | None = None,
    held_out: int = 0,
    shift: int = 4,
    flip: bool = True,
    fill: Fill = "mean",
    allow_partial: bool = False,
) -> dict[str, MultiTaskDataset]:
    """Build CIFAR-5: all images of CIFAR-10 as cat (0), dog (1), deer (2), horse (3) or other (4, 60 %).

    Args:
        data_dir: As of `cifar10`.
        held_out: Training images of each of the ten official classes kept out as the split `validation`; 0 for none.
        shift: Training images are moved by up to this many pixels; 0 leaves them where they are.
        flip: Mirror every other training image.
        fill: What moves in: `"mean"` or `"black"`, as of `cifar10`.
        allow_partial: Take what there is where files or rows of the official ones are missing.
    """
    names = ("cat", "dog", "deer", "horse")
    return _of_classes("CIFAR-5", names, data_dir, held_out, shift_or_none(shift, flip, fill), allow_partial)


def cifar2(
    *,
    data_dir: str | None = None,
    held_out: int = 0,
    shift: int = 4,
    flip: bool = True,
    fill: Fill = "mean",
    allow_partial: bool = False,
) -> dict[str, MultiTaskDataset]:
    """Build CIFAR-2: all images of CIFAR-10 as horse (0) or other (1, 90 %).

    Args:
        data_dir: As of `cifar10`.
        held_out: Training images of each of the ten official classes kept out as the split `validation`; 0 for none.
        shift: Training images are moved by up to this many pixels; 0 leaves them where they are.
        flip: Mirror every other training image.
        fill: What moves in: `"mean"` or `"black"`, as of `cifar10`.
        allow_partial: Take what there is where files or rows of the official ones are missing.
    """
    return _of_classes("CIFAR-2", ("horse",), data_dir, held_out, shift_or_none(shift, flip, fill), allow_partial)


def _of_classes(
    name: str,
    names: Sequence[str],
    data_dir: str | None,
    held_out: int,
    augmentation: Shift | None,
    allow_partial: bool,
    by_coarse: bool = False,
) -> dict[str, MultiTaskDataset]:
    """Build CIFAR-10 with the classes of these names first, in this order; all others become one more."""
    images, kinds, note = read_cifar10(data_dir, allow_partial)
    label_of = torch.full((len(NAMES),), len(names))
    label_of[[NAMES.index(kind) for kind in names]] = torch.arange(len(names))
    coarse_of = torch.tensor([next(i for i, group in enumerate(COARSE) if kind in group) for kind in NAMES])
    return build_splits(
        name + (BY_COARSE_CLASS if by_coarse else "") + note,
        images,
        {part: label_of[kind] for part, kind in kinds.items()},
        hold_out(name, kinds, held_out),
        num_classes=int(label_of.max()) + 1,
        tasks={part: coarse_of[kind] for part, kind in kinds.items()} if by_coarse else None,
        num_tasks=len(COARSE) if by_coarse else 1,
        augmentation=augmentation,
    )


def read_cifar10(data_dir: str | None, allow_partial: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """Images `(N, 3, 32, 32)` uint8 of CIFAR-10 and their classes `(N,)` int64, by part, and a note for its name.

    The published md5 sum is that of the archive, see `Source`. Here every file must have its 10 000 rows, and each part
    as many images of each class, as the official ones do; with `allow_partial` whole rows will do, and the note, else
    empty, says how many of the official images there were.

    Raises:
        DataError: Files are missing, truncated or of another data set.
    """
    mend = f"delete it and {how_to_get(CIFAR10, data_dir)}"
    images, kinds = {}, {}
    for part, files in PARTS.items():
        there = [file for file in files if (data_folder(data_dir) / CIFAR10.folder / file).is_file()]
        read = []
        for file in there if allow_partial and there else files:
            path = find(CIFAR10, file, data_dir)
            kind, pixels = read_cifar(path, (len(NAMES),), None if allow_partial else ROWS_PER_FILE, mend)
            if len(kind) > ROWS_PER_FILE:
                raise DataError(f"{path} is of other data: {len(kind)} rows, at most {ROWS_PER_FILE} expected; {mend}")
            read.append((kind, pixels))
        kinds[part] = torch.from_numpy(np.concatenate([kind for kind, _ in read]))
        images[part] = torch.from_numpy(np.concatenate([pixels for _, pixels in read]))
        counts = kinds[part].bincount(minlength=len(NAMES))
        if not counts.all() or not (allow_partial or len(counts.unique()) == 1):
            raise DataError(
                f"{data_folder(data_dir) / CIFAR10.folder}: {', '.join(there)} are of other data: {counts.tolist()} "
                f"images of the ten classes, expected as many of each; delete them and {how_to_get(CIFAR10, data_dir)}"
            )
    found = {part: len(kind) for part, kind in kinds.items()}
    official = {part: ROWS_PER_FILE * len(files) for part, files in PARTS.items()}
    if found == official:
        return images, kinds, ""
    counted = ", ".join(f"{found[part]} of {official[part]} {part}" for part in PARTS)
    return images, kinds, f" (partial: {counted} images)"
