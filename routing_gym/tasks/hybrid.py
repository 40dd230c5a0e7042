"""The hybrid MNIST/CIFAR-10 data of McGill and Perona 2017 (section 5.1, Figure 4): easy and hard images mixed."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from routing_gym.tasks.augmentation import Fill, draw_palettes, recolor, shift_or_none
from routing_gym.tasks.checking import seeded
from routing_gym.tasks.cifar import NAMES, read_cifar10
from routing_gym.tasks.dataset import MultiTaskDataset
from routing_gym.tasks.digits import read_mnist
from routing_gym.tasks.files import DataError
from routing_gym.tasks.splits import build_splits, hold_out

DIGITS = 5
PHOTOGRAPHS = ("airplane", "automobile", "deer", "horse", "frog")
SIZE = 32


def hybrid_mnist_cifar(
    *,
    data_dir: str | None = None,
    data_seed: int = 0,
    held_out: int = 0,
    shift: int = 4,
    flip: bool = True,
    fill: Fill = "mean",
    recolor_each_time: bool = False,
    allow_partial: bool = False,
) -> dict[str, MultiTaskDataset]:
    """Build the hybrid data: the digits 0 to 4 and airplane, automobile, deer, horse, frog as the classes 0 to 9.

    All images of these classes, one task: 30 596 digits and 25 000 photographs for training, 5 139 and 5 000 for test.
    Digits are resized to 32x32 by linear interpolation, then coloured: two random RGB colours at least 0.3 apart, one
    for black, one for white, are drawn once per image, of all splits (as in the authors' code; the paper does not say
    when).

    Args:
        data_dir: The data folder; see `routing_gym.tasks.files.data_folder`.
        data_seed: Seed of the colours.
        held_out: Training images of each class kept out as the split `validation`, the first of the files; 0 for none.
        shift: Training images are moved by up to this many pixels; 0 leaves them where they are.
        flip: Mirror every other photograph in training; digits never are.
        fill: What moves in: `"mean"`, the image's mean colour after gamma decoding, or `"black"`.
        recolor_each_time: Give a digit new colours every time it is drawn for training.
        allow_partial: Take what there is where files or rows of CIFAR-10's are missing, as `cifar10` does.
    """
    photographs, names, note = read_cifar10(data_dir, allow_partial)
    grey, digits = read_mnist(data_dir)
    label_of = torch.full((len(NAMES),), -1)
    label_of[[NAMES.index(name) for name in PHOTOGRAPHS]] = DIGITS + torch.arange(len(PHOTOGRAPHS))
    generator = seeded("hybrid", data_seed)
    images, shades, labels = {}, {}, {}
    for part in ("train", "test"):
        drawing, photograph = digits[part] < DIGITS, label_of[names[part]] >= 0
        if len(digits[part][drawing].unique()) < DIGITS:
            raise DataError(f"MNIST's {part} images lack one of the digits 0 to {DIGITS - 1}: the official files?")
        shades[part] = enlarge(grey[part][drawing])
        colored = recolor(shades[part], draw_palettes(len(shades[part]), generator))
        images[part] = torch.cat([colored, photographs[part][photograph]])
        labels[part] = torch.cat([digits[part][drawing], label_of[names[part][photograph]]])
    members = hold_out("hybrid data", labels, held_out)
    built = build_splits("Hybrid MNIST/CIFAR-10" + note, images, labels, members)
    for split, data in built.items():
        built[split] = dataclasses.replace(data, drawings=len(shades["test" if split == "test" else "train"]))
    built["train"] = dataclasses.replace(
        built["train"],
        augmentation=shift_or_none(shift, flip, fill, recolor_each_time),
        shades=shades["train"] if recolor_each_time else None,
    )
    return built


def enlarge(images: Tensor) -> Tensor:
    """Resize grey images to 32x32 by linear interpolation: `(N, 1, H, W)` uint8 to `(N, 1, 32, 32)` uint8, rounded."""
    pieces = [
        torch.nn.functional.interpolate(piece.float(), (SIZE, SIZE), mode="bilinear", align_corners=False)
        for piece in images.split(4096)
    ]
    return torch.cat([piece.round().to(torch.uint8) for piece in pieces])
