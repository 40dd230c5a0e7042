"""Fetching data sets."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro
from rich.console import Console

from routing_gym.experiments.engine.command import Command, UsageError
from routing_gym.experiments.engine.console import say
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
