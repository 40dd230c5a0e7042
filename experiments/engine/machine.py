"""The machine commands run on: what a measurement was made with, and how freed memory is dealt with."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
from pathlib import Path

import torch

import routing_gym

M_TRIM_THRESHOLD, M_MMAP_MAX, NEVER = -1, -4, 2**31 - 1
"""Numbers of glibc's options, from its malloc.h."""


def device_name(device: torch.device) -> str:
    """Name of a GPU, `cpu` for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def processor_name() -> str:
    """Name of the CPU, as far as the system tells."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


@functools.cache
def commit() -> str:
    """Commit of the source tree, or what is known instead."""
    place, command = Path(routing_gym.__file__).parent, ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def keep_freed_memory() -> None:
    """Let the process keep the memory it frees for what it asks for next, until `give_back_freed_memory`.

    Pages that come anew at every step have to be zeroed, a third to half of its time (docs/performance.md). Nothing
    happens where there is no glibc, or where variables MALLOC_... say what it shall do.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)


def give_back_freed_memory() -> None:
    """Give back to the system what is kept: pieces of ever new sizes, as groups of rows are, leave gaps in it."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    return ctypes.CDLL(None)
