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

TOGETHER = "torchrun --nproc-per-node N -m routing_gym.experiments.cli train ..."


def processes() -> int:
    """How many processes train together, by WORLD_SIZE; an empty one counts as not set.

    Raises:
        UsageError: It is no number of processes.
    """
    return _number("WORLD_SIZE", 1) if os.environ.get("WORLD_SIZE") else 1


def _number(name: str, least: int = 0) -> int:
    """An integer that `torchrun` sets; a `UsageError` names the variable if it is none."""
    if (text := os.environ.get(name, "")).isdecimal() and int(text) >= least:
        return int(text)
    raise _not_by_torchrun(name, f"an integer of at least {least}")


def _not_by_torchrun(name: str, expected: str) -> UsageError:
    got = f"got {os.environ[name]!r}" if os.environ.get(name) else "but is not set"
    return UsageError(f"{name} must be {expected}, {got}: start several processes by {TOGETHER}, or unset WORLD_SIZE")


@contextmanager
def joined(folder: Path, console: Console) -> Iterator[Path]:
    """Join the processes that train together, where there are several; yields the folder to write to.

    The first has the folder itself and the console. The others do the same work on a copy of their own, silently, and
    throw it away: so all of them go the same way and meet at every exchange. A `UsageError` names a variable that
    `torchrun` would not have set so.
    """
    if (count := processes()) == 1:
        yield folder
        return
    if _number("RANK") >= count:
        raise _not_by_torchrun("RANK", f"below WORLD_SIZE, {count}")
    _number("MASTER_PORT")
    if not os.environ.get("MASTER_ADDR"):
        raise _not_by_torchrun("MASTER_ADDR", "the name of a machine")
    if torch.cuda.is_available():
        torch.cuda.set_device(_number("LOCAL_RANK"))
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
