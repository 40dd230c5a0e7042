"""The command `routing-gym`."""

from __future__ import annotations

import dataclasses
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any

import tyro
from rich.console import Console

from routing_gym import __version__
from routing_gym.experiments.bench import Bench
from routing_gym.experiments.compare import Compare
from routing_gym.experiments.deploy import Extract, Prune
from routing_gym.experiments.engine.arguments import gathered, with_config
from routing_gym.experiments.engine.console import Output, one_line, say, threads_in_one_line
from routing_gym.experiments.engine.launchers import RunFailedError
from routing_gym.experiments.engine.machine import keep_freed_memory
from routing_gym.experiments.engine.plugins import Pluggable
from routing_gym.experiments.engine.settings import Command, UsageError
from routing_gym.experiments.engine.stopping import heeding_signals
from routing_gym.experiments.listing import List
from routing_gym.experiments.new_agent import NewAgent
from routing_gym.experiments.report import Report
from routing_gym.experiments.reproduce import Reproduce
from routing_gym.experiments.sweep import Sweep
from routing_gym.experiments.train import Evaluate, Train
from routing_gym.files import WriteError
from routing_gym.tasks import SOURCES, DataError, download


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
            raise UsageError(f"unknown data set {self.name!r}; known are {', '.join(SOURCES)}")
        try:
            say(console, f"{self.name} is in {download(SOURCES[self.name], self.data_dir)}")
        except (DataError, OSError) as error:
            raise UsageError(str(error)) from error
        return 0


COMMANDS: dict[str, Callable[..., Any]] = {
    "compare": Compare,
    "train": Train,
    "sweep": Sweep,
    "report": Report,
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
    """Parse the command line, run the command, return the exit status.

    Returns:
        2 for a wrong option, 1 where something failed, 128 and its number after a signal.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"routing-gym {__version__}")
        return 0
    console = Output()
    command: Command | None = None
    try:
        with heeding_signals():
            command = parsed(arguments)
            keep_freed_memory()
            with nullcontext() if command.debug else threads_in_one_line():
                if isinstance(command, Pluggable):
                    command.load_plugins()
                return command.execute(console)
    except KeyboardInterrupt as stop:
        status = getattr(stop, "status", 128 + signal.SIGINT)
        name = signal.Signals(status - 128).name
        notes = [*getattr(stop, "__notes__", []), *filter(None, [command and command.going_on])]
        return ended("; ".join([f"stopped by {name}", *notes]), status)
    except (UsageError, RunFailedError, WriteError) as error:
        if command is not None and command.debug:
            traceback.print_exc()
        return ended(" ".join(str(error).split()), 2 if isinstance(error, UsageError) else 1)
    except Exception as error:
        if command is not None and command.debug:
            traceback.print_exc()
            return ended(one_line(error), 1)
        return ended(f"{one_line(error)}; --debug shows where", 1)


def parsed(arguments: list[str]) -> Command:
    """Return the command that is asked for, with its options.

    Raises:
        SystemExit: What the parser does not know, or a call for help.
    """
    if "--out=" in arguments or ("--out", "") in zip(arguments, arguments[1:], strict=False):
        raise UsageError("--out is empty: name a folder or a file")
    if arguments and arguments[0] in COMMANDS:
        command = COMMANDS[arguments[0]]
        configured, rest = with_config(command, arguments[1:])
        arguments = [arguments[0], *gathered(rest, command)]
        if configured is not None:
            return tyro.cli(command, args=arguments[1:], default=configured, prog=f"routing-gym {arguments[0]}")
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        args=arguments,
        prog="routing-gym",
        description="Route instances through neural networks: train agents jointly with the blocks, and compare them. "
        "`routing-gym --version` prints the version.",
    )


def ended(reason: str, status: int) -> int:
    """Say in a line why a command ended; return the exit status."""
    print(f"routing-gym: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
