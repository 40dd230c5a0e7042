"""Routing an instance through a neural network, as a reinforcement-learning environment."""

from routing_gym import testing
from routing_gym.envs import Evaluation, RoutingEnv, RoutingVectorEnv, evaluate, register_dataset, register_reward
from routing_gym.networks import NETWORKS, RoutedNetwork, make_network, register_network, route
from routing_gym.registration import env_ids, register_env, register_envs
from routing_gym.tasks import MultiTaskDataset

__version__ = "0.1.0"

__all__ = [
    "NETWORKS", "Evaluation", "MultiTaskDataset", "RoutedNetwork", "RoutingEnv", "RoutingVectorEnv", "__version__",
    "env_ids", "evaluate", "make_network", "register_dataset", "register_env", "register_network", "register_reward",
    "route", "testing",
]  # fmt: skip

register_envs()
