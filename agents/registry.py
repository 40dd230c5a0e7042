"""Agents by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from routing_gym.agents.base import Agent

AGENTS: dict[str, type[Agent]] = {}


def register_agent(name: str, cls: type[Agent]) -> None:
    """Make an agent known under a name, to `make_agent` and to every command.

    Raises:
        ValueError: The name belongs to another class, or `cls` is not an agent.
    """
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise ValueError(f"an agent is a subclass of routing_gym.agents.Agent, got {cls!r}")
    known = AGENTS.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"the name {name!r} belongs to {known.__module__}.{known.__qualname__} already")
    AGENTS[name] = cls
    cls.name = name


def agent_class(name: str) -> type[Agent]:
    """Return the class registered under a name."""
    if name not in AGENTS:
        raise ValueError(f"unknown agent {name!r}; known are {', '.join(sorted(AGENTS))}")
    return AGENTS[name]


def make_agent(name: str, env: Any, **config: Any) -> Agent:
    """Make an agent for an environment.

    Args:
        name: One of `AGENTS`.
        env: An environment of routing_gym, or a face of one.
        config: Options of the agent, the fields of its `Config`.

    Raises:
        ValueError: An unknown name or option, a refused value, or an environment the agent cannot route.
    """
    cls = agent_class(name)
    known = {field.name for field in dataclasses.fields(cls.Config)}
    if unknown := sorted(set(config) - known):
        raise ValueError(f"agent {name!r} has no option {unknown[0]!r}; it takes {', '.join(sorted(known))}")
    return cls(env, cls.Config(**config))
