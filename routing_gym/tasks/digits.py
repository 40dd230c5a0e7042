"""DIGITS-MTL: MNIST-MTL's one-vs-rest tasks on the 8x8 digits bundled with scikit-learn; no download."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from routing_gym.tasks.augmentation import shift_or_none
from routing_gym.tasks.dataset import MultiTaskDataset
from routing_gym.tasks.splits import build_splits, one_vs_rest

VALIDATION_SHARE = 0.15
TEST_SHARE = 0.25
SPLIT_SEED = 0


def digits_mtl(*, shift: int = 0) -> dict[str, MultiTaskDataset]:
    """Build DIGITS-MTL: ten tasks, "is this image the digit t?", over 1 797 grey 8x8 images.

    The construction is MNIST-MTL's (Rosenbaum et al. 2018, section 4): label 1 for the task's own digit, 0 for the
    other nine, so the same image carries conflicting labels in different tasks. Each digit has only 174 to 183
    images, so every image enters every task once; the majority class is 90 %. Splits are by image (60 % training,
    15 % validation, 25 % test), stratified by digit, always the same: no image is in two splits. They share one tensor.

    Args:
        shift: Training images are moved by up to this many pixels; 0 leaves them as they are.
    """
    pixels, digit = load_digits(return_X_y=True)
    # The bundled images count 0 to 16; 15 per step spreads them over the range of a byte (16 becomes 240).
    images = torch.from_numpy(pixels * 15).to(torch.uint8).view(-1, 1, 8, 8)
    everything = torch.arange(len(images)).numpy()
    rest, test = train_test_split(everything, test_size=TEST_SHARE, stratify=digit, random_state=SPLIT_SEED)
    train, validation = train_test_split(
        rest, test_size=VALIDATION_SHARE / (1 - TEST_SHARE), stratify=digit[rest], random_state=SPLIT_SEED
    )
    rows = {"train": train, "validation": validation, "test": test}
    return build_splits(
        "DIGITS-MTL",
        {"train": images},
        {"train": one_vs_rest(torch.from_numpy(digit))},
        {split: torch.from_numpy(numbers).sort().values for split, numbers in rows.items()},
        num_classes=2,
        num_tasks=10,
        augmentation=shift_or_none(shift),
    )
