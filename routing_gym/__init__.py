"""Routing an instance through a neural network, as a reinforcement-learning environment.

What is named here is imported when it is used, so that `import routing_gym` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from routing_gym.hooks import when_imported

if TYPE_CHECKING:
    from routing_gym import testing
    from routing_gym.envs import Evaluation, RoutingEnv, RoutingVectorEnv, evaluate, register_dataset, register_reward
    from routing_gym.networks import NETWORKS, RoutedNetwork, make_network, register_network, route
    from routing_gym.registration import env_ids, register_env
    from routing_gym.tasks import MultiTaskDataset

__version__ = "0.1.0"

__all__ = [
    "NETWORKS", "Evaluation", "MultiTaskDataset", "RoutedNetwork", "RoutingEnv", "RoutingVectorEnv", "__version__",
    "env_ids", "evaluate", "make_network", "register_dataset", "register_env", "register_network", "register_reward",
    "route", "testing",
]  # fmt: skip

_HOMES = {
    "envs": ("Evaluation", "RoutingEnv", "RoutingVectorEnv", "evaluate", "register_dataset", "register_reward"),
    "networks": ("NETWORKS", "RoutedNetwork", "make_network", "register_network", "route"),
    "registration": ("env_ids", "register_env"),
    "tasks": ("MultiTaskDataset",),
}
_PACKAGES = ("agents", "blocks", "envs", "networks", "registration", "tasks", "testing")


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"routing_gym.{home}"), name)
            return value
    if name in _PACKAGES:
        return importlib.import_module(f"routing_gym.{name}")
    raise AttributeError(f"module 'routing_gym' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})


def _register(library: str) -> None:
    getattr(importlib.import_module("routing_gym.registration"), f"register_with_{library}")()


for _library in ("gymnasium", "pettingzoo"):
    when_imported(_library, _register)
"""The ids under which Gymnasium, and PettingZoo, know the environments: they are told as soon as they are there."""
