"""The command `routing-gym`."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import docstring_parser
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from routing_gym.agents import AGENTS, AgentConfig
from routing_gym.envs import DATASETS, EnvConfig, TrainingDivergedError, make_routing_vector_env
from routing_gym.envs.make import NOT_OPTIONS
from routing_gym.experiments.bench import Bench
from routing_gym.experiments.compare import Compare
from routing_gym.experiments.deploy import Extract, Prune
from routing_gym.experiments.machine import keep_freed_memory
from routing_gym.experiments.new_agent import NewAgent
from routing_gym.experiments.plugins import Pluggable
from routing_gym.experiments.reproduce import Reproduce
from routing_gym.experiments.settings import UsageError
from routing_gym.experiments.sweep import Sweep
from routing_gym.experiments.train import Evaluate, Train
from routing_gym.files import WriteError
from routing_gym.networks import NETWORKS
from routing_gym.registration import ENV_IDS, env_ids
from routing_gym.tasks import SOURCES, DataError, download


@dataclasses.dataclass(frozen=True)
class List(Pluggable):
    """Print the environments, agents and networks there are, or every option of one of them.

    Attributes:
        name: An id, an agent or a network; everything, without options, if left out.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        if self.name is None:
            for table in everything():
                console.print(table)
            return 0
        known = [*env_ids(), *AGENTS, *NETWORKS]
        if self.name not in known:
            raise UsageError(f"unknown name {self.name!r}; known are {', '.join(known)}")
        if self.name in env_ids():
            options = ENV_IDS[self.name]
            parts = [make_routing_vector_env, DATASETS[options["dataset"]], NETWORKS[options["network"]]]
            owners: list[Any] = [*parts, EnvConfig]
        else:
            owners = [AGENTS[self.name].Config if self.name in AGENTS else NETWORKS[self.name]]
        chosen = ENV_IDS.get(self.name, {})
        for owner in owners:
            console.print(options_table(owner, chosen))
        return 0


@dataclasses.dataclass(frozen=True)
class Download:
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
            raise UsageError(f"unknown data set {self.name!r}; known are {', '.join(SOURCES)}")
        try:
            console.print(f"{self.name} is in {download(SOURCES[self.name], self.data_dir)}")
        except (DataError, OSError) as error:
            raise UsageError(str(error)) from error
        return 0


def everything() -> list[Table]:
    """Return tables of all environments, agents and networks."""
    environments = Table("id", "data set", "network", "options", title="environments")
    for env_id, options in ENV_IDS.items():
        more = ", ".join(f"{name}={value!r}" for name, value in options.items() if name not in ("dataset", "network"))
        environments.add_row(env_id, options["dataset"], options["network"], escape(more))
    tables = [environments]
    for title, known in (("agents", AGENTS), ("networks", NETWORKS)):
        table = Table("name", "what it is", title=title)
        for name, cls in known.items():
            table.add_row(name, escape(docstring(cls).short_description or ""))
        tables.append(table)
    return tables


def options_table(owner: Any, chosen: Mapping[str, Any]) -> Table:
    """Return the options of a configuration class or of a builder: name, default and what its docstring says.

    Args:
        owner: The class or builder.
        chosen: Defaults of an id, which stand before those of the owner.
    """
    about = {
        part.arg_name: part.description or "" for which in (AgentConfig, owner) for part in docstring(which).params
    }
    table = Table("option", "default", "what it is", title=docstring(owner).short_description or owner.__name__)
    for name, parameter in inspect.signature(owner).parameters.items():
        if name in (NOT_OPTIONS if owner in NETWORKS.values() else {"dataset"}):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY or dataclasses.is_dataclass(owner):
            default = repr(chosen.get(name, parameter.default))
            table.add_row(name, escape(default), escape(" ".join(about.get(name, "").split())))
    return table


def docstring(owner: Any) -> docstring_parser.Docstring:
    """Return the parsed docstring of a class or function."""
    return docstring_parser.parse(owner.__doc__ or "")


WIDTH_OF_A_FILE = 110

COMMANDS: dict[str, Callable[..., Any]] = {
    "compare": Compare,
    "train": Train,
    "sweep": Sweep,
    "reproduce": Reproduce,
    "evaluate": Evaluate,
    "prune": Prune,
    "extract": Extract,
    "list": List,
    "new-agent": NewAgent,
    "bench": Bench,
    "download": Download,
}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the command, return the exit status: 2 for a wrong option, 1 for a failed run."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        args=arguments,
        prog="routing-gym",
        description="Route instances through neural networks: train agents jointly with the blocks, and compare them.",
    )
    keep_freed_memory()
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
    try:
        if isinstance(command, Pluggable):
            command.load_plugins()
        return command.execute(console)
    except UsageError as error:
        print(f"routing-gym: {error}", file=sys.stderr)
        return 2
    except (TrainingDivergedError, WriteError) as error:
        print(f"routing-gym: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
