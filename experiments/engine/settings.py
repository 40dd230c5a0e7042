"""What every command needs to know about a run, and checking it before anything is computed."""

from __future__ import annotations

import ast
import collections
import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import tomli_w
import torch

from routing_gym.agents import AGENTS, Agent, agent_class, make_agent, needs
from routing_gym.envs import RoutingVectorEnv, core_of
from routing_gym.envs.make import default_options, planted_depth
from routing_gym.experiments.engine.callbacks import check_callbacks
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.folders import LEARNED, OF_A_RUN
from routing_gym.options import unknown_name
from routing_gym.ranks import Ranks
from routing_gym.registration import ENV_IDS, env_ids
from routing_gym.tasks.checking import seed_number

DEFAULT_ENV = "routing_gym/DigitsMTL-v0"
MOST_THREADS = 1024
MOST_SEEDS = 10_000
RESERVED = {"num_envs", "seed", "split", "train", "autoreset_mode", "action_type", "device", "dataset", "render_mode",
            "distributed"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How agent and blocks are trained.

    Attributes:
        env: Id of the environment; `routing-gym list` prints them.
        epochs: Passes over the training split, each rounded up to whole batches; after each it is judged and saved.
        batch_size: Instances routed and trained on together.
        env_options: Options of the environment as NAME=VALUE, e.g. num_blocks=5 rho=0.3 learning_rate=0.002.
        data_dir: Where downloaded data lies; by default what ROUTING_GYM_DATA names, else a folder in the user's cache.
        device: "auto" takes CUDA where present.
        threads: CPU threads of a run, whatever runs beside it.
        patience: Stop after so many epochs without a higher validation accuracy, and judge the best epoch.
        callbacks: What is told of every epoch: tensorboard, csv, wandb, trackio, mlflow, or one that a plug-in
            registers (`register_callback`).
        epoch_passes: Passes that make an epoch: of small data many, so that judging does not take longer than training.
    """

    env: str = DEFAULT_ENV
    epochs: int = 20
    batch_size: int = 256
    env_options: tuple[str, ...] = ()
    data_dir: str | None = None
    device: str = "auto"
    threads: int = 1
    patience: int | None = None
    callbacks: tuple[str, ...] = ("tensorboard",)
    epoch_passes: int = 1

    def check(self) -> None:
        """Refuse what cannot be run, by a `UsageError` that names the option and what it takes."""
        if self.env not in env_ids():
            own = (
                "" if self.env.startswith("routing_gym/") else "; the file that registers one of yours goes to --plugin"
            )
            raise UsageError(unknown_name("environment", self.env, env_ids()) + own)
        for option in ("epochs", "batch_size", "threads", "patience", "epoch_passes"):
            if (value := getattr(self, option)) is not None:
                at_least_one(option, value, MOST_THREADS if option == "threads" else None)
        each_once("env_options", self.env_options)
        each_once("callbacks", self.callbacks)
        check_callbacks(self.callbacks)

    def decided_by(self, agent: str) -> dict[str, Any]:
        """Options of the environment that an agent decides, by name: those it needs, unless they are given."""
        options, given = needs(agent), parse_options("env_options", self.env_options)
        if options["autoreset_mode"] == "same_step":
            # The blocks take a step on as many instances as with agents that are given whole batches.
            options["replay_batch"] = self.batch_size
        return {name: value for name, value in options.items() if name not in given}

    def make_env(self, agent: str, seed: int) -> RoutingVectorEnv:
        """Make the environment an agent needs; a `UsageError` says which option is refused."""
        given = parse_options("env_options", self.env_options)
        if taken := sorted(RESERVED & set(given)):
            raise UsageError(f"{taken[0]!r} of an environment cannot be set: the command does, so that agents compare")
        options = {**self.decided_by(agent), "device": self.device, "seed": seed, **given}
        if self.data_dir is not None and "data_dir" in default_options(ENV_IDS[self.env]["dataset"], ""):
            options["data_dir"] = str(Path(self.data_dir).absolute())
        ranks = Ranks.here()
        if self.batch_size % ranks.count:
            raise UsageError(f"--batch-size must be a multiple of {ranks.count}, the processes, got {self.batch_size}")
        options |= {"distributed": True} if ranks.count > 1 else {}
        torch.set_num_threads(self.threads)
        try:
            torch.manual_seed(seed_number("the seed", seed))  # for what draws from PyTorch's own generator: dropout
            return core_of(gymnasium.make_vec(self.env, num_envs=self.batch_size // ranks.count, **options))
        except (ValueError, TypeError) as error:
            for option, value in agent_class(agent).env_kwargs.items():
                if f"unexpected keyword argument {option!r}" in str(error):
                    lacks = f"an option that {self.env} does not have: leave the agent out"
                    needed = f"agent {agent!r} needs an environment made with {option}={value!r}"
                    raise UsageError(f"{needed}, {lacks}") from error
            raise UsageError(str(error)) from error


def resolved_env_options(env: str, given: tuple[str, ...]) -> dict[str, Any]:
    """Every option of an environment that a command may set, by name: as given, else of the id, else the default."""
    options = {**ENV_IDS[env], **parse_options("env_options", given)}
    return default_env_options(env, options) | {name: of for name, of in options.items() if name != "dataset"}


def default_env_options(env: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the options of an environment that a command may set, some of which are given."""
    network = options.get("network", ENV_IDS[env]["network"])
    dataset = ENV_IDS[env]["dataset"]
    defaults = default_options(dataset, network if isinstance(network, str) else "")
    if "layers" in defaults and (depth := planted_depth(dataset, options)) is not None:
        defaults["layers"] = depth
    return {name: default for name, default in defaults.items() if name not in (*RESERVED, "data_dir")}


def resolved_agent_options(agent: str, given: tuple[str, ...]) -> dict[str, Any]:
    """Every option of an agent but its seed, by name: as given, else the default."""
    defaults = dataclasses.asdict(agent_class(agent).Config())
    return {name: value for name, value in defaults.items() if name != "seed"} | parse_options("agent_options", given)


def build_agent(name: str, env: RoutingVectorEnv, seed: int, options: tuple[str, ...]) -> Agent:
    """Make an agent with options given as NAME=VALUE; a `UsageError` says what is refused."""
    given = parse_options("agent_options", options)
    if "seed" in given:
        raise UsageError("'seed' of an agent cannot be set: the command does, --seeds or --seed")
    try:
        return make_agent(name, env, seed=seed, **given)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def flag_of(option: str) -> str:
    """Flag of an option."""
    return f"--{option.replace('_', '-')}"


def at_least_one(option: str, value: int, most: int | None = None) -> None:
    """Refuse a count below 1, or beyond what makes sense."""
    if value < 1:
        raise UsageError(f"{flag_of(option)} must be at least 1, got {value}")
    if most is not None and value > most:
        raise UsageError(f"{flag_of(option)} must be at most {most}, got {value}")


def check_agents(names: tuple[str, ...]) -> None:
    """Refuse unknown, missing and repeated agents."""
    if not names:
        raise UsageError(f"--agents needs at least one of {', '.join(sorted(AGENTS))}")
    folders = {folder_name(name): name for name in names}
    for name in names:
        try:
            agent_class(name)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if (twin := folders[folder_name(name)]) != name:
            raise UsageError(f"agents {name!r} and {twin!r} would share a folder: compare them one by one")
    each_once("agents", names)


LONGEST = 240
"""Bytes of a folder's name."""


def folder_name(label: str) -> str:
    """Name of a folder: `sb3-PPO` for `sb3:PPO`, because not every file system takes a colon.

    The end of a very long one, which file systems refuse, is a digest.
    """
    name = label.replace(":", "-").replace("/", "%2F").replace("\\", "%5C")
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return name if len(name.encode()) <= LONGEST else f"{name[: LONGEST // 4]}…{digest}"


def known_names(option: str, given: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """Return what was given, everything if nothing was; refuse the unknown."""
    for name in given:
        if name not in known:
            raise UsageError(f"--{option}: {unknown_name('name', name, known)}")
    each_once(option, given)
    return given or known


def repeated(names: Iterable[str]) -> str | None:
    """The first name that is there twice."""
    return next((name for name, count in collections.Counter(names).items() if count > 1), None)


def each_once(option: str, given: Iterable[str]) -> None:
    """Refuse a name, or NAME=VALUE, twice for one name: which of them should count?"""
    if twice := repeated(item.partition("=")[0] for item in given):
        raise UsageError(f"{flag_of(option)} names {twice!r} twice")


WORDS = {"true": True, "false": False, "none": None, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def parse_options(option: str, given: tuple[str, ...]) -> dict[str, Any]:
    """Turn `("rho=0.3", "network=mlp")` into a dictionary; values are Python literals, else text."""
    parsed: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag_of(option)} takes NAME=VALUE, got {item!r}")
        parsed[name] = parsed_value(text)
    return parsed


def parsed_value(text: str) -> Any:
    """Value of NAME=VALUE: a Python literal, a word for one, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two of brackets in brackets
        return WORDS.get(text.lower(), text)


def options_of_agents(agents: tuple[str, ...], given: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Sort AGENT.NAME=VALUE by agent, as NAME=VALUE; names of agents may have dots themselves."""
    options: dict[str, tuple[str, ...]] = dict.fromkeys(agents, ())
    for item in given:
        found = [name for name in agents if item.partition("=")[0].startswith(f"{name}.")]
        if not found:
            known = " ".join(agents)
            raise UsageError(f"--agent-options takes AGENT.NAME=VALUE, the agent one of {known}, got {item!r}")
        name = max(found, key=len)
        options[name] += (item.removeprefix(f"{name}."),)
    each_once("agent_options", given)
    return options


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A plain value with every number, text and None in it changed, and lists in place of tuples."""
    if isinstance(value, dict):
        return {key: mapped(part, change) for key, part in value.items()}
    return [mapped(part, change) for part in value] if isinstance(value, list | tuple) else change(value)


def finite(value: Any) -> Any:
    """A plain value with None in place of every number in it that is not finite, and lists in place of tuples."""
    return mapped(value, lambda part: None if isinstance(part, float) and not math.isfinite(part) else part)


def config_text(configuration: dict[str, Any]) -> str:
    """Configuration as TOML, in which None is "none", and what is called none itself stands in quotes."""

    def said(value: Any) -> Any:
        if isinstance(value, str) and value.strip("'") == "none":
            return f"'{value}'"
        return "none" if value is None else value

    tables = {name: dict(sorted(of.items())) if isinstance(of, dict) else of for name, of in configuration.items()}
    return tomli_w.dumps(mapped(tables, said))


def from_toml(value: Any) -> Any:
    """What `config_text` has written, or somebody by hand; lists in place of tuples."""

    def meant(value: Any) -> Any:
        quoted = isinstance(value, str) and value.strip("'") == "none" and value[0] == value[-1]
        return None if value == "none" else value[1:-1] if quoted else value

    return mapped(value, meant)


def by_agent(table: Mapping[str, Any]) -> dict[str, Any]:
    """Options of several agents in a file, a table of one for AGENT.NAME: TOML takes both for the same.

    A table without a dot in its name is an agent's, also of one that a plug-in is yet to register.
    """
    flat: dict[str, Any] = {}
    for name, value in table.items():
        tables = (name in AGENTS or "." not in name) and isinstance(value, Mapping)
        flat |= {f"{name}.{option}": of for option, of in value.items()} if tables else {name: value}
    return flat


def filled_up(given: Sequence[str], more: Mapping[str, Any] | Iterable[str]) -> tuple[str, ...]:
    """Options as NAME=VALUE, with those of others that are not named; what is given counts more."""
    names = {item.partition("=")[0] for item in given}
    others = [f"{name}={as_text(of)}" for name, of in more.items()] if isinstance(more, Mapping) else more
    return (*given, *(item for item in others if item.partition("=")[0] not in names))


def as_text(value: Any) -> str:
    """Text that `parse_options` takes for a value."""
    return value if isinstance(value, str) and parsed_value(value) == value else _literal(value)


def _literal(value: Any) -> str:
    """Python literal of a value; of infinity a number beyond all floats."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name!r}: {_literal(part)}' for name, part in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    infinite = isinstance(value, float) and math.isinf(value)
    return f"{'-' * (value < 0)}1e999" if infinite else repr(value)


def writable_folder(path: Path) -> Path:
    """Make a folder, make sure that files can be written there, and return it."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"the output folder {path} cannot be written to: it is a file; name a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UsageError(f"the output folder {path} cannot be written to: {error.strerror or error}") from error
    return path


def writable_file(path: Path, option: str = "--out", *, reads: Path | None = None) -> Path:
    """Make sure that a file can be written, in a folder that is made where it is missing, and return it.

    A `UsageError` where it is a folder, the very file that is read, or a file that belongs to a run.
    """
    if path.is_dir():
        raise UsageError(f"{option} must name a file, {path} is a folder")
    if path.exists() and (path.name in (*OF_A_RUN, *LEARNED) or (reads is not None and path.samefile(reads))):
        raise UsageError(f"{option} must not replace {path}, which belongs to a run or is read: name another file")
    writable_folder(path.parent)
    return path
