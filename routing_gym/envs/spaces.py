"""The spaces of one instance, and what lies in them, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from routing_gym.networks import RoutedNetwork


def observation_space(network: RoutedNetwork, num_tasks: int, price: bool = False) -> spaces.Dict:
    """Return `Dict(activation, task, depth)`; `depth` is the number of the decision, N once the instance has left.

    Args:
        network: The network.
        num_tasks: Number of tasks.
        price: Add `price`, `(1,)`, the cost of ten million multiply-accumulates.
    """
    seen: dict[str, spaces.Space] = {
        "activation": spaces.Box(-np.inf, np.inf, (network.observation_size,), np.float32),
        "task": spaces.Discrete(num_tasks),
        "depth": spaces.Discrete(len(network.decisions) + 1),
    }
    if price:
        seen["price"] = spaces.Box(0.0, np.inf, (1,), np.float32)
    return spaces.Dict(seen)


def action_space(network: RoutedNetwork, action_type: str) -> spaces.Space:
    """Return the choices of a decision, or their weights; with a leading axis where M > 1 tensors choose."""
    tensors = (network.num_tensors,) if network.num_tensors > 1 else ()
    if action_type == "weights":
        shared_out = any(decision.mixing == "outcome" for decision in network.decisions)
        low, high = (0.0, 1.0) if shared_out else (-np.inf, np.inf)
        return spaces.Box(low, high, (*tensors, network.num_choices), np.float32)
    if tensors:
        return spaces.MultiDiscrete([network.num_choices] * network.num_tensors)
    return spaces.Discrete(network.num_choices)


def with_mask(observed: spaces.Space, acted: spaces.Space, num_choices: int) -> spaces.Dict:
    """Return `Dict(observation, action_mask)`, PettingZoo's form of a masked observation."""
    mask: spaces.Space = spaces.Box(0, 1, (num_choices,), np.int8)
    for size in reversed(acted.shape or ()):
        mask = spaces.Tuple([mask] * size)
    return spaces.Dict(observation=observed, action_mask=mask)


def for_sampling(mask: np.ndarray) -> Any:
    """Return a mask in the form `sample` takes: `(A,)`, or tuples of such where many choices are one action."""
    if mask.ndim == 1:
        return mask
    return tuple(mask if mask.ndim == 2 else map(for_sampling, mask))


def to_numpy(value: Any) -> Any:
    """Return tensors as numpy arrays on the CPU, also those inside dicts and tuples; leave all else as it is."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, dict):
        return {key: _mask_to_numpy(part) if key == "action_mask" else to_numpy(part) for key, part in value.items()}
    return tuple(map(to_numpy, value)) if isinstance(value, tuple) else value


def _mask_to_numpy(mask: Tensor) -> np.ndarray:
    """Return a mask of choices as int8, the only form that `Discrete.sample` takes."""
    return mask.to(torch.int8).cpu().numpy()
