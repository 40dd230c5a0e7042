"""What a command is, and the errors that end one in a line; imports nothing that takes long."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod

from rich.console import Console


class UsageError(Exception):
    """A wrong option: the message says which, and what would have been right."""


class RunFailedError(Exception):
    """A run that failed, and what is kept of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """A command.

    Attributes:
        debug: Show where in the code an error comes from.
    """

    debug: bool = False

    def prepare(self) -> None:
        """What comes before it is executed."""
        from routing_gym.experiments.engine.machine import keep_freed_memory

        keep_freed_memory()

    @abstractmethod
    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""

    @property
    def going_on(self) -> str:
        """How to go on after it was stopped."""
        return ""
