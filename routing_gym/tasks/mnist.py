"""MNIST: ten tasks of two classes (Rosenbaum et al. 2018, section 4), or one task of ten."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from routing_gym.tasks.augmentation import shift_or_none
from routing_gym.tasks.dataset import MultiTaskDataset
from routing_gym.tasks.files import MNIST, DataError, find, read_idx
from routing_gym.tasks.splits import build_splits, hold_out, one_vs_rest

TRAIN_PER_DIGIT = 1000
HELD_OUT_PER_DIGIT = 20


def mnist_mtl(*, data_dir: str | None = None, data_seed: int = 0, shift: int = 0) -> dict[str, MultiTaskDataset]:
    """Build MNIST-MTL: ten tasks, "is this image the digit t?".

    Per task 1 000 images of each digit for training (10 000, of which 1 000 positive) and 20 of each for test, from
    MNIST's own test images; the majority class is 90 %. The paper does not say whether tasks share images; here they
    do, so every image carries conflicting labels. The validation split is 20 further training images of each digit.

    Args:
        data_dir: The data folder; see `routing_gym.tasks.files.data_folder`.
        data_seed: Which images are taken.
        shift: Training images are moved by up to this many pixels; 0 leaves them as they are.
    """
    generator = torch.Generator().manual_seed(data_seed)
    pixels, digits = read_mnist(data_dir)
    chosen: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}
    for digit in range(10):
        for part, splits in (
            ("train", {"train": TRAIN_PER_DIGIT, "validation": HELD_OUT_PER_DIGIT}),
            ("test", {"test": HELD_OUT_PER_DIGIT}),
        ):
            candidates = (digits[part] == digit).nonzero().flatten()
            candidates = candidates[torch.randperm(len(candidates), generator=generator)]
            if len(candidates) < sum(splits.values()):
                raise DataError(
                    f"MNIST's {part} images hold {len(candidates)} of digit {digit}, MNIST-MTL needs "
                    f"{sum(splits.values())}: are these the official files?"
                )
            for split, count in splits.items():
                chosen[split].append(candidates[:count])
                candidates = candidates[count:]
    images, labels = {}, {}
    for split, members in chosen.items():
        part, rows = "test" if split == "test" else "train", torch.cat(members)
        images[split], labels[split] = pixels[part][rows], one_vs_rest(digits[part][rows])
    return build_splits("MNIST-MTL", images, labels, num_classes=2, num_tasks=10, augmentation=shift_or_none(shift))


def mnist_digits(*, data_dir: str | None = None, held_out: int = 0) -> dict[str, MultiTaskDataset]:
    """Build MNIST as it is: one task of ten classes, 60 000 training and 10 000 test images of 28x28 pixels.

    What Ramachandran and Le 2019 (section 4.1) show the specialisation of experts on. No augmentation: they name none.

    Args:
        data_dir: The data folder; see `routing_gym.tasks.files.data_folder`.
        held_out: Training images of each digit kept out as the split `validation`, the first of the file; 0 for none.
    """
    pixels, digits = read_mnist(data_dir)
    return build_splits("MNIST", pixels, digits, hold_out("MNIST", digits, held_out), num_classes=10)


def read_mnist(data_dir: str | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Images `(N, 1, 28, 28)` uint8 and digits `(N,)` int64 of MNIST's four files, by part, `"train"` and `"test"`.

    Raises:
        DataError: Files are missing or damaged.
    """
    pixels, digits = {}, {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        images = read_idx(find(MNIST, f"{stem}-images-idx3-ubyte.gz", data_dir))
        labels = read_idx(find(MNIST, f"{stem}-labels-idx1-ubyte.gz", data_dir))
        if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise DataError(f"MNIST's {part} files do not fit together: images {images.shape}, labels {labels.shape}")
        pixels[part] = torch.from_numpy(images.copy()).unsqueeze(1)
        digits[part] = torch.from_numpy(labels.astype(np.int64))
    return pixels, digits
