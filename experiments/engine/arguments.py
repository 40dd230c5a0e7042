"""What the parser does not do: flags given several times, and options from a file."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.settings import TABLE, filled_up, read_config
from routing_gym.options import check_types


def options_of(command: Any) -> Iterator[tuple[dataclasses.Field, Any]]:
    """Yield the options of a command's dataclass, and of those in it, with their types."""
    hints = get_type_hints(command)
    for field in dataclasses.fields(command):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from options_of(hints[field.name])
        else:
            yield field, hints[field.name]


def gathered(arguments: Sequence[str], command: Any) -> list[str]:
    """Return arguments in which a flag that takes several values stands once: `--flag A --flag B` as `--flag A B`.

    Args:
        arguments: What stands behind the name of the command.
        command: Its dataclass.
    """
    several = {f"--{field.name.replace('_', '-')}" for field, hint in options_of(command) if get_origin(hint) is tuple}
    parts: dict[str, list[str]] = {"": []}
    here = parts[""]
    for argument in arguments:
        name, equals, value = argument.partition("=")
        flag = name.replace("_", "-")
        if flag in several:
            here = parts.setdefault(flag, [flag])
            here += [value] if equals else []
        elif argument.startswith("--"):
            here = parts[f"part {len(parts)}"] = [argument]
        else:
            here.append(argument)
    return [*itertools.chain(*parts.values())]


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
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", nargs="?", const="", default=[])
    named, rest = parser.parse_known_args(arguments)
    if not named.config:
        return None, rest
    if len(named.config) > 1 or not named.config[0]:
        raise UsageError("--config takes one file")
    file = f"--config {named.config[0]}"
    try:
        options = read_config(Path(named.config[0]))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    known = {field.name: hint for field, hint in options_of(command)}
    if unknown := sorted(options.keys() - known.keys()):
        has = f"it has {', '.join(sorted(known))}"
        raise UsageError(f"{file}: this command has no option {unknown[0]!r}; {has}")
    return _made(command, {name: _checked(file, name, known[name], value) for name, value in options.items()}), rest


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


def _made(command: Any, options: dict[str, Any]) -> Any:
    """Make a command, and the dataclasses in it, of options; the command line has to say what has no default."""
    hints, values = get_type_hints(command), {}
    for field in dataclasses.fields(command):
        if dataclasses.is_dataclass(hints[field.name]):
            values[field.name] = _made(hints[field.name], options)
        elif field.name in options:
            values[field.name] = options[field.name]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            values[field.name] = tyro.MISSING
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
