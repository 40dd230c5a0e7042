"""DIGITS-MTL: MNIST-MTL's one-vs-rest tasks on the 8x8 digits bundled with scikit-learn; no download."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from routing_gym.tasks.augmentation import Shift
from routing_gym.tasks.dataset import MultiTaskDataset, one_vs_rest, pixel_statistics

VALIDATION_SHARE = 0.15
TEST_SHARE = 0.25
SPLIT_SEED = 0


def digits_mtl(*, shift: int = 0) -> dict[str, MultiTaskDataset]:
    """Build DIGITS-MTL: ten tasks, "is this image the digit t?", over 1 797 grey 8x8 images.

    The construction is MNIST-MTL's (Rosenbaum et al. 2018, section 4): label 1 for the task's own digit, 0 for the
    other nine, so the same image carries conflicting labels in different tasks. Each digit has only 174 to 183
    images, so every image enters every task once; the majority class is 90 %. Splits are by image (60 % training,
    15 % validation, 25 % test), stratified by digit, always the same: no image is in two splits.

    Args:
        shift: Training images are moved by up to this many pixels; 0 leaves them as they are.

    Returns:
        The splits `train`, `validation` and `test`, which share one image tensor.
    """
    pixels, digit = load_digits(return_X_y=True)
    # The bundled images count 0 to 16; 15 per step spreads them over the range of a byte (16 becomes 240).
    images = torch.from_numpy(pixels * 15).to(torch.uint8).view(-1, 1, 8, 8)
    digit_of = torch.from_numpy(digit).to(torch.int64)

    everything = torch.arange(len(images)).numpy()
    rest, test = train_test_split(everything, test_size=TEST_SHARE, stratify=digit, random_state=SPLIT_SEED)
    train, validation = train_test_split(
        rest, test_size=VALIDATION_SHARE / (1 - TEST_SHARE), stratify=digit[rest], random_state=SPLIT_SEED
    )
    statistics = pixel_statistics(images[torch.from_numpy(train)])
    augmentation = Shift(shift) if shift else None
    members = {"train": train, "validation": validation, "test": test}
    return {
        split: one_vs_rest(
            "DIGITS-MTL",
            split,
            images,
            torch.from_numpy(rows).sort().values,
            digit_of,
            statistics,
            augmentation if split == "train" else None,
        )
        for split, rows in members.items()
    }
