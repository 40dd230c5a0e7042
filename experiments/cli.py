"""The command `routing-gym`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Annotated, Any

import tyro
from rich.console import Console

from routing_gym import __version__
from routing_gym.envs import TrainingDivergedError
from routing_gym.experiments.bench import Bench
from routing_gym.experiments.compare import Compare
from routing_gym.experiments.deploy import Extract, Prune
from routing_gym.experiments.listing import List
from routing_gym.experiments.machine import keep_freed_memory
from routing_gym.experiments.new_agent import NewAgent
from routing_gym.experiments.plugins import Pluggable
from routing_gym.experiments.reproduce import Reproduce
from routing_gym.experiments.settings import UsageError
from routing_gym.experiments.sweep import Sweep
from routing_gym.experiments.train import Evaluate, Train
from routing_gym.tasks import SOURCES, DataError, download


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
    if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        print(f"routing-gym {__version__}")
        return 0
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        args=arguments,
        prog="routing-gym",
        description="Route instances through neural networks: train agents jointly with the blocks, and compare them. "
        "`routing-gym --version` prints the version.",
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
    except TrainingDivergedError as error:
        print(f"routing-gym: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
