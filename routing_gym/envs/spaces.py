"""The spaces of one instance."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from routing_gym.networks import RoutedNetwork


def observation_space(network: RoutedNetwork, num_tasks: int) -> spaces.Dict:
    """Return `Dict(activation, task, depth)`; `depth` is the number of the decision, N once the instance has left."""
    return spaces.Dict(
        activation=spaces.Box(-np.inf, np.inf, (network.observation_size,), np.float32),
        task=spaces.Discrete(num_tasks),
        depth=spaces.Discrete(len(network.decisions) + 1),
    )


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
