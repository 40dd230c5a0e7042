"""What a measurement was made with."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

import routing_gym


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, `cpu` for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def processor_name() -> str:
    """Return the name of the CPU, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of the source tree, or what is known instead."""
    try:
        place = Path(routing_gym.__file__).parent
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=place, capture_output=True, text=True, check=True
        )
        return found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
