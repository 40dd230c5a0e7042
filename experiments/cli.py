"""The command `routing-gym`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from routing_gym.agents import AGENTS
from routing_gym.envs import TrainingDivergedError
from routing_gym.experiments.bench import Bench
from routing_gym.experiments.compare import Compare
from routing_gym.experiments.settings import UsageError
from routing_gym.experiments.train import Evaluate, Train
from routing_gym.networks import NETWORKS
from routing_gym.registration import ENV_IDS, env_ids


@dataclasses.dataclass(frozen=True)
class List:
    """Print the environments, agents and networks there are."""

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        table = Table(title="environments")
        table.add_column("id")
        table.add_column("data set")
        table.add_column("network")
        for env_id, options in zip(env_ids(), ENV_IDS.values(), strict=True):
            table.add_row(env_id, options["dataset"], options["network"])
        console.print(table)
        table = Table(title="agents")
        table.add_column("name")
        table.add_column("what it is")
        table.add_column("options")
        for name, cls in AGENTS.items():
            summary = (cls.__doc__ or "").strip().splitlines()[0]
            table.add_row(name, escape(summary), ", ".join(field.name for field in dataclasses.fields(cls.Config)))
        console.print(table)
        console.print(f"networks: {', '.join(NETWORKS)}")
        return 0


WIDTH_OF_A_FILE = 110

COMMANDS: dict[str, Callable[..., Any]] = {
    "compare": Compare,
    "train": Train,
    "evaluate": Evaluate,
    "list": List,
    "bench": Bench,
}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the command, return the exit status: 2 for a wrong option, 1 for a failed run."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        args=arguments,
        prog="routing-gym",
        description="Route instances through neural networks: train agents jointly with the blocks, and compare them.",
    )
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
    try:
        return command.execute(console)
    except UsageError as error:
        print(f"routing-gym: {error}", file=sys.stderr)
        return 2
    except TrainingDivergedError as error:
        print(f"routing-gym: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
