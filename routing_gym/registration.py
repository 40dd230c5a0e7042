"""The ids under which Gymnasium, and PettingZoo where it is installed, know the environments."""

from __future__ import annotations

import json
import sys
from typing import Any

# McGill and Perona 2017: -k_cpt MACs for every action, minus the cross-entropy at the end; a price between theirs.
EARLY_EXIT: dict[str, Any] = {"network": "pyramid-chain", "final_reward": "negative-loss", "k_cpt": 4e-9}

# Wang et al.: +1 or -1, less a price that makes a ResNet-110 with all its blocks cost 0.5, 0.01 of it per block
# (gamma = 0.01). Images are moved by up to 4 pixels over black and mirrored.
BLOCK_SKIP: dict[str, Any] = {"network": "resnet110-skip", "k_cpt": 2e-9}

# +1 or -1, less a price that makes all blocks of all layers cost 0.5.
VIT_SKIP: dict[str, Any] = {"network": "vit-skip", "k_cpt": 5e-8, "learning_rate": 1e-3}

# Problems with a known best routing: blocks just large enough for one computation.
PLANTED: dict[str, Any] = {"network": "mlp", "width": 32, "learning_rate": 3e-3}
# At this price hard instances should pass every column, easy ones the first alone.
BUDGET: dict[str, Any] = {"columns": 3, "width": 4, "k_cpt": 1.2e-5, "learning_rate": 5e-3}

ENV_IDS: dict[str, dict[str, Any]] = {
    "routing_gym/DigitsMTL-v0": {"dataset": "digits", "network": "mlp"},
    "routing_gym/MnistMTL-v0": {"dataset": "mnist", "network": "simple-convnet"},
    "routing_gym/Cifar100MTL-v0": {"dataset": "cifar-100", "network": "simple-convnet"},
    "routing_gym/MiniImagenetMTL-v0": {"dataset": "mini-imagenet", "network": "simple-convnet"},
    "routing_gym/SyntheticMTL-v0": {"dataset": "synthetic", "network": "mlp"},
    "routing_gym/OmniglotDiverse-v0": {"dataset": "omniglot", "network": "omniglot-diverse"},
    "routing_gym/MnistExperts-v0": {"dataset": "mnist-10", "network": "mnist-experts"},
    "routing_gym/HybridEarlyExit-v0": {"dataset": "hybrid", **EARLY_EXIT},
    "routing_gym/Cifar10EarlyExit-v0": {"dataset": "cifar-10", **EARLY_EXIT},
    "routing_gym/Cifar5EarlyExit-v0": {"dataset": "cifar-5", **EARLY_EXIT},
    "routing_gym/Cifar2EarlyExit-v0": {"dataset": "cifar-2", **EARLY_EXIT},
    "routing_gym/Cifar10Cells-v0": {"dataset": "cifar-10", "network": "cells-6x32"},
    "routing_gym/Cifar10BlockSkip-v0": {"dataset": "cifar-10", "fill": "black", **BLOCK_SKIP},
    "routing_gym/Cifar100BlockSkip-v0": {"dataset": "cifar-100-fine", **BLOCK_SKIP},
    "routing_gym/SvhnBlockSkip-v0": {"dataset": "svhn", **BLOCK_SKIP},
    "routing_gym/Cifar10ParallelPaths-v0": {"dataset": "cifar-10", "fill": "black", "network": "basecnn-2-cc"},
    "routing_gym/Cifar100ParallelPaths-v0": {"dataset": "cifar-100-fine", "network": "basecnn-2-cc"},
    "routing_gym/Cifar100ViT-v0": {"dataset": "cifar-100", "network": "vit", "learning_rate": 1e-3},
    "routing_gym/Cifar10ViTSkip-v0": {"dataset": "cifar-10", **VIT_SKIP},
    "routing_gym/HiddenGroups-v0": {"dataset": "hidden-groups", **PLANTED, "layers": 2},
    "routing_gym/Compositions-v0": {"dataset": "compositions", **PLANTED, "width": 16},
    "routing_gym/Clusters-v0": {"dataset": "clusters", **PLANTED, "width": 12, "layers": 2},
    "routing_gym/Credit-v0": {"dataset": "credit", "network": "lock", "learning_rate": 3e-3},
    "routing_gym/Budget-v0": {"dataset": "budget", **EARLY_EXIT, **BUDGET},
}
"""Data, network and options that `make` may override, by id: plain values, so that `spec.to_json()` works."""


def register_with_gymnasium() -> None:
    """Make every id known to Gymnasium; called when it is imported."""
    import gymnasium  # which calls this when it is imported first

    one, many = (f"routing_gym.envs.make:make_routing_{kind}" for kind in ("env", "vector_env"))
    for env_id, kwargs in ENV_IDS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=one, vector_entry_point=many, kwargs=dict(kwargs))


def register_with_pettingzoo() -> None:
    """Make every id known to PettingZoo, where it has a registry; called when it is imported."""
    try:
        from pettingzoo import aec_registry, parallel_registry, register
    except ImportError:  # older than its registry
        return
    for kind, known in (("parallel", parallel_registry), ("aec", aec_registry)):
        for env_id in [env_id for env_id in ENV_IDS if env_id not in known]:
            entry_point = f"routing_gym.envs.pettingzoo:make_routing_{kind}_env"
            register(kind, env_id, entry_point, kwargs=dict(ENV_IDS[env_id]))


def register_env(env_id: str, *, dataset: str, network: str, **options: Any) -> None:
    """Make an environment of your own data or network known, to Gymnasium, PettingZoo and every command.

    Args:
        env_id: Its id, `namespace/Name-v0`.
        dataset: Name of its data, see `register_dataset`.
        network: Name of its network, see `register_network`.
        options: Options it has unless `make` is given others, plain values: `k_cpt=1e-9`, say.

    Raises:
        TypeError: An option that is unknown.
        ValueError: An unknown name, a value that is refused or is no plain value, or an id that is taken or
            that Gymnasium refuses.
    """
    # Not above: to make ids known, and to list them, takes none of these.
    import gymnasium

    from routing_gym.envs import DATASETS, EnvConfig
    from routing_gym.envs.make import OF_ENV, known_options
    from routing_gym.networks import NETWORKS
    from routing_gym.options import plain_value, unexpected, unknown_name

    if not isinstance(env_id, str) or not env_id:
        raise ValueError(f"env_id must be text, 'namespace/Name-v0', got {env_id!r}")
    for kind, name, known in (("data set", dataset, DATASETS), ("network", network, NETWORKS)):
        if not isinstance(name, str) or name not in known:
            raise ValueError(unknown_name(kind, name, sorted(known)))
    takes = known_options(dataset, network) - {"num_envs"}
    options = {option: plain_value(value) for option, value in options.items()}
    for option, value in options.items():
        if option not in takes:
            raise unexpected("this environment", option, takes)
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{option} must be a plain value, since an id has to be one that text can describe, got {value!r}: "
                "give it to make instead"
            ) from error
    EnvConfig.of("the environment", {option: value for option, value in options.items() if option in OF_ENV})
    kwargs = {"dataset": dataset, "network": network, **options}
    if ENV_IDS.get(env_id, kwargs) != kwargs or (env_id in gymnasium.registry and env_id not in ENV_IDS):
        raise ValueError(f"the id {env_id!r} belongs to another environment already")
    fresh, ENV_IDS[env_id] = env_id not in ENV_IDS, kwargs
    try:
        register_with_gymnasium()
        if "pettingzoo" in sys.modules:
            register_with_pettingzoo()
    except Exception as error:  # one that stayed would make every later call fail
        if fresh:
            del ENV_IDS[env_id]
            gymnasium.registry.pop(env_id, None)
        raise ValueError(f"{env_id!r} cannot be an id, take 'namespace/Name-v0': {error}") from error


def env_ids() -> list[str]:
    """All ids."""
    return list(ENV_IDS)
