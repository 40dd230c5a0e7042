"""What there is, and every option of it (`routing-gym list`); data sets that have to be fetched (`download`)."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro
from rich.console import Console
from rich.table import Table

from routing_gym.agents import AGENTS
from routing_gym.envs import DATASETS, REWARDS, EnvConfig, make_routing_vector_env
from routing_gym.envs.training import OPTIMIZERS
from routing_gym.experiments.engine.command import Command, UsageError
from routing_gym.experiments.engine.console import say
from routing_gym.experiments.engine.plugins import Pluggable
from routing_gym.experiments.suite.problems import PROBLEMS
from routing_gym.networks import NETWORKS, NetworkSpec
from routing_gym.options import unknown_name
from routing_gym.registration import ENV_IDS, env_ids
from routing_gym.tasks import SOURCES, DataError, download

WIDTH_OF_A_FILE = 160
"""Columns of the tables where there is no terminal."""

REGISTRIES: dict[str, Callable[[], Iterable[str]]] = {
    "final_reward": lambda: (name for name, term in REWARDS.items() if term.at == "exit"),
    "rewards": lambda: REWARDS,
    "optimizer": lambda: OPTIMIZERS,
}
"""Options that take names out of a registry."""

Option = namedtuple("Option", "name default type description")
"""What is told of an option, texts; what can be chosen from stands for its type."""


@dataclasses.dataclass(frozen=True)
class List(Pluggable):
    """Print the environments, agents, networks and problems there are, or every option of one of them.

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


def everything() -> list[Table]:
    """Tables of all environments, agents, networks and problems of the suite."""
    environments = []
    for env_id, options in ENV_IDS.items():
        more = ", ".join(f"{name}={value!r}" for name, value in options.items() if name not in ("dataset", "network"))
        environments.append((env_id, options["dataset"], options["network"], more))
    problems = [
        (name, of.ability, of.env, "; ".join(f"{knob}={', '.join(map(str, at))}" for knob, at in of.knobs.items()))
        for name, of in PROBLEMS.items()
    ]
    agents, networks = ([(name, in_a_line(of)) for name, of in parts.items()] for parts in (AGENTS, NETWORKS))
    return [
        _table("environments", ("id", "data set", "network", "options"), environments),
        _table("agents", ("name", "what it is"), agents),
        _table("networks", ("name", "what it is"), networks),
        _table("problems of the suite", ("name", "ability", "id", "easy, default, hard"), problems),
    ]


def options_tables(name: str) -> list[Table]:
    """Tables of the options of an id, an agent or a network."""
    headings, chosen = ("option", "default", "type", "what it is"), ENV_IDS.get(name, {})
    return [_table(in_a_line(owner), headings, options_of(owner, chosen)) for owner in owners_of(name)]


def owners_of(name: str) -> list[Any]:
    """Builders and configuration classes that say what can be given to an id, an agent or a network; refuses others."""
    if name in ENV_IDS:
        data, network = ENV_IDS[name]["dataset"], ENV_IDS[name]["network"]
        return [make_routing_vector_env, DATASETS[data], NETWORKS[network], EnvConfig]
    if name in AGENTS:
        return [AGENTS[name].Config]
    if name in NETWORKS:
        return [NETWORKS[name]]
    raise UsageError(unknown_name("name", name, [*env_ids(), *AGENTS, *NETWORKS]))


def options_of(owner: Any, chosen: Mapping[str, Any]) -> list[Option]:
    """Options of a configuration class, of a builder of data or of a `NetworkSpec`.

    What a class inherits is described where it is from; defaults that an id has `chosen` stand before its own.
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
    """Type as a reader would say it: `float or None`, `list of int`; literals as the values they are."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_in_words, parts))
    if parts:
        return f"list of {_in_words(parts[0])}"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _table(title: str, headings: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    """Table in whose first column, the one that is copied from, nothing is left out."""
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def in_a_line(owner: Any) -> str:
    """What a network is, and where it is from; what anything else is, its name where it does not say."""
    if isinstance(owner, NetworkSpec):
        return f"{owner.description} {owner.source and f'({owner.source})'}".strip()
    return _docstring(owner).short_description or owner.__name__


def _docstring(owner: Any) -> docstring_parser.Docstring:
    return docstring_parser.parse(owner.__doc__ or "")


@dataclasses.dataclass(frozen=True)
class Download(Command):
    """Fetch a data set, checked against its published md5 sums.

    Attributes:
        name: Which data set.
        data_dir: Where to put it; by default what ROUTING_GYM_DATA names, else a folder in the user's cache.
    """

    name: Annotated[str, tyro.conf.Positional]
    data_dir: str | None = None

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        if self.name not in SOURCES:
            raise UsageError(unknown_name("data set", self.name, SOURCES))
        try:
            say(console, f"{self.name} is in {download(SOURCES[self.name], self.data_dir)}")
        except (DataError, OSError) as error:
            raise UsageError(str(error)) from error
        return 0
