"""One run in several processes, those that `torchrun` has started."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

from routing_gym.experiments.engine.command import UsageError
from routing_gym.ranks import LONGEST_WAIT


@contextmanager
def joined(folder: Path, console: Console) -> Iterator[Path]:
    """Join the processes that train together, where there are several; yields the folder to write to.

    The first has the folder itself and the console. The others do the same work on a copy of their own, silently, and
    throw it away: so all of them go the same way and meet at every exchange.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield folder
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)
    try:
        with tempfile.TemporaryDirectory() as own:
            if dist.get_rank():
                console.quiet = True
                if folder.is_dir():
                    shutil.copytree(folder, Path(own, "run"), ignore=shutil.ignore_patterns(".*"))
            dist.barrier()  # before the first of them writes
            try:
                yield Path(own, "run") if dist.get_rank() else folder
            except UsageError as error:  # the first says it, too, of the folder that was meant
                if dist.get_rank():
                    raise SystemExit(2) from error
                raise
    finally:
        dist.destroy_process_group()
