"""The report of runs, as a page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import say
from routing_gym.experiments.engine.plugins import Pluggable
from routing_gym.experiments.engine.report import write_report
from routing_gym.experiments.engine.settings import writable_file


@dataclasses.dataclass(frozen=True)
class Report(Pluggable):
    """Write one page, complete in itself, on the runs in some folders: tables, curves, differences, routing maps.

    Attributes:
        folders: Folders that compare, train or sweep have written, finished or not.
        out: The page; by default report.html in the folder, in the current one where there are several.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    out: Path | None = None

    def execute(self, console: Console) -> int:
        """Run it; return the exit status.

        Raises:
            UsageError: No folder is named, one is not there, or there is no run in any.
        """
        if not self.folders:
            raise UsageError("name at least one folder that compare, train or sweep have written")
        out = self.out or (self.folders[0] / "report.html" if len(self.folders) == 1 else Path("report.html"))
        write_report(self.folders, writable_file(out) if self.folders[0].is_dir() else out)
        say(console, f"Written to {out}")
        return 0
