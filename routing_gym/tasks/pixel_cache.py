"""Files of decoded pixels, kept beside the files they come from: decoding is done once."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from routing_gym.tasks.files import DataError


def files_key(paths: Sequence[Path], mend: str) -> str:
    """Return a text that changes with the files, their order, their sizes and when they were last written."""
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:  # a link to nowhere, say
            raise DataError(f"{path} cannot be read: {error}; {mend}") from error
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_cache(cache: Path, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the pixels `cache` holds, or None where it is missing, damaged or of other files."""
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            images = stored["images"]  # checked against its CRC sum on the way
    except Exception:  # a damaged file fails in many ways, and is written anew after each
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def write_cache(cache: Path, key: str, images: np.ndarray) -> None:
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
