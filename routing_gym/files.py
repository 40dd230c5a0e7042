"""Files that are written whole or not at all, whatever becomes of the writer."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where a file that somebody has open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

PART = ".routing_gym"
"""What the name of a file ends with while it is written: `.results.json.1f2e3d4c.routing_gym`."""


class WriteError(OSError):
    """A file could not be written; what was there before is there still, whole."""


def write_atomically(target: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file beside its place, then put it there in one step: a run that is killed leaves no half file.

    It is locked while it is written. A lock ends with its process, so what a killed writer has left is told from what
    somebody is writing now, in another container too, where process numbers mean nothing; what was left is removed.
    `write` is called with the open binary file, which gets the mode the umask says. Where there is no space, no such
    folder or no permission, a `WriteError` names the file.
    """
    target = Path(os.path.realpath(target))  # a link goes on pointing there
    try:
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if os.path.exists(target) and not os.path.isfile(target):
            raise OSError(errno.EINVAL, "it is no regular file")
        clear_orphans(target.parent, target.name)
        with contextlib.ExitStack() as held:
            part, out = _begin(target)
            held.callback(part.unlink, missing_ok=True)
            if fcntl is not None:
                # The lock stays when the file is closed, which is when a network file system says that it is full.
                held.callback(os.close, os.dup(out.fileno()))
            with out:
                write(out)
            os.replace(part, target)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and not os.path.exists(target.parent)
        what = f"there is no folder {target.parent}" if missing else error.strerror or str(error)
        kept = "; what was there before is whole" if os.path.isfile(target) else ""
        raise WriteError(f"{target} was not written: {what}{kept}") from error


def clear_orphans(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers have left in a folder: of the file of a name, of all files by default."""
    for part in folder.glob(f".{'*' if name is None else glob.escape(name)}.????????{PART}"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:  # taken, gone, or not ours to remove
            if fcntl is not None:
                fcntl.flock(held.enter_context(open(part, "r+b")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def _begin(target: Path) -> tuple[Path, BinaryIO]:
    """Make a locked file beside a target."""
    while True:
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PART}")
        out = open(part, "xb")
        if fcntl is None:
            return part, out
        with contextlib.suppress(OSError):  # a file system without locks: nobody removes anything there
            fcntl.flock(out, fcntl.LOCK_EX)
        if part.exists():  # else it was taken for an orphan between being made and being locked
            return part, out
        out.close()
