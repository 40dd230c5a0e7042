"""SVHN, the Street View House Numbers (Netzer et al. 2011): cropped digits, one task of ten classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor

from routing_gym.tasks.augmentation import shift_or_none
from routing_gym.tasks.dataset import MultiTaskDataset
from routing_gym.tasks.files import SVHN, DataError, find, how_to_get
from routing_gym.tasks.splits import build_splits, hold_out

NUM_DIGITS = 10
ROWS = {"train": 73_257, "test": 26_032}


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
    for part, rows in ROWS.items():
        path = find(SVHN, f"{part}_32x32.mat", data_dir)
        images[part], digits[part] = read_svhn(path, rows, f"delete it and {how_to_get(SVHN, data_dir)}")
    members = hold_out("SVHN", digits, held_out)
    return build_splits("SVHN", images, digits, members, num_classes=NUM_DIGITS, augmentation=shift_or_none(shift))


def read_svhn(path: Path, rows: int, mend: str) -> tuple[Tensor, Tensor]:
    """Images `(N, 3, 32, 32)` uint8 and digits `(N,)` int64 of a MATLAB file of SVHN, which has `rows` images.

    The file holds the pixels `X (32, 32, 3, N)`, height first, and the digits `y (N, 1)`, 10 for 0. `mend` says in
    messages what to do about a broken one.

    Raises:
        DataError: Truncated, or of another data set.
    """
    # A damaged file that is not compressed can make `loadmat` end the process. The published ones are compressed, with
    # check sums inside, and `find` has compared their md5 sums before.
    shapes = {"X": (32, 32, 3, rows), "y": (rows, 1)}
    try:
        found = loadmat(path, variable_names=list(shapes))
    except Exception as error:  # a damaged file fails in many ways, depending on where the damage is
        raise DataError(f"{path} is truncated or not a MATLAB file: {error}; {mend}") from error
    for name, shape in shapes.items():
        value = found.get(name)
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.shape != shape:
            what = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else "no such array"
            raise DataError(f"{path} is of other data: {name} is {what}, expected uint8 of shape {shape}; {mend}")
    digits = torch.from_numpy(found["y"].astype(np.int64)).flatten()
    if not 1 <= int(digits.min()) <= int(digits.max()) <= NUM_DIGITS:
        raise DataError(
            f"{path} is of other data: y holds values from {int(digits.min())} to {int(digits.max())}, expected 1 to "
            f"{NUM_DIGITS}; {mend}"
        )
    # MATLAB's first axis runs fastest, so the pixels lie there image by image, but every image on its side. They are
    # turned where they lie, a few at a time: a second copy of them all would double the memory.
    images = torch.from_numpy(np.ascontiguousarray(found["X"].T))
    for few in images.split(4096):
        few.copy_(few.mT.clone())
    return images, digits % NUM_DIGITS
