"""What the parser does not do: flags given several times, options from a file, settings that a sweep has tuned."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from rich.console import Console

from routing_gym.experiments.engine import settings
from routing_gym.experiments.engine.command import Command, UsageError
from routing_gym.experiments.engine.console import say
from routing_gym.experiments.engine.records import write_text
from routing_gym.options import check_types

TABLE = "_options"  # what the name of an option ends with that is a table in a file
DATA_DIR = "data_dir"  # names a folder, and is text all the same


def parse(command: Any, arguments: Sequence[str], prog: str) -> Any:
    """Make a command of its dataclass and what stands behind its name; `--config FILE` says what is not given there.

    Raises:
        UsageError: The file cannot be read, or holds what the command does not take; or text that is not UTF-8.
        SystemExit: What the parser does not know, or a call for help.
    """
    for argument in arguments:
        try:
            argument.encode()  # as it is written into records and configurations
        except UnicodeEncodeError as error:
            raise UsageError(f"arguments must be UTF-8, got {argument!r}: take another name") from error
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", nargs="?", const="", default=[])
    named, rest = parser.parse_known_args(arguments)
    given, default = gathered(rest, command), {}
    if named.config:
        if len(named.config) > 1 or not named.config[0]:
            raise UsageError("--config takes one file")
        options = _configured(command, Path(named.config[0]))
        for name in [name for name in options if name.endswith(TABLE)]:
            here = given.setdefault(settings.flag_of(name), [settings.flag_of(name)])
            here[1:] = settings.filled_up(here[1:], options.pop(name))
        default = {"default": _made(command, options)}
    return _at_home(tyro.cli(command, args=[*itertools.chain(*given.values())], prog=prog, **default))


def _at_home(command: Any) -> Any:
    """The same command with the user's home in place of `~` in all paths, as shells do it where they see a path."""
    hints, changed = get_type_hints(type(command)), {}
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if dataclasses.is_dataclass(value):
            changed[field.name] = _at_home(value)
        elif field.name == DATA_DIR and value is not None:
            changed[field.name] = str(_expanded(field.name, Path(value))) if value.startswith("~") else value
        elif Path in _kinds(hints[field.name]) and value is not None:
            changed[field.name] = _expanded(field.name, value)
        elif hints[field.name] == tuple[Path, ...]:
            changed[field.name] = tuple(_expanded(field.name, path) for path in value)
    return dataclasses.replace(command, **changed)


def _expanded(name: str, path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UsageError(f"{settings.flag_of(name)} {path}: there is no such user: name the folder itself") from error


def gathered(arguments: Sequence[str], command: Any) -> dict[str, list[str]]:
    """Arguments by flag, one that takes several values with all of them: of `--flag A --flag B` `--flag A B`."""
    several = {
        settings.flag_of(field.name)
        for field, hint in options_of(command)
        if any(get_origin(kind) is tuple for kind in _kinds(hint))
    }
    here: list[str] = []
    parts = {"": here}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if (flag := name.replace("_", "-")) in several:
            here = parts.setdefault(flag, [flag])
            here += [value] if equals else []
        elif argument.startswith("--"):
            here = parts[f"part {len(parts)}"] = [argument]
        else:
            here.append(argument)
    return parts


def options_of(command: Any) -> Iterator[tuple[dataclasses.Field, Any]]:
    """Yield the options of a command's dataclass, and of those in it, with their types."""
    hints = get_type_hints(command)
    for field in dataclasses.fields(command):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from options_of(hints[field.name])
        else:
            yield field, hints[field.name]


def read_config(path: Path) -> dict[str, Any]:
    """Options that `config_text` has written, or somebody by hand; an `OSError` or a `ValueError` where that fails."""
    return settings.from_toml(tomllib.loads(path.read_text(encoding="utf-8-sig")))


def _configured(command: Any, path: Path) -> dict[str, Any]:
    """Options of a command that a file holds, by name, as the command wants them; tables as NAME=VALUE."""
    file, known = f"--config {path}", {field.name: hint for field, hint in options_of(command)}
    try:
        options = read_config(path)
        for name, table in options.items():
            if isinstance(table, dict) and name.endswith(TABLE):
                named = settings.by_agent(table) if name == "agent_options" and "agents" in known else table
                options[name] = [*settings.filled_up((), named)]
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if unknown := sorted(options.keys() - known.keys()):
        has = f"it has {', '.join(sorted(known))}"
        raise UsageError(f"{file}: this command has no option {unknown[0]!r}; {has}")
    try:
        return {name: _checked(file, name, known[name], value) for name, value in options.items()}
    except ValueError as error:
        raise UsageError(str(error)) from error


def _checked(file: str, name: str, hint: Any, value: Any) -> Any:
    kinds = _kinds(hint)
    several = [get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple]
    if several and isinstance(value, list):
        return tuple(_checked(file, name, several[0], part) for part in value)
    listed = [of for kind in kinds if get_origin(kind) is Literal for of in get_args(kind)]
    known = [*listed, *([None] if types.NoneType in kinds else [])]
    if listed and value not in known:
        raise ValueError(f"{file}: {name} must be {' or '.join(map(repr, known))}, got {value!r}")
    if Path in kinds and isinstance(value, str):
        if not value:
            raise ValueError(f"{file}: {name} is empty: name a folder or a file")
        return Path(value)
    check_types(file, {name: hint}, {name: value})
    return value


def _kinds(hint: Any) -> tuple[Any, ...]:
    """What a type is made of: of `X | None` both, of another that one."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


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


SHIPPED = Path(__file__).parent.parent / "tuned"
"""Tuned settings that come with the library."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tunable(Command):
    """A command that can use tuned settings: options of an agent on an environment, in a file each.

    Attributes:
        tuned: Use tuned settings of every agent on the environment, where there are some; options that are given count
            more.
        tuned_dir: Where they are; by default those that come with the library.
    """

    tuned: bool = False
    tuned_dir: Path = SHIPPED

    def settings_of(
        self, training: settings.TrainingSettings, agent: str, agent_options: tuple[str, ...], of: str = ""
    ) -> tuple[settings.TrainingSettings, tuple[str, ...]]:
        """Settings and options of an agent, with what was tuned if it is asked for, or a `UsageError`.

        That is what was tuned for the environment, or for what is named.
        """
        of = of or training.env
        if not self.tuned:
            if self.tuned_dir != SHIPPED:
                raise UsageError(f"--tuned-dir {self.tuned_dir} is for --tuned: give both")
            return training, agent_options
        if not self.tuned_dir.is_dir():
            raise UsageError(f"--tuned-dir {self.tuned_dir} is no folder: a sweep writes one, OUT/tuned")
        path = tuned_path(self.tuned_dir, of, agent)
        if not path.parent.is_dir():
            known = ", ".join(sorted(folder.name for folder in self.tuned_dir.iterdir() if folder.is_dir()))
            raise UsageError(f"--tuned: nothing was tuned for {of} in {self.tuned_dir}, only for: {known or 'nothing'}")
        try:
            found = read_config(path) if path.exists() else {}
            of_env, of_agent = (found.get(name, {}) for name in ("env_options", "agent_options"))
            if not (isinstance(of_env, dict) and isinstance(of_agent, dict)):
                raise ValueError("expected the tables env_options and agent_options")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        training = dataclasses.replace(training, env_options=settings.filled_up(training.env_options, of_env))
        return training, settings.filled_up(agent_options, of_agent)

    def say_untuned(self, env: str, agents: Sequence[str], console: Console) -> None:
        """Say of which agents nothing was tuned on an environment, if that is asked for."""
        lacking = [name for name in agents if self.tuned and not tuned_path(self.tuned_dir, env, name).exists()]
        if lacking:
            say(console, f"--tuned: by their defaults, as nothing was tuned: {', '.join(lacking)}")


def tuned_path(folder: Path, env: str, agent: str) -> Path:
    """File of an agent's settings on an environment; ids of others keep their namespace, with a dash."""
    return folder / env.removeprefix("routing_gym/").replace("/", "-") / f"{settings.folder_name(agent)}.toml"


def write_tuned(folder: Path, env: str, agent: str, of_env: Mapping, of_agent: Mapping, how: str) -> Path:
    """Write the options of an environment and of an agent on it, and in a line how they were found."""
    path = tuned_path(folder, env, agent)
    path.parent.mkdir(parents=True, exist_ok=True)
    how = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in how)  # a comment ends with its line
    write_text(
        path, f"# {how}\n" + settings.config_text({"env_options": dict(of_env), "agent_options": dict(of_agent)})
    )
    return path
