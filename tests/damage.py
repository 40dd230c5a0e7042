"""Damaged files: checkpoints that are sealed again after a change, written by hand from what the format says."""

import copy
import hashlib
import io
from collections.abc import Mapping

import torch


def sealed(content):
    """The bytes of a checkpoint: a zip archive whose comment is the SHA-256 digest of all before it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getvalue()
    assert archive[-22:-18] == b"PK\5\6" and archive[-2:] == b"\0\0"  # an end of archive without a comment
    archive = archive[:-2] + b"\x40\0"
    return archive + hashlib.sha256(archive).hexdigest().encode()


def reseal(path, change):
    """Change what a checkpoint holds, and write it as if nothing had happened."""
    content = torch.load(path, weights_only=True)
    change(content)
    path.write_bytes(sealed(content))


def places(content, at=()):
    """Yield every place in nested dictionaries and lists, as the keys that lead there."""
    parts = content.items() if isinstance(content, Mapping) else enumerate(content)
    for key, value in parts:
        yield (*at, key)
        if isinstance(value, Mapping | list | tuple):
            yield from places(value, (*at, key))


def changed(content, place, change):
    """Return a copy in which `change(container, key)` has been called for a place; tuples become lists on the way."""
    content = copy.deepcopy(content)
    inside = content
    for key in place[:-1]:
        if isinstance(inside[key], tuple):
            inside[key] = list(inside[key])
        inside = inside[key]
    change(inside, place[-1])
    return content


def same(one, other):
    """Tell whether two states are equal bit for bit."""
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    return one == other
