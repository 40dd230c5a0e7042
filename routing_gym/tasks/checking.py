"""Taking in numbers and tensors from users: what may be one is made one, all else is a `ValueError`."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def to_tensor(where: str, given: Any) -> Tensor:
    """Numbers as a tensor, NumPy arrays without a copy where that can be done; `where` is what messages call them."""
    if isinstance(given, Tensor):
        return given
    if isinstance(given, np.ma.MaskedArray) and np.ma.getmaskarray(given).any():
        raise ValueError(f"{where} must be numbers, got a masked array: fill it, or leave its masked values out")
    try:
        array = np.asarray(given)
    except ValueError:
        array = np.asarray(None)
    array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))  # as files may have it
    if array.dtype.kind not in "biuf":
        kind = f"an array of {array.dtype}" if isinstance(given, np.ndarray) else f"{given!r:.60}"
        raise ValueError(f"{where} must be a tensor, a NumPy array or lists of numbers of one length, got {kind}")
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    elif array.dtype.kind == "f":
        array = array.astype(np.float64)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def image_tensor(where: str, given: Any) -> Tensor:
    """Images `(N, C, H, W)`, bytes as uint8 and features, which are finite, as float32."""
    images = to_tensor(where, given)
    listed = isinstance(given, list | tuple) and images.dtype == torch.int64  # lists do not say how wide they are
    if listed and images.numel() and 0 <= int(images.min()) <= int(images.max()) < 256:
        images = images.to(torch.uint8)
    if images.ndim != 4 or not images.numel() or not (images.dtype == torch.uint8 or images.is_floating_point()):
        mend = {
            2: ": give features of shape (N, F) as features[:, None, None]",
            3: ": give (N, H, W) as images[:, None]",
        }
        raise ValueError(
            f"{where} must be uint8 (0 to 255) or floating point, of shape (N, C, H, W) and not empty, got "
            f"{getattr(given, 'dtype', images.dtype)} of shape {tuple(images.shape)}{mend.get(images.ndim, '')}"
        )
    if images.is_floating_point():
        images = images.detach().float()
        if not bool(images.isfinite().all()):
            raise ValueError(f"{where} must be finite, got values that are not")
    return images


def integer_tensor(where: str, given: Any) -> Tensor:
    """Integers `(R,)` as int64."""
    numbers = to_tensor(where, given)
    if numbers.ndim != 1 or numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise ValueError(f"{where} must be integers of shape (R,), got {numbers.dtype} of shape {tuple(numbers.shape)}")
    return numbers.to(torch.int64)


def whole_number(option: str, given: Any, least: int | None = 1, most: int | None = None) -> int:
    """An integer, NumPy's too, as a plain one; all else is refused, and what is below `least` or above `most`."""
    try:
        value = None if isinstance(given, bool) else operator.index(given)
    except TypeError:
        value = None
    if value is None or (least is not None and value < least) or (most is not None and value > most):
        limit = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
        raise ValueError(f"{option} must be an integer{limit}, got {given!r}")
    return value


def check_counts(owner: str = "", /, **options: Any) -> None:
    """Refuse options that are no integers of at least 1; the owner's name stands before theirs in messages."""
    for option, value in options.items():
        whole_number(owner + option, value)


def check_number(option: str, value: float, low: float, high: float, below: bool = False) -> None:
    """Refuse all but numbers from `low` to `high`, which itself is refused where values lie `below` it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or below * value == high:
        raise ValueError(f"{option} must lie in [{low}, {high}{')' if below else ']'}, got {value!r}")


def check_choice(option: str, value: Any, *known: str) -> None:
    """Refuse an option that is none of the known ones."""
    if value not in known:
        raise ValueError(f"{option} must be {' or '.join(map(repr, known))}, got {value!r}")


def seed_number(option: str, given: Any) -> int:
    """A seed as a plain integer: any that PyTorch's generators take, all else is refused."""
    seed = whole_number(option, given, least=None)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"{option} must lie in [-2**63, 2**64), got {given!r}")
    return seed


def seeded(owner: str, data_seed: Any, **counts: Any) -> torch.Generator:
    """Generator of data, whose name stands before the options' in messages; their counts are integers of at least 1."""
    check_counts(f"{owner}: ", **counts)
    return torch.Generator().manual_seed(seed_number(f"{owner}: data_seed", data_seed))


def shape_of_row(option: str, given: Sequence[int]) -> tuple[int, ...]:
    """Shape of one row's numbers as plain integers; what is not integers of at least 1 is refused."""
    try:
        return tuple(whole_number(option, size) for size in given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{option} must be integers of at least 1, one for each axis, got {given!r}") from error


def image_shape(given: Sequence[int]) -> tuple[int, ...]:
    """Shape `(C, H, W)` of an image as plain integers; what is not three of at least 1 is refused."""
    try:
        channels, height, width = shape_of_row("input_shape", given)
    except ValueError as error:
        raise ValueError(f"expected input_shape=(C, H, W), three integers of at least 1, got {given!r}") from error
    return channels, height, width


def rows_of_tasks(where: str, labels: Mapping[Any, ArrayLike], images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image, task and label of every row, `(R,)` each, from labels `(N,)` by task."""
    parts = []
    for number, (task, given) in enumerate(labels.items()):
        label = to_tensor(f"{where}: labels of {task!r}", given)
        label = integer_tensor(f"{where}: labels of {task!r}", label.long() if label.dtype == torch.bool else label)
        if len(label) != images:
            raise ValueError(f"{where}: labels of {task!r} must be one for each of {images} images, got {len(label)}")
        rows = (label != -1).nonzero().flatten()
        parts.append((rows, torch.full_like(rows, number), label[rows]))
    if not parts:
        raise ValueError(f"{where}: labels must be of at least one task, got none")
    image, task_of, label_of = (torch.cat(column) for column in zip(*parts, strict=True))
    return image, task_of, label_of
