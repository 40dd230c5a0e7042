"""Folders of jpg files: decoded once, then read from one file of pixels."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from routing_gym.tasks.files import DataError


def read_jpegs(paths: Sequence[Path], size: int, mend: str, cache: Path) -> np.ndarray:
    """Return the pixels of some colour jpg files, from `cache` where it holds those of these very files.

    Otherwise they are decoded and `cache` is written for the next time, if its folder can be written to.

    Args:
        paths: The files.
        size: Height and width every one of them must have.
        mend: What mends a broken file, for messages.
        cache: The file of decoded pixels.

    Returns:
        `(N, 3, size, size)` uint8, in the order of `paths`.

    Raises:
        DataError: A file is not a whole jpg file, of another size or not in colour.
    """
    # Taken before decoding: a file that changes meanwhile makes the cache stale, not wrong.
    key = _key(paths, mend)
    shape = (len(paths), 3, size, size)
    images = _read_cache(cache, key, shape)
    if images is None:
        images = np.empty(shape, np.uint8)
        for position, path in enumerate(paths):
            images[position] = _decode(path, size, mend)
        _write_cache(cache, key, images)
    return images


def _decode(path: Path, size: int, mend: str) -> np.ndarray:
    """Return the pixels of one file, `(3, size, size)` uint8."""
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            if image.size != (size, size) or image.mode != "RGB":
                width, height = image.size
                raise DataError(
                    f"{path} is {width}x{height} of mode {image.mode}, expected {size}x{size} of mode RGB: {mend}"
                )
            return np.asarray(image).transpose(2, 0, 1)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for broken files
        raise DataError(f"{path} is truncated or not a jpg file: {error}; {mend}") from error


def _key(paths: Sequence[Path], mend: str) -> str:
    """Return a text that changes with the files, their order, their sizes and when they were last written."""
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:  # a link to nowhere, say
            raise DataError(f"{path} cannot be read: {error}; {mend}") from error
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read_cache(cache: Path, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the pixels `cache` holds, or None where it is missing, damaged or of other files."""
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            images = stored["images"]  # checked against its CRC sum on the way
    except Exception:  # a damaged file fails in many ways, and is written anew after each
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _write_cache(cache: Path, key: str, images: np.ndarray) -> None:
    """Write `cache` under a temporary name, then give it its own; leave nothing where that fails."""
    # One name per process: two that decode at once must not write into one file.
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as out:
            np.savez(out, key=np.array(key), images=images)
        os.replace(temporary, cache)
    except OSError:  # a folder that is full or read-only: the pixels are there all the same
        pass
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
