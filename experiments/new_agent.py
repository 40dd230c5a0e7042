"""A template for an agent of one's own."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from routing_gym.agents import AGENTS
from routing_gym.experiments.engine.command import Command, UsageError
from routing_gym.experiments.engine.console import say
from routing_gym.experiments.engine.records import write_text
from routing_gym.experiments.engine.settings import writable_file

TEMPLATE = '''\
"""The agent {name!r}: remembers what each choice was worth, and takes the best.

Run it beside others:  routing-gym compare --plugin {file} --agents {name} wpl random-fixed
"""

import dataclasses

import torch

from routing_gym.agents import Agent, AgentConfig, register_agent


@dataclasses.dataclass(frozen=True)
class {cls}Config(AgentConfig):
    """Options, set by --agent-options {name}.rate=0.2.

    Attributes:
        rate: How far a value moves towards what was just earned.
        noise: Random numbers up to this are added to values while learning, so that all choices are tried.
    """

    rate: float = 0.1
    noise: float = 0.03


class {cls}(Agent):
    """Remembers what each choice was worth, for every task at every decision."""

    Config = {cls}Config

    def __init__(self, env, config=None):
        super().__init__(env, config)
        # Buffers and parameters are saved with the agent. The last row is for instances that have left.
        self.register_buffer("value", torch.zeros(self.num_tasks, self.num_decisions + 1, self.num_choices))

    def act(self, observation, context):
        """Choose for a whole batch: observation["task"], ["depth"] are (B,), ["activation"] is (B, D)."""
        value = self.value[observation["task"], observation["depth"]]
        if not context.deterministic:
            noise = torch.rand(value.shape, generator=self.generator, device=value.device)
            value = value + self.config.noise * noise
        return value.masked_fill(~context.mask, -torch.inf).argmax(-1)

    def update(self, trajectory):
        """Learn from a batch of whole episodes; what is returned is logged."""
        for step in trajectory.steps:
            cell = trajectory.task, step.decision, step.action
            self.value[cell] += self.config.rate * (trajectory.final_reward - self.value[cell])
        return {{"value": self.value.mean()}}


register_agent("{name}", {cls})
'''


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
        path = writable_file(self.out or Path(f"{self.name.replace('-', '_')}.py"))
        if path.exists():
            raise UsageError(f"{path} exists already; choose another file with --out")
        cls = "".join(part.capitalize() for part in self.name.split("-"))
        write_text(path, TEMPLATE.format(name=self.name, cls=cls, file=path))
        say(console, f"Written to {path}. Run it: routing-gym compare --plugin {path} --agents {self.name} wpl")
        return 0
