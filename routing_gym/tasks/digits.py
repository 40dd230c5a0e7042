"""Digits: MNIST (whole, and as MNIST-MTL), those bundled with scikit-learn (as DIGITS-MTL, no download), and SVHN."""

from __future__ import annotations

import gzip
import itertools
import math
from pathlib import Path

import numpy as np
import scipy  # its parts are imported when they are used
import torch
from torch import Tensor

from routing_gym.tasks.augmentation import shift_or_none
from routing_gym.tasks.checking import seeded
from routing_gym.tasks.dataset import MultiTaskDataset
from routing_gym.tasks.files import MNIST, SVHN, DataError, find, how_to_replace
from routing_gym.tasks.splits import build_splits, hold_out

TRAIN_PER_DIGIT = 1000
HELD_OUT_PER_DIGIT = 20
SVHN_ROWS = {"train": 73_257, "test": 26_032}


def digits_mtl(*, shift: int = 0) -> dict[str, MultiTaskDataset]:
    """Build DIGITS-MTL: ten tasks, "is this image the digit t?", over 1 797 grey 8x8 images.

    The construction is MNIST-MTL's (Rosenbaum et al. 2018, section 4): label 1 for the task's own digit, 0 for the
    other nine, so the same image carries conflicting labels in different tasks. Each digit has only 174 to 183
    images, so every image enters every task once; the majority class is 90 %. Splits are by image (60 % training,
    15 % validation, 25 % test), stratified by digit, always the same: no image is in two splits. They share one tensor.

    Args:
        shift: Training images are moved by up to this many pixels; 0 leaves them as they are.
    """
    from sklearn.model_selection import train_test_split  # takes half as long to import as PyTorch

    images, digit = read_digits()
    rest, test = train_test_split(np.arange(len(images)), test_size=0.25, stratify=digit.numpy(), random_state=0)
    train, validation = train_test_split(rest, test_size=0.15 / 0.75, stratify=digit[rest].numpy(), random_state=0)
    rows = {"train": train, "validation": validation, "test": test}
    return build_splits(
        "DIGITS-MTL",
        {"train": images},
        {"train": _one_vs_rest(digit)},
        {split: torch.from_numpy(numbers).sort().values for split, numbers in rows.items()},
        augmentation=shift_or_none(shift),
    )


def read_digits() -> tuple[Tensor, Tensor]:
    """Images `(1797, 1, 8, 8)` uint8 and digits `(1797,)` int64 that come with scikit-learn."""
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    # They count 0 to 16; 15 per step spreads them over the range of a byte (16 becomes 240).
    return torch.from_numpy(pixels * 15).to(torch.uint8).view(-1, 1, 8, 8), torch.from_numpy(digit).long()


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
    generator = seeded("MNIST-MTL", data_seed)
    pixels, digits = read_mnist(data_dir)
    chosen: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}
    parts = {"train": [TRAIN_PER_DIGIT, HELD_OUT_PER_DIGIT], "test": [HELD_OUT_PER_DIGIT]}
    for digit, (part, counts) in itertools.product(range(10), parts.items()):
        members = (digits[part] == digit).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        if len(members) < sum(counts):
            raise DataError(
                f"MNIST's {part} images hold {len(members)} of digit {digit}, MNIST-MTL needs {sum(counts)}: are these "
                "the official files?"
            )
        for split, own in zip([part, "validation"], members[: sum(counts)].split(counts), strict=False):
            chosen[split].append(own)
    images, labels = {}, {}
    for split, of_digits in chosen.items():
        part, rows = "test" if split == "test" else "train", torch.cat(of_digits)
        images[split], labels[split] = pixels[part][rows], _one_vs_rest(digits[part][rows])
    return build_splits("MNIST-MTL", images, labels, augmentation=shift_or_none(shift))


def mnist_digits(*, data_dir: str | None = None, held_out: int = 0) -> dict[str, MultiTaskDataset]:
    """Build MNIST as it is: one task of ten classes, 60 000 training and 10 000 test images of 28x28 pixels.

    What Ramachandran and Le 2019 (section 4.1) show the specialisation of experts on. No augmentation: they name none.

    Args:
        data_dir: The data folder; see `routing_gym.tasks.files.data_folder`.
        held_out: Training images of each digit kept out as the split `validation`, the first of the file; 0 for none.
    """
    pixels, digits = read_mnist(data_dir)
    return build_splits("MNIST", pixels, digits, hold_out("MNIST", digits, held_out))


def read_mnist(data_dir: str | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Images `(N, 1, 28, 28)` uint8 and digits `(N,)` int64 of MNIST's four files, by part, `"train"` and `"test"`."""
    pixels, digits = {}, {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        images = _read_idx(find(MNIST, f"{stem}-images-idx3-ubyte.gz", data_dir))
        labels = _read_idx(find(MNIST, f"{stem}-labels-idx1-ubyte.gz", data_dir))
        if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise DataError(f"MNIST's {part} files do not fit together: images {images.shape}, labels {labels.shape}")
        pixels[part] = torch.from_numpy(images.copy()).unsqueeze(1)
        digits[part] = torch.from_numpy(labels.astype(np.int64))
    return pixels, digits


def _read_idx(path: Path) -> np.ndarray:
    """Array of a gzipped IDX file of unsigned bytes, the format of MNIST."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is truncated or not gzipped: {error}; delete it and fetch it again") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes: it begins with {raw[:4].hex() or 'nothing'}")
    begin = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[start : start + 4], "big") for start in range(4, begin, 4))
    values = np.frombuffer(raw, dtype=np.uint8, offset=begin)
    if len(values) != math.prod(shape):
        raise DataError(f"{path} is truncated: {len(values)} bytes of data, expected {math.prod(shape)}")
    return values.reshape(shape)


def _one_vs_rest(kind: Tensor) -> Tensor:
    """Labels `(K, N)` of the tasks "is it of class t?", from the classes `(N,)` (MNIST-MTL, Rosenbaum et al. 2018)."""
    return (kind == torch.arange(int(kind.max()) + 1)[:, None]).to(torch.int64)


def svhn(*, data_dir: str | None = None, held_out: int = 0, shift: int = 4) -> dict[str, MultiTaskDataset]:
    """Build SVHN, format 2: 10 digits, 73 257 training and 26 032 test images of 32x32 pixels.

    The classes are not of one size: there are three times as many ones as nines. The authors' 531 131 `extra` images
    are left out. The augmentation is by default that of CoDiNet (Wang et al., section 4.1), which crops SVHN but does
    not mirror it, as digits do not survive that.

    Args:
        data_dir: The data folder; see `routing_gym.tasks.files.data_folder`.
        held_out: Training images of each digit kept out as the split `validation`, the first of the file; 0 for none.
        shift: Training images are moved by up to this many pixels; 0 leaves them where they are.
    """
    images, digits = {}, {}
    for part, rows in SVHN_ROWS.items():
        path = find(SVHN, f"{part}_32x32.mat", data_dir)
        images[part], digits[part] = read_svhn(path, rows, how_to_replace(SVHN, data_dir))
    members = hold_out("SVHN", digits, held_out)
    return build_splits("SVHN", images, digits, members, augmentation=shift_or_none(shift))


def read_svhn(path: Path, rows: int, mend: str) -> tuple[Tensor, Tensor]:
    """Images `(N, 3, 32, 32)` uint8 and digits `(N,)` int64 of a MATLAB file of SVHN, which has `rows` images.

    The file holds the pixels `X (32, 32, 3, N)`, height first, and the digits `y (N, 1)`, 10 for 0.
    """
    # A damaged file that is not compressed can make `loadmat` end the process. The published ones are compressed, with
    # check sums inside, and `find` has compared their md5 sums before.
    shapes = {"X": (32, 32, 3, rows), "y": (rows, 1)}
    try:
        found = scipy.io.loadmat(path, variable_names=list(shapes))
    except Exception as error:  # a damaged file fails in many ways, depending on where the damage is
        raise DataError(f"{path} is truncated or not a MATLAB file: {error}; {mend}") from error
    for name, shape in shapes.items():
        value = found.get(name)
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.shape != shape:
            what = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else "no such array"
            raise DataError(f"{path} is of other data: {name} is {what}, expected uint8 of shape {shape}; {mend}")
    digits = torch.from_numpy(found["y"].astype(np.int64)).flatten()
    low, high = map(int, digits.aminmax())
    if not 1 <= low <= high <= 10:
        raise DataError(f"{path} is of other data: y holds values from {low} to {high}, expected 1 to 10; {mend}")
    # MATLAB's first axis runs fastest, so the pixels lie there image by image, but every image on its side. They are
    # turned where they lie, a few at a time: a second copy of them all would double the memory.
    images = torch.from_numpy(np.ascontiguousarray(found["X"].T))
    for few in images.split(4096):
        few.copy_(few.mT.clone())
    return images, digits % 10
