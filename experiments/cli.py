"""The command `routing-gym`. What a command needs is imported when it is called."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import signal
import sys
import traceback
from contextlib import nullcontext
from typing import Any

from routing_gym import __version__
from routing_gym.experiments.engine.command import Command, RunFailedError, UsageError, heeding_signals
from routing_gym.experiments.engine.console import Output, one_line, say, threads_in_one_line
from routing_gym.files import WriteError
from routing_gym.options import unknown_name

COMMANDS = {
    "compare": ("compare:Compare", "Train several agents on one environment over several seeds and compare them."),
    "train": ("train:Train", "Train one agent and the blocks."),
    "sweep": ("sweep:Sweep", "Train one agent with every combination of some options, rank them on validation."),
    "suite": ("suite.suite:Suite", "Score agents on problems whose best routing is known."),
    "report": ("compare:Report", "Write one page of everything that is in folders of results."),
    "reproduce": ("reproduce:Reproduce", "Run what a paper reports and put our figures beside theirs."),
    "queue": ("queue:Queue", "Show how far the papers' runs are, or work on them."),
    "evaluate": ("train:Evaluate", "Judge a checkpoint: accuracy and cost of the deterministic policy."),
    "prune": ("deploy:Prune", "Keep only the blocks that the tasks' routes take."),
    "extract": ("deploy:Extract", "Write one task's network, or network and agent together, as a program."),
    "list": ("listing:List", "Print the environments, agents and networks there are, or the options of one."),
    "new-agent": ("new_agent:NewAgent", "Write a file with an agent to start from."),
    "animate": ("animate:Animate", "Draw how routes settle while training, as a GIF."),
    "bench": ("bench:Bench", "Measure speed and memory beside the same work without routing."),
    "download": ("listing:Download", "Fetch a data set, checked against its published md5 sums."),
}
"""Class of every command, in its module, and what it does."""

USAGE = """\
usage: routing-gym [-h] [--version] COMMAND ...

Route instances through neural networks: train agents jointly with the blocks, and compare them.

{}

`routing-gym COMMAND --help` lists the options of a command.\
""".format("\n".join(f"  {name:<12}{about}" for name, (_, about) in COMMANDS.items()))


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the command, return the exit status.

    Args:
        arguments: By default those of the process, which is the command's alone then.

    Returns:
        2 for a wrong option, 1 where something failed, 128 and its number after a signal.
    """
    if alone := arguments is None:
        arguments = sys.argv[1:]
    console = Output()
    if arguments == ["--version"]:
        say(console, f"routing-gym {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        if arguments:
            say(console, USAGE)
        else:
            print(USAGE, file=sys.stderr)
        return 0 if arguments else 2
    command: Command | None = None
    try:
        with heeding_signals():
            if alone:
                gc.disable()  # what is imported is no garbage: to look for it takes a quarter of the time
            command = parsed(arguments)
            if alone:
                gc.freeze()
                gc.enable()
                atexit.register(gc.freeze)
            with nullcontext() if command.debug else threads_in_one_line():
                if os.environ.get("WORLD_SIZE"):
                    check_processes(arguments[0])
                command.prepare()
                return command.execute(console)
    except KeyboardInterrupt as stop:
        status = getattr(stop, "status", 128 + signal.SIGINT)
        notes = [*getattr(stop, "__notes__", []), *filter(None, [command and command.going_on])]
        reason = "; ".join([f"stopped by {signal.Signals(status - 128).name}", *notes])
    except Exception as error:
        if command is None and isinstance(error, BrokenPipeError):
            console.on_broken_pipe()  # help is all that was printed, and nobody reads it any more
            return 0
        foreseen = isinstance(error, UsageError | RunFailedError | WriteError)
        status = 2 if isinstance(error, UsageError) else 1
        reason = " ".join(str(error).split()) if foreseen else one_line(error)
        if command is not None and command.debug:
            traceback.print_exc()
        elif not foreseen:
            reason += "; --debug shows where"
    print(f"routing-gym: {reason}", file=sys.stderr)
    return status


def check_processes(name: str) -> None:
    """Refuse a command that does not run in several processes, or variables that do not go together."""
    from routing_gym.experiments.engine.distributed import processes

    if processes() > 1 and name != "train":
        raise UsageError(f"only train runs in several processes (WORLD_SIZE), got {name}")


def command_class(name: str) -> Any:
    """Class of a command, or a `UsageError` if there is none of this name."""
    if name not in COMMANDS:
        raise UsageError(unknown_name("command", name, COMMANDS))
    module, _, cls = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(f"routing_gym.experiments.{module}"), cls)


def parsed(arguments: list[str]) -> Command:
    """Return the command that is asked for, with its options.

    Raises:
        SystemExit: What the parser does not know, or a call for help.
    """
    name, *rest = arguments
    pairs = list(zip(rest, rest[1:], strict=False))
    if "--out=" in rest or ("--out", "") in pairs:
        raise UsageError("--out is empty: name a folder or a file")
    if any(flag == "--workers" and number != "1" for flag, number in pairs):
        from routing_gym.experiments.engine.workers import begin_server

        begin_server()  # before anything that takes long is imported here
    from routing_gym.experiments.engine.arguments import parse

    return parse(command_class(name), rest, f"routing-gym {name}")


if __name__ == "__main__":
    sys.exit(main())
