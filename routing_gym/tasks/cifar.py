"""CIFAR-10 and its 5- and 2-class forms (McGill and Perona 2017, section 5.6), and CIFAR-100, whole or as CIFAR-MTL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from routing_gym.tasks.augmentation import Fill, Shift, shift_or_none
from routing_gym.tasks.checking import check_choice
from routing_gym.tasks.dataset import MultiTaskDataset
from routing_gym.tasks.files import CIFAR10, CIFAR100, DataError, Source, data_folder, find, how_to_get, how_to_replace
from routing_gym.tasks.splits import build_splits, hold_out

TaskOf = Literal["single", "coarse"]
"""What an instance's task is: the only one there is, or its coarse class."""

BY_COARSE_CLASS = " by coarse class"
"""Written behind the name of a data set whose tasks are coarse classes."""

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The ten classes, in the order of the official labels."""

COARSE = (("airplane", "automobile", "ship", "truck"), ("bird", "cat", "deer", "dog", "frog", "horse"))
"""The coarse classes, which are ours: vehicles and animals."""

PARTS = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
ROWS_PER_FILE = 10_000
"""Images in a file of CIFAR-10."""

NUM_COARSE, NUM_FINE, FINE_PER_COARSE = 20, 100, 5
ROWS = {"train": 50_000, "test": 10_000}
"""Images of CIFAR-100."""

SIZES = (32, 16, 8)
"""Heights and widths that the images of CIFAR-10 may be given; the first is theirs."""


def cifar10(
    *,
    data_dir: str | None = None,
    task: TaskOf = "single",
    held_out: int = 0,
    shift: int = 4,
    flip: bool = True,
    fill: Fill = "mean",
    allow_partial: bool = False,
    size: int = SIZES[0],
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
        size: Height and width: 32, 16 or 8; below 32, each pixel is the mean of the area it covers, and the name of the
            data says so.
    """
    check_choice("CIFAR-10: task", task, *get_args(TaskOf))
    augmentation = shift_or_none(shift, flip, fill)
    return _of_classes("CIFAR-10", NAMES, data_dir, held_out, augmentation, allow_partial, size, task == "coarse")


def cifar5(
    *,
    data_dir: str | None = None,
    held_out: int = 0,
    shift: int = 4,
    flip: bool = True,
    fill: Fill = "mean",
    allow_partial: bool = False,
    size: int = SIZES[0],
) -> dict[str, MultiTaskDataset]:
    """Build CIFAR-5: all images of CIFAR-10 as cat (0), dog (1), deer (2), horse (3) or other (4, 60 %).

    Args:
        data_dir: As of `cifar10`.
        held_out: Training images of each of the ten official classes kept out as the split `validation`; 0 for none.
        shift: Training images are moved by up to this many pixels; 0 leaves them where they are.
        flip: Mirror every other training image.
        fill: What moves in: `"mean"` or `"black"`, as of `cifar10`.
        allow_partial: Take what there is where files or rows of the official ones are missing.
        size: Height and width, 32, 16 or 8, as of `cifar10`.
    """
    names = ("cat", "dog", "deer", "horse")
    return _of_classes("CIFAR-5", names, data_dir, held_out, shift_or_none(shift, flip, fill), allow_partial, size)


def cifar2(
    *,
    data_dir: str | None = None,
    held_out: int = 0,
    shift: int = 4,
    flip: bool = True,
    fill: Fill = "mean",
    allow_partial: bool = False,
    size: int = SIZES[0],
) -> dict[str, MultiTaskDataset]:
    """Build CIFAR-2: all images of CIFAR-10 as horse (0) or other (1, 90 %).

    Args:
        data_dir: As of `cifar10`.
        held_out: Training images of each of the ten official classes kept out as the split `validation`; 0 for none.
        shift: Training images are moved by up to this many pixels; 0 leaves them where they are.
        flip: Mirror every other training image.
        fill: What moves in: `"mean"` or `"black"`, as of `cifar10`.
        allow_partial: Take what there is where files or rows of the official ones are missing.
        size: Height and width, 32, 16 or 8, as of `cifar10`.
    """
    return _of_classes("CIFAR-2", ("horse",), data_dir, held_out, shift_or_none(shift, flip, fill), allow_partial, size)


def _of_classes(
    name: str,
    names: Sequence[str],
    data_dir: str | None,
    held_out: int,
    augmentation: Shift | None,
    allow_partial: bool,
    size: int,
    by_coarse: bool = False,
) -> dict[str, MultiTaskDataset]:
    """Build CIFAR-10 with the classes of these names first, in this order; all others become one more."""
    if size not in SIZES:
        raise ValueError(f"{name}: size must be one of {', '.join(map(str, SIZES))}, got {size!r}")
    images, kinds, note = read_cifar10(data_dir, allow_partial)
    if size < SIZES[0]:
        images = {part: _shrunk(own, SIZES[0] // size) for part, own in images.items()}
        note = f" at {size}x{size}{note}"
    label_of = torch.full((len(NAMES),), len(names))
    label_of[[NAMES.index(kind) for kind in names]] = torch.arange(len(names))
    coarse_of = torch.tensor([next(i for i, group in enumerate(COARSE) if kind in group) for kind in NAMES])
    return build_splits(
        name + BY_COARSE_CLASS * by_coarse + note,
        images,
        {part: label_of[kind] for part, kind in kinds.items()},
        hold_out(name, kinds, held_out),
        tasks={part: coarse_of[kind] for part, kind in kinds.items()} if by_coarse else None,
        augmentation=augmentation,
    )


def _shrunk(images: Tensor, side: int) -> Tensor:
    """Images `(N, C, H / side, W / side)` uint8: each pixel the rounded mean of a square of `side` pixels."""
    squares = images.unflatten(2, (-1, side)).unflatten(4, (-1, side))
    return squares.sum((3, 5), dtype=torch.int32).add_(side * side // 2).div_(side * side, rounding_mode="floor").byte()


def read_cifar10(data_dir: str | None, allow_partial: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """Images `(N, 3, 32, 32)` uint8 of CIFAR-10 and their classes `(N,)` int64, by part, and a note for its name.

    The published md5 sum is that of the archive, see `Source`. Here every file must have its 10 000 rows, and each part
    as many images of each class, as the official ones do; with `allow_partial` whole rows will do, and the note, else
    empty, says how many of the official images there were.
    """
    folder, mend = data_folder(data_dir) / CIFAR10.folder, how_to_get(CIFAR10, data_dir)
    images, kinds = {}, {}
    for part, files in PARTS.items():
        there = [file for file in files if (folder / file).is_file()]
        taken = there if allow_partial and there else files
        read = [_read_file(CIFAR10, file, data_dir, [len(NAMES)], ROWS_PER_FILE, allow_partial) for file in taken]
        kinds[part], images[part] = (torch.from_numpy(np.concatenate(column)) for column in zip(*read, strict=True))
        counts = kinds[part].bincount(minlength=len(NAMES))
        if not counts.all() or not (allow_partial or len(counts.unique()) == 1):
            raise DataError(
                f"{folder}: {', '.join(there)} are of other data: {counts.tolist()} images of the ten classes, "
                f"expected as many of each; delete them and {mend}"
            )
    found = {part: len(kind) for part, kind in kinds.items()}
    official = {part: ROWS_PER_FILE * len(files) for part, files in PARTS.items()}
    if found == official:
        return images, kinds, ""
    counted = ", ".join(f"{found[part]} of {official[part]} {part}" for part in PARTS)
    return images, kinds, f" (partial: {counted} images)"


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
        tasks=coarse,
        augmentation=shift_or_none(shift, flip),
    )


def cifar100(
    *, data_dir: str | None = None, task: TaskOf = "single", held_out: int = 0, shift: int = 4, flip: bool = True
) -> dict[str, MultiTaskDataset]:
    """Build CIFAR-100 with its 100 fine classes as labels; 500 training and 100 test images of each.

    The augmentation is by default that of CoDiNet (Wang et al., section 4.1): four black pixels are put around an
    image, 32x32 are cut out at random, and every other one is mirrored.

    With `task="coarse"` every coarse class can be routed on its own, as of `cifar10`: whoever routes is then told which
    five of the classes it can be.

    Args:
        data_dir: The data folder; see `routing_gym.tasks.files.data_folder`.
        task: An instance's task: `"single"`, the same for all; or `"coarse"`, which of the 20 coarse classes of the
            files it is of. The name of the data then says so.
        held_out: Training images of each class kept out as the split `validation`, the first of the file; 0 for none.
        shift: Training images are moved by up to this many pixels; 0 leaves them where they are.
        flip: Mirror every other training image.
    """
    check_choice("CIFAR-100: task", task, *get_args(TaskOf))
    by_coarse = task == "coarse"
    images, coarse, fine = read_cifar100(data_dir)
    return build_splits(
        "CIFAR-100" + BY_COARSE_CLASS * by_coarse,
        images,
        fine,
        hold_out("CIFAR-100", fine, held_out),
        tasks=coarse if by_coarse else None,
        augmentation=shift_or_none(shift, flip),
    )


def read_cifar100(data_dir: str | None) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Images `(N, 3, 32, 32)` uint8 of CIFAR-100, their coarse and their fine classes `(N,)` int64, each by part."""
    images, coarse, fine = {}, {}, {}
    for part, rows in ROWS.items():
        columns = _read_file(CIFAR100, f"{part}.bin", data_dir, [NUM_COARSE, NUM_FINE], rows)
        coarse[part], fine[part], images[part] = (torch.from_numpy(column.copy()) for column in columns)
    coarse_of = torch.full((NUM_FINE,), -1)
    coarse_of[fine["train"]] = coarse["train"]
    even = torch.arange(NUM_COARSE).repeat_interleave(FINE_PER_COARSE)
    for part, rows in ROWS.items():
        whole = torch.equal(coarse_of[fine[part]], coarse[part]) and torch.equal(coarse_of.sort().values, even)
        if not whole or fine[part].bincount(minlength=NUM_FINE).unique().tolist() != [rows // NUM_FINE]:
            raise DataError(
                f"{data_folder(data_dir) / CIFAR100.folder}/{part}.bin is of other data: expected {rows // NUM_FINE} "
                "images of each of the fine classes, 5 of which are of each coarse one; "
                + how_to_replace(CIFAR100, data_dir)
            )
    return images, coarse, fine


def _read_file(
    source: Source, name: str, data_dir: str | None, label_limits: Sequence[int], rows: int, allow_partial: bool = False
) -> list[np.ndarray]:
    """Labels `(N,)` int64, an array per label byte, then images `(N, 3, 32, 32)` uint8 of a binary file of CIFAR's.

    A row of the file is some label bytes, of which each counts so many classes, then 3 072 bytes of one 32x32 image.
    """
    path, mend = find(source, name, data_dir), how_to_replace(source, data_dir)
    labels = len(label_limits)
    width = labels + 3 * 32 * 32
    raw = np.fromfile(path, dtype=np.uint8)
    if not len(raw) or len(raw) % width or (len(raw) != width * rows and not allow_partial):
        wanted = f"a multiple of {width} bytes" if allow_partial else f"{width * rows} bytes"
        raise DataError(f"{path} is truncated or of other data: {len(raw)} bytes, expected {wanted}; {mend}")
    table = raw.reshape(-1, width)
    if len(table) > rows:
        raise DataError(f"{path} is of other data: {len(table)} rows, at most {rows} expected; {mend}")
    for position, limit in enumerate(label_limits):
        if (label := int(table[:, position].max())) >= limit:
            what = f"label {label} in column {position}, expected less than {limit}"
            raise DataError(f"{path} is of another data set: {what}; {mend}")
    return [*table[:, :labels].T.astype(np.int64), table[:, labels:].reshape(-1, 3, 32, 32)]
