"""Folders of jpg files: decoded once, then read from one file of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from routing_gym.tasks.files import DataError
from routing_gym.tasks.pixel_cache import cached_pixels


def read_jpegs(paths: Sequence[Path], size: int, mend: str, cache: Path) -> np.ndarray:
    """Pixels `(N, 3, size, size)` uint8 of colour jpg files of that size, kept in `cache` as `cached_pixels` does.

    `mend` says in messages what mends a broken file.

    Raises:
        DataError: A file is not a whole jpg file, of another size or not in colour.
    """
    shape = (len(paths), 3, size, size)

    def decode() -> np.ndarray:
        images = np.empty(shape, np.uint8)
        for image, path in zip(images, paths, strict=True):
            image[:] = _decode_jpeg(path, size, mend)
        return images

    return cached_pixels(cache, paths, mend, shape, decode)


def _decode_jpeg(path: Path, size: int, mend: str) -> np.ndarray:
    """Pixels `(3, size, size)` uint8 of one file."""
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
