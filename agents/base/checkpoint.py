"""One file for everything: agent, blocks, optimisers, random states. Written atomically, read without running code.

A checkpoint is what `torch.save` writes, and `torch.load(path, weights_only=True)` reads it. The comment at the end of
that zip archive is the SHA-256 digest of all bytes before it.
"""

from __future__ import annotations

import hashlib
import io
import random
import warnings
from collections import OrderedDict, deque
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from routing_gym.envs import RoutingVectorEnv
from routing_gym.files import write_atomically
from routing_gym.forms import check_form

FORMAT = "routing_gym checkpoint"
VERSION = 5
DIGEST = 64
"""Characters of a digest."""

FORM: dict[str, Any] = {
    "format": str,
    "version": int,
    "agent": str,
    "config": dict,
    "episodes": int,
    "carried": int,
    "agent_state": dict,
    "agent_optimizer": dict | None,
    "agent_generator": (str, Tensor),
    "env": dict,
    "env_id": str | None,
    "env_kwargs": dict,
    "num_envs": int,
    "torch_generator": Tensor,
    "extra": dict,
}
"""Entries of a checkpoint by type; nested states are checked where they are loaded."""


def write(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values, with the state of PyTorch's own random numbers (dropout)."""
    checkpoint = {**content, "format": FORMAT, "version": VERSION, "torch_generator": torch.get_rng_state()}
    check_plain(checkpoint)
    archive = io.BytesIO()
    torch.save(checkpoint, archive)
    # The last two bytes of an archive without a comment are the comment's length.
    sealed = archive.getvalue()[:-2] + DIGEST.to_bytes(2, "little")
    digest = hashlib.sha256(sealed).hexdigest().encode()
    write_atomically(path, lambda out: out.writelines((sealed, digest)))


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        ValueError: Not a checkpoint of routing_gym, one of another version, or a damaged one.
        FileNotFoundError: No such file.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        found = sorted(Path(path).rglob("*.pt"), key=lambda file: (file.name == "best.pt", file))
        there = found[0] if found else "none here"
        raise ValueError(f"{path} is a folder: name a checkpoint in it ({there})") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(content[:-DIGEST]).hexdigest().encode() != content[-DIGEST:]:
        raise ValueError(
            f"{path} is not a checkpoint of routing_gym, or it is damaged, or of a release before format version "
            f"{VERSION}: it does not end with the digest of what it holds"
        )
    try:
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's own message advises to let the file run code
        raise ValueError(f"{path} is not a checkpoint of routing_gym: it holds more than tensors and values") from error
    if not isinstance(checkpoint, dict) or not isinstance(named := checkpoint.get("format"), str) or named != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of routing_gym")
    version = checkpoint.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(f"{path} has format version {version!r}, this release reads {VERSION}")
    try:
        check_form(checkpoint, FORM | {"torch_generator": torch.get_rng_state()}, "checkpoint")
        for option, value in checkpoint["env_kwargs"].items():
            if not isinstance(option, str) or not _is_plain(value):
                raise ValueError(f"checkpoint.env_kwargs.{option}: expected what text can say")
        torch.Generator().set_state(checkpoint["torch_generator"])
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error
    return checkpoint


def origin_of(env: RoutingVectorEnv) -> dict[str, Any]:
    """Id, options and size by which an environment can be made again; no id where text cannot say them."""
    spec = env.spec if env.spec is not None and all(map(_is_plain, env.spec.kwargs.values())) else None
    named = {"env_id": None, "env_kwargs": {}} if spec is None else {"env_id": spec.id, "env_kwargs": dict(spec.kwargs)}
    return {**named, "num_envs": env.batch_size}


def form_of(agent: nn.Module) -> dict[str, Any]:
    """Form of an agent's state; what `get_extra_state` gives may have any, which `set_extra_state` checks."""
    hook = "_extra_state"
    return {key: object if key.rpartition(".")[2] == hook else value for key, value in agent.state_dict().items()}


def check_kept(agent: Any) -> None:
    """Refuse an agent whose checkpoint could not be written, or not be loaded again.

    Raises:
        ValueError: It holds more than tensors and plain values, or a fresh agent does not take what it holds.
    """
    content = agent.content()
    check_plain(content)
    try:
        type(agent)._restored(content, agent.env)
    except Exception as error:  # an agent of one's own may fail as it likes
        raise ValueError(
            f"a checkpoint of agent {agent.name!r} could not be loaded: {error}. Buffers and parameters keep the shape "
            "they begin with; give what grows by get_extra_state, and take it back in set_extra_state"
        ) from error


_TOLD: set[type] = set()
"""Classes that have been warned of, or have learned and lose nothing."""


def warn_of_unsaved(agent: Any, content: dict[str, Any]) -> None:
    """Warn, once per class, of what a loaded agent would go on without.

    These are optimisers and schedulers that no checkpoint holds; and of an agent that has learned whatever else is not
    as it was after loading: tensors that are no buffers, arrays, dictionaries, random generators.
    """
    if (cls := type(agent)) in _TOLD:
        return
    lost = {} if cls.get_extra_state is not nn.Module.get_extra_state else _other_optimizers(agent)  # it may give them
    if agent.episodes > 0:
        _TOLD.add(cls)
        lost |= _changed_by_loading(agent, content)
    if lost:
        _TOLD.add(cls)
        named = ", ".join(f"self.{name} ({type(value).__name__})" for name, value in lost.items())
        warnings.warn(
            f"agent {agent.name!r}: no checkpoint holds the state of {named}, so that a loaded agent goes on without: "
            "make a tensor a buffer (self.register_buffer), call the only optimiser self.optimizer, draw by "
            "self.generator, give anything else by get_extra_state and take it back in set_extra_state; name in the "
            "class's `scratch` what nobody misses",
            stacklevel=3,
        )


def _other_optimizers(agent: Any) -> dict[str, Any]:
    found = {}
    for name, value in vars(agent).items():
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        for part in parts:
            if isinstance(part, Optimizer | LRScheduler) and part is not agent.optimizer:
                found[name] = part
    return found


def _changed_by_loading(agent: Any, content: dict[str, Any]) -> dict[str, Any]:
    """Attributes whose value is another in an agent that is made of a checkpoint's content."""
    python, legacy, own = random.getstate(), np.random.get_state(), {**vars(agent), **agent._buffers}
    known = {*vars(nn.Module()), "env", "config", "optimizer", "generator"}
    known |= {name for cls in type(agent).__mro__ for name in vars(cls).get("scratch", ())}
    known |= {name for name in own if isinstance(getattr(type(agent), name, None), cached_property)}
    with torch.random.fork_rng():
        try:
            loaded = type(agent)._restored(content, agent.env)
            others = {**vars(loaded), **loaded._buffers}
            return {name: held for name, held in own.items() if name not in known and not _same(held, others.get(name))}
        except Exception:  # an agent of one's own may fail as it likes, which `check_kept` tells of, or hold anything
            return {}
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def _same(one: Any, other: Any) -> bool:
    """Whether values are equal, as far as can be told: what is of a type of its own counts as equal."""
    if isinstance(one, Tensor):
        if not (isinstance(other, Tensor) and one.shape == other.shape):
            return False
        one, other = one.detach().cpu(), other.detach().cpu()
        return bool(((one == other) | (one != one) & (other != other)).all())
    if isinstance(one, np.ndarray):
        numbers = one.dtype.kind in "fc"
        return isinstance(other, np.ndarray) and np.array_equal(one, other, equal_nan=numbers)
    if isinstance(one, torch.Generator):
        return isinstance(other, torch.Generator) and one.get_state().equal(other.get_state())
    if isinstance(one, np.random.Generator):
        return isinstance(other, np.random.Generator) and _same(one.bit_generator.state, other.bit_generator.state)
    if isinstance(one, random.Random):
        return isinstance(other, random.Random) and one.getstate() == other.getstate()
    if isinstance(one, dict):
        return isinstance(other, dict) and [*one] == [*other] and all(map(_same, one.values(), other.values()))
    if isinstance(one, list | tuple | deque):
        return isinstance(other, list | tuple | deque) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool | int | float | str | set | None):
        return bool(one == other) or one != one
    return True


def _is_plain(value: Any) -> bool:
    """Whether text can say it: a number, a name, a list of such."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def check_plain(value: Any, where: str = "") -> None:
    """Refuse all that `read` would refuse: anything but tensors and plain values, numpy's numbers too."""
    if type(value) in (dict, OrderedDict):
        for key, part in value.items():
            check_plain(key, f"the key {key!r} of {where}")
            check_plain(part, f"{where}.{key}".removeprefix("."))
    elif type(value) in (list, tuple):
        for number, part in enumerate(value):
            check_plain(part, f"{where}.{number}")
    elif not isinstance(value, Tensor) and type(value) not in (bool, int, float, str, bytes, type(None)):
        raise ValueError(
            f"a checkpoint holds tensors and plain values, which are read without running code; {where} is of type "
            f"{type(value).__module__}.{type(value).__qualname__}"
        )
