"""Folders of jpg files: decoded once, then read from one file of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from routing_gym.tasks.files import DataError
from routing_gym.tasks.pixel_cache import files_key, read_cache, write_cache


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
    key = files_key(paths, mend)
    shape = (len(paths), 3, size, size)
    images = read_cache(cache, key, shape)
    if images is None:
        images = np.empty(shape, np.uint8)
        for position, path in enumerate(paths):
            images[position] = _decode(path, size, mend)
        write_cache(cache, key, images)
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
