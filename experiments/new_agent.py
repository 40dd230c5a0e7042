"""A template for an agent of one's own."""

from __future__ import annotations

import dataclasses
import keyword
import re
import shlex
import string
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from routing_gym.agents import AGENTS
from routing_gym.experiments.engine.command import Command, UsageError
from routing_gym.experiments.engine.console import say
from routing_gym.experiments.engine.records import write_text
from routing_gym.experiments.engine.settings import writable_file


@dataclasses.dataclass(frozen=True)
class NewAgent(Command):
    """Write a file with an agent that runs as it stands, to be changed into your own.

    Attributes:
        name: Name of the agent: lower-case letters, digits and dashes.
        out: The file; NAME.py, with underscores for dashes, if left out. An existing file is not overwritten.
    """

    name: Annotated[str, tyro.conf.Positional]
    out: Path | None = None

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", self.name):
            raise UsageError(f"a name has lower-case letters, digits and single dashes, got {self.name!r}")
        if self.name in AGENTS:
            raise UsageError(f"the name {self.name!r} belongs to an agent already; choose another")
        path = self.out or Path(f"{self.name.replace('-', '_')}.py")
        if path.suffix != ".py":
            raise UsageError(f"--out must name a Python file, which ends with .py, got {path}")
        if writable_file(path).exists():
            raise UsageError(f"{path} exists already; choose another file with --out")
        cls = "".join(part.capitalize() for part in self.name.split("-"))
        cls += "Agent" * keyword.iskeyword(cls)  # None, True and False
        template = string.Template(Path(__file__).with_suffix(".txt").read_text("utf-8"))
        file = shlex.quote(path.as_posix())
        in_docstring = file.replace("\\", "\\\\").replace('"', '\\"')
        write_text(path, template.substitute(name=self.name, cls=cls, file=in_docstring))
        say(console, f"Written to {path}. Run it: routing-gym compare --plugin {file} --agents {self.name} wpl")
        return 0
