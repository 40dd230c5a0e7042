"""Plug-ins: files that register agents, networks, data or rewards before a command looks for them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from routing_gym.agents import AGENTS, load_installed_agents
from routing_gym.envs import DATASETS, REWARDS
from routing_gym.experiments.engine.callbacks import CALLBACKS
from routing_gym.experiments.engine.command import Command, UsageError
from routing_gym.experiments.engine.console import DIGEST
from routing_gym.experiments.engine.metrics import METRICS
from routing_gym.networks import NETWORKS
from routing_gym.registration import ENV_IDS

NAME = "routing_gym_plugin_{}_{}"
"""Name of a plug-in's module: of the file's name, and of a digest of its path, since two may have one name."""
OF_METRICS = " (metrics)"
"""Behind the name of a plug-in that metrics come from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pluggable(Command):
    """A command that takes plug-ins.

    Attributes:
        plugin: Python files to run first: what they register (`register_agent`, `register_network`, `register_dataset`,
            `register_reward`, `register_env`, `register_metric`, `register_callback`) is known to the command like our
            own.
    """

    plugin: tuple[Path, ...] = ()

    def prepare(self) -> None:
        """Run the files, and register the agents that installed packages offer; errors as of `load_plugin`."""
        super().prepare()
        load_installed_agents()
        for path in self.plugin:
            load_plugin(path)


def load_plugin(path: Path) -> None:
    """Run one file, once per process; a `UsageError` if it is missing, fails, or registers nothing."""
    if path.is_dir():
        raise UsageError(f"a plug-in is a Python file, {path} is a folder: name the files in it")
    if not path.exists():
        last = "" if path.suffix else ": --plugin takes all that follows it, so that it has to come behind other names"
        raise UsageError(f"no such plug-in: {path}{last}")
    name = NAME.format(path.stem, hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8])
    if getattr(sys.modules.get(name), "__file__", None) == str(path.resolve()):
        return
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    before = _registered()
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        vars(module)[DIGEST] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == str(path.resolve())]
        where = f"{path}, line {error.lineno if isinstance(error, SyntaxError) else [1, *lines][-1]}"
        raise UsageError(f"the plug-in {path} failed: {type(error).__name__}: {error} ({where})") from error
    if _registered() == before:
        del sys.modules[name]
        raise UsageError(f"the plug-in {path} registers nothing: call register_agent(name, cls) or one of its like")


def digests(parts: Iterable[Any]) -> dict[str, str]:
    """Digests of the plug-ins that classes or functions come from, by file name; helpers they import are not seen."""
    modules = dict.fromkeys(sys.modules.get(getattr(part, "__module__", "")) for part in parts)
    found: dict[str, list[str]] = {}
    for of in modules:
        if of is not None and DIGEST in vars(of):
            found.setdefault(Path(str(of.__file__)).name, []).append(vars(of)[DIGEST])
    return {name: "+".join(sorted(own)) for name, own in found.items()}


def without_new_metrics(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was and is asked for, without plug-ins that only one of both took metrics from: these may come and go."""
    plugins = [one.get("plugins") or {} for one in (saved, asked)]
    both = plugins[0].keys() & plugins[1].keys()
    kept = [{name: of for name, of in own.items() if name in both or not name.endswith(OF_METRICS)} for own in plugins]
    return {**saved, "plugins": kept[0]}, {**asked, "plugins": kept[1]}


def _registered() -> list[dict[str, int]]:
    """What is registered now, in a form that can be compared."""
    registries = (AGENTS, NETWORKS, DATASETS, REWARDS, ENV_IDS, METRICS, CALLBACKS)
    return [{name: id(part) for name, part in registry.items()} for registry in registries]
