"""The ids under which Gymnasium, and PettingZoo where it is installed, know the environments."""

from __future__ import annotations

import gymnasium

NAMESPACE = "routing_gym"

ENV_IDS: dict[str, dict[str, str]] = {
    "DigitsMTL-v0": {"dataset": "digits", "network": "mlp"},
    "MnistMTL-v0": {"dataset": "mnist", "network": "simple-convnet"},
    "Cifar100MTL-v0": {"dataset": "cifar-100", "network": "simple-convnet"},
    "MiniImagenetMTL-v0": {"dataset": "mini-imagenet", "network": "simple-convnet"},
    "SyntheticMTL-v0": {"dataset": "synthetic", "network": "mlp"},
}
"""Name and what tells it apart. Strings only: `spec.to_json()` must work, and nothing is built before `make`."""


def register_envs() -> None:
    """Make every id known to `gymnasium.make` and `gymnasium.make_vec`, and to `pettingzoo.make` where it is installed.

    Called when routing_gym is imported.
    """
    for name, kwargs in ENV_IDS.items():
        env_id = f"{NAMESPACE}/{name}"
        if env_id not in gymnasium.registry:
            gymnasium.register(
                id=env_id,
                entry_point="routing_gym.envs.make:make_routing_env",
                vector_entry_point="routing_gym.envs.make:make_routing_vector_env",
                kwargs=dict(kwargs),
            )
    try:
        from pettingzoo import aec_registry, parallel_registry, register
    except ImportError:  # not installed, or older than its registry
        return
    for name, kwargs in ENV_IDS.items():
        env_id = f"{NAMESPACE}/{name}"
        if env_id not in parallel_registry:
            register("parallel", env_id, "routing_gym.envs.parallel:make_routing_parallel_env", kwargs=dict(kwargs))
        if env_id not in aec_registry:
            register("aec", env_id, "routing_gym.envs.dispatched:make_routing_aec_env", kwargs=dict(kwargs))


def env_ids() -> list[str]:
    """Return all ids."""
    return [f"{NAMESPACE}/{name}" for name in ENV_IDS]
