"""Plug-ins: files that register agents, networks, data or rewards before a command looks for them."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import traceback
from pathlib import Path

from routing_gym.agents import AGENTS, load_installed_agents
from routing_gym.envs import DATASETS, REWARDS
from routing_gym.experiments.engine.callbacks import CALLBACKS
from routing_gym.experiments.engine.command import Command, UsageError
from routing_gym.experiments.engine.metrics import METRICS
from routing_gym.networks import NETWORKS
from routing_gym.registration import ENV_IDS


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
    """Run one file, once per process.

    Raises:
        UsageError: It is missing, fails, or registers nothing.
    """
    if path.is_dir():
        raise UsageError(f"a plug-in is a Python file, {path} is a folder: name the files in it")
    if not path.exists():
        raise UsageError(f"no such plug-in: {path}")
    name = f"routing_gym_plugin_{path.stem}"
    if getattr(sys.modules.get(name), "__file__", None) == str(path.resolve()):
        return
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    before = _registered()
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{line.filename}, line {line.lineno}"
        raise UsageError(f"the plug-in {path} failed: {type(error).__name__}: {error} ({where})") from error
    if _registered() == before:
        del sys.modules[name]
        raise UsageError(f"the plug-in {path} registers nothing: call register_agent(name, cls) or one of its like")


def _registered() -> list[dict[str, int]]:
    """What is registered now, in a form that can be compared."""
    registries = (AGENTS, NETWORKS, DATASETS, REWARDS, ENV_IDS, METRICS, CALLBACKS)
    return [{name: id(part) for name, part in registry.items()} for registry in registries]
