"""What the parser does not do: flags given several times, and options from a file."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.settings import as_text, filled_up, from_toml
from routing_gym.options import check_types


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


def with_config(command: Any, arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """Take `--config FILE` out of arguments.

    Args:
        command: The command's dataclass.
        arguments: What stands behind the name of the command.

    Returns:
        The command with the options of the file, None where none is named; and the other arguments, which count more.

    Raises:
        UsageError: The file cannot be read, or holds what the command does not take.
    """
    rest, files = list(arguments), []
    for number, argument in reversed(list(enumerate(rest))):
        if argument == "--config":
            files += rest[number + 1 : number + 2] or [""]
            del rest[number : number + 2]
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
            del rest[number]
    if not files:
        return None, rest
    if len(files) > 1 or not files[0]:
        raise UsageError("--config takes one file")
    options = _read_config(Path(files[0]))
    known: list[str] = []
    made = _made(command, options, files[0], known)
    if options:
        has = f"it has {', '.join(sorted(known))}"
        raise UsageError(f"--config {files[0]}: this command has no option {sorted(options)[0]!r}; {has}")
    return made, rest


def filled_up_from(configured: Any, command: Any) -> Any:
    """Return a command with options NAME=VALUE of the one it was configured by, those that are not named anew."""
    changes = {}
    for field in dataclasses.fields(command):
        value, before = getattr(command, field.name), getattr(configured, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = filled_up_from(before, value)
        elif field.name.endswith(TABLE):
            changes[field.name] = filled_up(value, before)
    return dataclasses.replace(command, **changes)


TABLE = "_options"
"""What the name of an option ends with that is a table in a file."""


def _read_config(path: Path) -> dict[str, Any]:
    """Options of a command by name, tables of options as texts NAME=VALUE.

    Raises:
        UsageError: The file cannot be read, or is no TOML.
    """
    try:
        options = from_toml(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    for name, value in options.items():
        if isinstance(value, dict) and name.endswith(TABLE):
            options[name] = [f"{option}={as_text(part)}" for option, part in value.items()]
    return options


def _made(command: Any, options: dict[str, Any], file: str, known: list[str]) -> Any:
    """Make a dataclass of options, which are taken out, and say which it has."""
    hints, values = get_type_hints(command), {}
    for field in dataclasses.fields(command):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            values[field.name] = _made(hint, options, file, known)
            continue
        known.append(field.name)
        if field.name in options:
            values[field.name] = _checked(f"--config {file}", field.name, hint, options.pop(field.name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            values[field.name] = tyro.MISSING  # the command line has to say it
    return command(**values)


def _checked(file: str, name: str, hint: Any, value: Any) -> Any:
    """Value of an option as the command wants it.

    Raises:
        UsageError: It is of another type.
    """
    kinds = get_args(hint)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_checked(file, name, kinds[0], part) for part in value)
    if get_origin(hint) is Literal and value not in kinds:
        raise UsageError(f"{file}: {name} must be {' or '.join(map(repr, kinds))}, got {value!r}")
    if Path in (hint, *kinds) and isinstance(value, str):
        if not value:
            raise UsageError(f"{file}: {name} is empty: name a folder or a file")
        return Path(value)
    try:
        check_types(file, {name: hint}, {name: value})
    except ValueError as error:
        raise UsageError(str(error)) from error
    return value
