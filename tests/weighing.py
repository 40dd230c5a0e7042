"""An environment for gates, whose actions are weights, for tests."""

import torch
from toys import small_env

from routing_gym.networks import RoutedMLP
from routing_gym.networks.state import legal_table


def weights_env(network=None, num_envs=24, *, blocks=5, layers=2, masks=None, **options):
    """Two layers of five blocks, of which masks `(N, M, A)` bool may leave some out."""
    torch.manual_seed(1)
    network = RoutedMLP((1, 2, 3), 3, blocks, width=4, layers=layers) if network is None else network
    if masks is not None:
        network._masks, network.nothing_masked = legal_table(network.decisions, masks), False
    return small_env(network, num_envs, action_type="weights", **options)
