"""Agents by name."""

from __future__ import annotations

import dataclasses
import inspect
import re
import warnings
from importlib.metadata import entry_points
from typing import Any

from routing_gym.agents.base.agent import AGENTS, Agent, AgentConfig
from routing_gym.blocks import construction
from routing_gym.networks import claim
from routing_gym.options import check_types, nearest, type_hints, unknown_name


def register_agent(name: str, cls: type[Agent]) -> None:
    """Make an agent known under a name, to `make_agent` and to every command.

    Raises:
        ValueError: The name belongs to another class or is none that a folder can have, or `cls` is not an agent.
    """
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w.:-]*", name, re.ASCII)):
        raise ValueError(
            f"the name of an agent is made of letters, digits and -_.:, a letter or digit first, got {name!r}"
        )
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise ValueError(f"an agent is a subclass of routing_gym.agents.Agent, got {cls!r}")
    if not (dataclasses.is_dataclass(cls.Config) and issubclass(cls.Config, AgentConfig)):
        raise ValueError(f"{cls.__name__}.Config must be a dataclass derived from AgentConfig, got {cls.Config!r}")
    try:
        inspect.signature(cls.__init__).bind(None, None, None)
    except TypeError as error:
        raise ValueError(
            f"{cls.__name__}.__init__ must take (self, env, config=None), and hand both on: {error}"
        ) from error
    claim(AGENTS, "agent", name, cls)
    if "name" not in vars(cls):
        cls.name = name  # of agents made without make_agent


def load_installed_agents() -> None:
    """Register the agents of installed packages' entry points, `name = "package.module:Class"`; known names stay.

    One that cannot be loaded is told of by a warning, once, and refused when it is asked for by name: others go on.
    """
    for entry in entry_points(group="routing_gym.agents"):
        if entry.name in AGENTS or (entry.name, entry.value) in _BROKEN:
            continue
        try:
            register_agent(entry.name, entry.load())
        except (Exception, SystemExit) as error:  # whatever the package does when it is imported
            owner = "a package" if entry.dist is None else f"the package {entry.dist.name}"
            told = f"agent {entry.name!r} of {owner} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}"
            _BROKEN[entry.name, entry.value] = told, error
            warnings.warn(f"{told}; mend or remove that package to be rid of this", stacklevel=2)


_BROKEN: dict[tuple[str, str], tuple[str, BaseException]] = {}
"""Entry points that could not be loaded, name and value: what is said of each, and the cause."""


def agent_class(name: str) -> type[Agent]:
    """Class registered under a name."""
    if name not in AGENTS:
        load_installed_agents()
    if name not in AGENTS:
        for told, error in (broken for (wanted, _), broken in _BROKEN.items() if wanted == name):
            raise ValueError(told) from error
        raise ValueError(unknown_name("agent", name, sorted(AGENTS)))
    return AGENTS[name]


def needs(name: str) -> dict[str, Any]:
    """Options an environment must be made with for an agent: `gymnasium.make_vec(id, **needs(name))`."""
    cls = agent_class(name)
    return {"autoreset_mode": "disabled", "action_type": cls.action_type, **cls.env_kwargs}


@construction()
def make_agent(name: str, env: Any, **config: Any) -> Agent:
    """Agent for an environment of routing_gym, or a face of one, by name; options are the fields of its `Config`.

    Raises:
        ValueError: An unknown name or option, a refused value, or an environment the agent cannot route.
    """
    cls = agent_class(name)
    known = {field.name for field in dataclasses.fields(cls.Config)}
    for option in sorted(set(config) - known):
        near, takes = nearest(option, sorted(known)), ", ".join(sorted(known))
        raise ValueError(f"agent {name!r} has no option {option!r}{near}; it takes {takes}")
    check_types(f"agent {name!r}", type_hints(cls.Config), config)
    abstract: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    if abstract:
        raise ValueError(f"agent {name!r} ({cls.__module__}.{cls.__qualname__}) lacks {', '.join(sorted(abstract))}")
    agent = cls.__new__(cls)  # to be looked at where making it fails
    try:
        cls.__init__(agent, env, cls.Config(**config))
        agent.to(agent.env.device)
    except AttributeError as error:
        if "carried" in vars(agent):  # which Agent.__init__ sets: the error is another
            raise
        raise ValueError(
            f"agent {name!r} ({cls.__module__}.{cls.__qualname__}): call super().__init__(env, config) first in its "
            f"__init__, before anything is set or looked at: {error}"
        ) from error
    agent.name = name
    return agent
