"""Spaces of one instance, and their elements in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from routing_gym.networks import RoutedNetwork


def observation_space(network: RoutedNetwork, num_tasks: int, price: bool = False) -> spaces.Dict:
    """`Dict(activation, task, depth)`, and `price`, `(1,)`, the cost of ten million multiply-accumulates.

    `depth` is the number of the decision, N once the instance has left.
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
    """Choices of a decision, or their weights; with a leading axis where M > 1 tensors choose."""
    tensors = (network.num_tensors,) if network.num_tensors > 1 else ()
    if action_type == "weights":
        shared_out = any(decision.mixing == "outcome" for decision in network.decisions)
        low, high = (0.0, 1.0) if shared_out else (-np.inf, np.inf)
        return spaces.Box(low, high, (*tensors, network.num_choices), np.float32)
    if tensors:
        return spaces.MultiDiscrete([network.num_choices] * network.num_tensors)
    return spaces.Discrete(network.num_choices)


def with_mask(observed: spaces.Space, acted: spaces.Space, num_choices: int) -> spaces.Dict:
    """`Dict(observation, action_mask)`, PettingZoo's form of a masked observation."""
    mask: spaces.Space = spaces.Box(0, 1, (num_choices,), np.int8)
    for size in reversed(acted.shape or ()):
        mask = spaces.Tuple([mask] * size)
    return spaces.Dict(observation=observed, action_mask=mask)


def for_sampling(mask: np.ndarray) -> Any:
    """A mask in the form `sample` takes: `(A,)`, or tuples of such where many choices are one action."""
    return mask if mask.ndim == 1 else tuple(map(for_sampling, mask))


def to_numpy(value: Any) -> Any:
    """Tensors as numpy arrays on the CPU, also those inside dicts and tuples; all else as it is.

    Masks of choices become int8, the only form that `Discrete.sample` takes.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, dict):
        return {key: to_numpy(part.to(torch.int8) if key == "action_mask" else part) for key, part in value.items()}
    return tuple(map(to_numpy, value)) if isinstance(value, tuple) else value
