"""Flags given several times, of which the parser would take the last alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, get_origin, get_type_hints


def gathered(arguments: Sequence[str], command: Any) -> list[str]:
    """Return arguments in which a flag that takes several values stands once: `--flag A --flag B` as `--flag A B`.

    Args:
        arguments: What stands behind the name of the command.
        command: Its dataclass.
    """
    several = flags_of_many(command)
    of_flag: dict[str, list[str]] = {}
    here: list[str] = []
    parts = [here]
    for argument in arguments:
        name, equals, value = argument.partition("=")
        flag = name.replace("_", "-")
        if flag in several:
            if flag not in of_flag:
                of_flag[flag] = [flag]
                parts.append(of_flag[flag])
            here = of_flag[flag]
            here += [value] if equals else []
        elif argument.startswith("--"):
            here = [argument]
            parts.append(here)
        else:
            here.append(argument)
    return [argument for part in parts for argument in part]


def flags_of_many(command: Any) -> set[str]:
    """Return the flags of a command that take several values."""
    hints = get_type_hints(command)
    flags = set()
    for field in dataclasses.fields(command):
        if dataclasses.is_dataclass(hints[field.name]):
            flags |= flags_of_many(hints[field.name])
        elif get_origin(hints[field.name]) is tuple:
            flags.add(f"--{field.name.replace('_', '-')}")
    return flags
