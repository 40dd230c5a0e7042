"""`routing-gym list`: what there is, and every option of it."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro
from rich.console import Console
from rich.table import Table

from routing_gym.agents import AGENTS
from routing_gym.envs import DATASETS, REWARDS, EnvConfig, make_routing_vector_env
from routing_gym.envs.training import OPTIMIZERS
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.plugins import Pluggable
from routing_gym.networks import NETWORKS, NetworkSpec
from routing_gym.registration import ENV_IDS, env_ids

WIDTH_OF_A_FILE = 160
"""Columns of the tables where there is no terminal."""

REGISTRIES: dict[str, Callable[[], Iterable[str]]] = {
    "final_reward": lambda: (name for name, term in REWARDS.items() if term.at == "exit"),
    "rewards": lambda: REWARDS,
    "optimizer": lambda: OPTIMIZERS,
}
"""Options that take names out of a registry."""


@dataclasses.dataclass(frozen=True)
class List(Pluggable):
    """Print the environments, agents and networks there are, or every option of one of them.

    Attributes:
        name: An id, an agent or a network; everything, without options, if left out.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        if not console.is_terminal:
            console.width = WIDTH_OF_A_FILE
        for table in everything() if self.name is None else options_tables(self.name):
            console.print(table)
        return 0


class Option(NamedTuple):
    """What is told of an option; what can be chosen from stands for its type."""

    name: str
    default: str
    type: str
    description: str


def everything() -> list[Table]:
    """Return tables of all environments, agents and networks."""
    environments = _table("environments", "id", "data set", "network", "options")
    for env_id, options in ENV_IDS.items():
        more = ", ".join(f"{name}={value!r}" for name, value in options.items() if name not in ("dataset", "network"))
        environments.add_row(env_id, options["dataset"], options["network"], more)
    agents, networks = _table("agents", "name", "what it is"), _table("networks", "name", "what it is")
    for name, cls in AGENTS.items():
        agents.add_row(name, _docstring(cls).short_description or "")
    for name, spec in NETWORKS.items():
        networks.add_row(name, _in_a_line(spec))
    return [environments, agents, networks]


def options_tables(name: str) -> list[Table]:
    """Return tables of the options of an id, an agent or a network.

    Raises:
        UsageError: There is nothing of this name.
    """
    tables = []
    for owner in owners_of(name):
        spec = isinstance(owner, NetworkSpec)
        title = _in_a_line(owner) if spec else _docstring(owner).short_description or owner.__name__
        tables.append(_table(title, "option", "default", "type", "what it is"))
        for option in options_of(owner, ENV_IDS.get(name, {})):
            tables[-1].add_row(*option)
    return tables


def owners_of(name: str) -> list[Any]:
    """Return the builders and configuration classes that say what can be given to an id, an agent or a network."""
    if name in ENV_IDS:
        data, network = ENV_IDS[name]["dataset"], ENV_IDS[name]["network"]
        return [make_routing_vector_env, DATASETS[data], NETWORKS[network], EnvConfig]
    if name in AGENTS:
        return [AGENTS[name].Config]
    if name in NETWORKS:
        return [NETWORKS[name]]
    raise UsageError(f"unknown name {name!r}; known are {', '.join([*env_ids(), *AGENTS, *NETWORKS])}")


def options_of(owner: Any, chosen: Mapping[str, Any]) -> list[Option]:
    """Return the options of a configuration class, of a builder of data or of a network.

    Args:
        owner: The class, builder or `NetworkSpec`; what a class has from others, they describe.
        chosen: Defaults of an id, which stand before those of the owner.
    """
    if isinstance(owner, NetworkSpec):
        source, hints, parameters = owner.function, owner.hints, owner.options
    else:
        source, hints = owner, get_type_hints(owner)
        parameters = {
            name: parameter
            for name, parameter in inspect.signature(owner).parameters.items()
            if name != "dataset" and (dataclasses.is_dataclass(owner) or parameter.kind is parameter.KEYWORD_ONLY)
        }
    lineage = reversed(source.__mro__) if isinstance(source, type) else [source]
    about = {part.arg_name: part.description or "" for one in lineage for part in _docstring(one).params}
    return [
        Option(
            name,
            repr(chosen.get(name, parameter.default)),
            " or ".join(map(repr, REGISTRIES[name]())) if name in REGISTRIES else _in_words(hints.get(name, Any)),
            " ".join(about.get(name, "").split()),
        )
        for name, parameter in parameters.items()
    ]


def _in_words(hint: Any) -> str:
    """Return a type as a reader would say it: `float or None`, `list of int`; literals as the values they are."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_in_words, parts))
    if parts:
        return f"list of {_in_words(parts[0])}"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _table(title: str, first: str, *others: str) -> Table:
    """Return an empty table in whose first column, the one that is copied from, nothing is left out."""
    table = Table(title=title)
    table.add_column(first, no_wrap=True, overflow="fold")
    for heading in others:
        table.add_column(heading, overflow="fold")
    return table


def _in_a_line(spec: NetworkSpec) -> str:
    """Return what a network is, and where it is from."""
    return f"{spec.description} {spec.source and f'({spec.source})'}".strip()


def _docstring(owner: Any) -> docstring_parser.Docstring:
    """Return the parsed docstring of a class or function."""
    return docstring_parser.parse(owner.__doc__ or "")
