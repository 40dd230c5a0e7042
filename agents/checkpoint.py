"""One file for everything: agent, blocks, optimisers, random states. Written atomically."""

from __future__ import annotations

import dataclasses
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

from routing_gym.agents.base import Agent
from routing_gym.agents.registry import make_agent
from routing_gym.envs import core_of

FORMAT = "routing_gym checkpoint"
VERSION = 1


def save(agent: Agent, path: str | Path) -> None:
    """Write a checkpoint: to a temporary file first, then renamed, so that a killed run leaves no half file."""
    target = Path(path)
    spec = agent.env.spec
    checkpoint = {
        "format": FORMAT,
        "version": VERSION,
        "agent": agent.name,
        "config": dataclasses.asdict(agent.config),
        "episodes": agent.episodes,
        "agent_state": agent.state_dict(),
        "agent_optimizer": None if agent.optimizer is None else agent.optimizer.state_dict(),
        "agent_generator": agent.generator.get_state(),
        "agent_shares": agent._shares.total,
        "agent_extra": agent.extra_state(),
        "env": agent.env.state_dict(),
        # Only names and numbers: enough to make the environment again, where it was made by id.
        "env_id": None if spec is None else spec.id,
        "env_kwargs": {} if spec is None else {k: v for k, v in spec.kwargs.items() if _is_plain(v)},
        "num_envs": agent.env.num_envs,
    }
    write_atomically(target, lambda temporary: torch.save(checkpoint, temporary))


def write_atomically(target: Path, write: Any) -> None:
    """Call `write(path)` with a temporary file beside `target`, then rename it to `target`."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it.

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


def load(path: str | Path, env: Any) -> Agent:
    """Make the agent of a checkpoint for `env` and put the saved blocks into `env`'s network.

    Raises:
        ValueError: Not a checkpoint, or one of another network or agent; nothing is changed then.
    """
    checkpoint = read(path)
    core = core_of(env)
    agent = make_agent(checkpoint["agent"], core, **checkpoint["config"])
    try:
        agent.load_state_dict(checkpoint["agent_state"])
    except RuntimeError as error:
        raise ValueError(f"{path} holds an agent for another environment: {error}") from error
    try:
        core.load_state_dict(checkpoint["env"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if agent.optimizer is not None and checkpoint["agent_optimizer"] is not None:
        agent.optimizer.load_state_dict(checkpoint["agent_optimizer"])
    agent.generator.set_state(checkpoint["agent_generator"])
    agent._shares.total = checkpoint["agent_shares"].to(core.device)
    agent.load_extra_state(checkpoint["agent_extra"])
    agent.episodes = checkpoint["episodes"]
    return agent


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
