"""One file for everything: agent, blocks, optimisers, random states. Written atomically, read without running code."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from routing_gym.envs import RoutingVectorEnv

FORMAT = "routing_gym checkpoint"
VERSION = 2


def write(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values, with the state of PyTorch's own random numbers (dropout)."""
    checkpoint = {**content, "format": FORMAT, "version": VERSION, "torch_generator": torch.get_rng_state()}
    write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))


def write_atomically(target: Path, write: Callable[[str], Any]) -> None:
    """Call `write(path)` with a temporary file beside `target`, then rename it: a killed run leaves no half file."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        ValueError: Not a checkpoint of routing_gym, or a damaged one.
        FileNotFoundError: No such file.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of routing_gym, or it is damaged: {error}") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of routing_gym")
    if checkpoint["version"] != VERSION:
        raise ValueError(f"{path} has format version {checkpoint['version']}, this release reads {VERSION}")
    return checkpoint


def origin_of(env: RoutingVectorEnv) -> dict[str, Any]:
    """Return how an environment was made, so that it can be made again; no id where text cannot say it."""
    kwargs = {} if env.spec is None else dict(env.spec.kwargs)
    plain = all(map(_is_plain, kwargs.values()))
    return {
        "env_id": env.spec.id if env.spec is not None and plain else None,
        "env_kwargs": kwargs if plain else {},
        "num_envs": env.num_envs,
    }


def _is_plain(value: Any) -> bool:
    """Tell what text can say: a number, a name, a list of such."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
