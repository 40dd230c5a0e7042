"""MIN-MTL (Rosenbaum et al. 2018, section 4): fifty labels of mini-ImageNet in ten tasks."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from routing_gym.tasks.augmentation import shift_or_none
from routing_gym.tasks.checking import whole_number
from routing_gym.tasks.dataset import MultiTaskDataset
from routing_gym.tasks.files import MINI_IMAGENET, DataError, cached_pixels, data_folder, find, how_to_get
from routing_gym.tasks.splits import build_splits

NUM_TASKS, NUM_CLASSES = 10, 5
NUM_LABELS = 100
IMAGES_PER_LABEL = 600
TEST_PER_LABEL = 50
IMAGE_SIZE = 84
SELECTION_SEED = 0
HEADER = ["filename", "label"]
CACHE = "min-mtl-pixels.npz"
MEND = "take the published file instead"
MEND_IMAGE = "put mini-ImageNet's own file there, converted to RGB and resized to 84x84 pixels"


def mini_imagenet_mtl(
    *, data_dir: str | None = None, held_out: int = 0, shift: int = 0, flip: bool = False
) -> dict[str, MultiTaskDataset]:
    """Build MIN-MTL: 10 tasks of 5 classes; 2 750 training and 250 test images per task.

    The paper draws 50 of mini-ImageNet's 100 labels into 10 disjoint groups, but does not say which. Here a
    permutation with the seed `SELECTION_SEED` of all labels, sorted by name, does: its first five are task 0, the next
    five task 1, and so on; the labels 0 to 4 of a task are its five in ascending order. The paper has 800 and 50
    images of each label, mini-ImageNet 600: the same generator then permutes each label's images, sorted by name,
    and the last 50 are for test, the 550 before them for training. Every image is in one task.

    The first call decodes 30 000 files and leaves their pixels beside them, in one file of 635 MB.

    Args:
        data_dir: The data folder; see `routing_gym.tasks.files.data_folder`.
        held_out: Training images of each label kept out as the split `validation`, the first of its permutation; 0, as
            in the paper, for none.
        shift: Training images are moved by up to this many pixels; 0 leaves them as they are.
        flip: Mirror every other training image.
    """
    of_each = IMAGES_PER_LABEL - TEST_PER_LABEL
    whole_number("MIN-MTL: held_out", held_out, 0, of_each - 1)
    shuffled = _draw_labels(_names_of_labels(data_dir))
    # The first image of every label, then the second of every label, ...: each split is a run of neighbours, which
    # needs no copy and takes nothing of the others along to another device.
    folder = data_folder(data_dir) / MINI_IMAGENET.folder
    paths = [folder / "images" / name for of_all_labels in zip(*shuffled, strict=True) for name in of_all_labels]
    shape = (3, IMAGE_SIZE, IMAGE_SIZE)

    def decode() -> np.ndarray:
        return np.fromiter(map(_decode_jpeg, paths), np.dtype((np.uint8, shape)), len(paths))

    images = torch.from_numpy(cached_pixels(folder / CACHE, paths, MEND_IMAGE, (len(paths), *shape), decode))
    kind = torch.arange(NUM_TASKS * NUM_CLASSES).repeat(IMAGES_PER_LABEL)
    positions = {"train": (held_out, of_each), "test": (of_each, IMAGES_PER_LABEL), "validation": (0, held_out)}
    step = len(shuffled)
    rows = {split: slice(step * first, step * end) for split, (first, end) in positions.items() if first < end}
    return build_splits(
        "MIN-MTL",
        {split: images[part] for split, part in rows.items()},
        {split: kind[part] % NUM_CLASSES for split, part in rows.items()},
        tasks={split: kind[part] // NUM_CLASSES for split, part in rows.items()},
        augmentation=shift_or_none(shift, flip),
    )


def _draw_labels(names_of: dict[str, list[str]]) -> list[list[str]]:
    """Names of the images of the labels that are drawn: five labels of task 0, five of task 1, and so on."""
    generator = torch.Generator().manual_seed(SELECTION_SEED)
    drawn = torch.randperm(len(names_of), generator=generator)[: NUM_TASKS * NUM_CLASSES]
    labels = sorted(names_of)
    shuffled = []
    for number in drawn.view(NUM_TASKS, NUM_CLASSES).sort(1).values.flatten().tolist():
        names = sorted(names_of[labels[number]])
        shuffled.append([names[i] for i in torch.randperm(len(names), generator=generator).tolist()])
    return shuffled


def _names_of_labels(data_dir: str | None) -> dict[str, list[str]]:
    """Names of the images of every label, from the three CSV files; all of them are there."""
    tables = {name: find(MINI_IMAGENET, name, data_dir) for name in MINI_IMAGENET.files}
    folder = data_folder(data_dir) / MINI_IMAGENET.folder
    try:
        present = set(os.listdir(folder / "images"))
    except OSError as error:
        raise DataError(f"{folder / 'images'} is missing: {how_to_get(MINI_IMAGENET, data_dir)}") from error
    names_of: dict[str, list[str]] = {}
    table_of: dict[str, Path] = {}
    seen: set[str] = set()
    for path in tables.values():
        for line, (name, label) in enumerate(_read_csv(path), start=2):
            where = f"{path}, line {line}"
            if name not in present:
                mend = "unpack the archive of images again, to its end"
                raise DataError(f"{folder / 'images' / name} is missing, but {where} names it: {mend}")
            if name in seen:
                raise DataError(f"{where} names {name}, which an earlier line does as well: {MEND}")
            if table_of.setdefault(label, path) != path:
                raise DataError(f"{where} is of label {label}, which {table_of[label].name} has as well: {MEND}")
            seen.add(name)
            names_of.setdefault(label, []).append(name)
    if len(names_of) != NUM_LABELS:
        raise DataError(
            f"{', '.join(tables)} in {folder} hold {len(names_of)} labels, mini-ImageNet has {NUM_LABELS}: are they "
            "of another data set? Take the published files instead"
        )
    for label, names in names_of.items():
        if len(names) != IMAGES_PER_LABEL:
            what = f"{len(names)} images of label {label}, mini-ImageNet has {IMAGES_PER_LABEL}"
            raise DataError(f"{table_of[label]} names {what}: {MEND}")
    return names_of


def _read_csv(path: Path) -> list[tuple[str, str]]:
    """Rows (file name, label) of a CSV file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file: {error}; {MEND}") from error
    if header != HEADER:
        raise DataError(f"{path} begins with {','.join(header)!r}, expected {','.join(HEADER)!r}: {MEND}")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(HEADER):
            raise DataError(f"{path}, line {line} has {len(row)} columns, expected {len(HEADER)}: {MEND}")
    return [(name, label) for name, label in rows]


def _decode_jpeg(path: Path) -> np.ndarray:
    """Pixels `(3, 84, 84)` uint8 of a jpg file."""
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            if image.size != (IMAGE_SIZE, IMAGE_SIZE) or image.mode != "RGB":
                found = "{}x{} of mode {}".format(*image.size, image.mode)
                raise DataError(f"{path} is {found}, expected {IMAGE_SIZE}x{IMAGE_SIZE} of mode RGB: {MEND_IMAGE}")
            return np.asarray(image).transpose(2, 0, 1)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for broken files
        raise DataError(f"{path} is truncated or not a jpg file: {error}; {MEND_IMAGE}") from error
