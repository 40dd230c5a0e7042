"""Files of decoded pixels, kept beside the files they come from: decoding is done once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from routing_gym.files import WriteError, write_atomically
from routing_gym.tasks.files import DataError


def cached_pixels(
    cache: Path, paths: Sequence[Path], mend: str, shape: tuple[int, ...], decode: Callable[[], np.ndarray]
) -> np.ndarray:
    """Pixels of this shape, uint8: those of `cache` where they are of these very files, else what `decode` returns.

    Decoded pixels are written to `cache` for the next time, if its folder can be written to.

    Args:
        cache: The file of decoded pixels.
        paths: The files they come from.
        mend: What mends a file that cannot be read, for messages.
        shape: The shape of the pixels.
        decode: Decodes the files.

    Raises:
        DataError: A file cannot be read.
    """
    # Taken before decoding: a file that changes meanwhile makes the cache stale, not wrong.
    key = _key(paths, mend)
    pixels = _read_cache(cache, key)
    if pixels is None or pixels.shape != shape or pixels.dtype != np.uint8:
        pixels = decode()
        with contextlib.suppress(WriteError):  # a folder that is full or read-only: the pixels are there all the same
            write_atomically(cache, lambda out: np.savez(out, key=np.array(key), images=pixels))
    return pixels


def _key(paths: Sequence[Path], mend: str) -> str:
    """A text that changes with the files, their order, their sizes and when they were last written."""
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:  # a link to nowhere, say
            raise DataError(f"{path} cannot be read: {error}; {mend}") from error
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read_cache(cache: Path, key: str) -> np.ndarray | None:
    """The array in `cache`, checked against its CRC sum on the way; None where it is missing, damaged or stale."""
    try:
        with np.load(cache, allow_pickle=False) as stored:
            return stored["images"] if str(stored["key"]) == key else None
    except Exception:  # a damaged file fails in many ways, and is written anew after each
        return None
