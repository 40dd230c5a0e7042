"""Routes settling, as moving pictures: the routing maps of runs after every epoch (`routing-gym animate`)."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from routing_gym.experiments.engine.command import Command, UsageError
from routing_gym.experiments.engine.console import counted, say
from routing_gym.experiments.engine.figures import routing_map_on
from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import Record, read_arrays, read_run
from routing_gym.experiments.engine.settings import writable_file
from routing_gym.experiments.engine.training import ROUTES
from routing_gym.files import write_atomically

MOST_RUNS, MOST_TASKS = 4, 60
LAST_SECONDS = 3.0
"""How long the end is shown."""
DPI = 90


@dataclasses.dataclass(frozen=True)
class Animate(Command):
    """Draw how routes settle: which block each task takes at each decision after every epoch, runs side by side.

    Attributes:
        folders: Folders of runs, as results/digits/wpl/seed-0.
        out: The GIF to write, ending in .gif.
        fps: Epochs shown per second.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    out: Path = Path("routes.gif")
    fps: float = 5.0

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        if not 1 <= len(self.folders) <= MOST_RUNS:
            raise UsageError(f"animate draws 1 to {MOST_RUNS} runs, got {len(self.folders)} folders")
        if not 0 < self.fps <= 50:  # a GIF's pictures are shown for whole hundredths of a second, two at least
            raise UsageError(f"--fps must lie in (0, 50], got {self.fps}")
        if self.out.suffix.lower() != ".gif":
            raise UsageError(f"--out must end in .gif, the one format animate writes, got {self.out}")
        writable_file(self.out)
        runs = [_run(folder) for folder in self.folders]
        last = max(len(routes) for _, routes in runs)
        pictures = [_picture(runs, at) for at in range(last)]
        stay = [round(1000 / self.fps)] * (last - 1) + [round(1000 * LAST_SECONDS)]
        options: dict[str, Any] = {
            "format": "GIF",
            "save_all": True,
            "append_images": pictures[1:],
            "duration": stay,
            "loop": 0,
        }
        write_atomically(self.out, lambda out: pictures[0].save(out, **options))
        say(console, f"Written to {self.out}: {counted(last, 'epoch')}")
        return 0


def _run(folder: Path) -> tuple[Record, np.ndarray]:
    """Record of a run and its routes `(E, T, N, A)` after every epoch."""
    if not (folder / ROUTES).is_file():
        raise UsageError(f"{folder} is no folder of a run: it has no {ROUTES}, as results/digits/wpl/seed-0 has")
    record = read_run(folder / "results.json")
    log = read_arrays(folder / ROUTES, epoch=1, routes=4)
    routes = log["routes"][log["epoch"] <= record["epochs"]]  # it may be about to become longer
    if not len(routes):
        raise UsageError(f"{folder / ROUTES} has none of the {record['epochs']} epochs of the record: train it anew")
    if routes.shape[1] > MOST_TASKS:
        raise UsageError(f"animate draws at most {MOST_TASKS} tasks, {folder} has {routes.shape[1]}")
    return record, routes


def _picture(runs: list[tuple[Record, np.ndarray]], at: int) -> Image.Image:
    _, tasks, decisions, _ = np.max([routes.shape for _, routes in runs], 0)
    size = (max(3.2, 0.34 * tasks + 1.2), 0.34 * decisions + 0.8)
    figure = Figure(figsize=(size[0], size[1] * len(runs)), layout="constrained")
    for axes, (record, routes) in zip(figure.subplots(len(runs), squeeze=False).flat, runs, strict=True):
        epoch = min(at, len(routes) - 1)
        routing_map_on(axes, routes[epoch])
        found = ACCURACY.curve_of(record)[epoch]
        axes.set_title(f"{record['agent']}, epoch {epoch + 1}: {100 * found:.1f} %", fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png")
    return Image.open(drawn).convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
