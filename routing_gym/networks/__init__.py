"""Routed networks: which decisions exist, and what a transition computes."""

from routing_gym.networks.actions import Accepted, Action, NotFiniteError, accept, accept_plan, is_weights
from routing_gym.networks.banked import BankedNetwork
from routing_gym.networks.cells import RoutedCells
from routing_gym.networks.columns import ColumnsMLP
from routing_gym.networks.decision import EXIT, Decision, ways_out
from routing_gym.networks.deployable import Deployable, Normalize
from routing_gym.networks.mlp import RoutedMLP
from routing_gym.networks.network import RoutedNetwork
from routing_gym.networks.pyramid import RoutedPyramid
from routing_gym.networks.pyramid_columns import StaticPyramid, static_pyramid
from routing_gym.networks.registry import NETWORKS, NetworkSpec, claim, make_network, register_network
from routing_gym.networks.route import RoutedModule, route
from routing_gym.networks.state import Exit, RoutingState, Waiting

__all__ = [
    "EXIT", "NETWORKS", "Accepted", "Action", "BankedNetwork", "ColumnsMLP", "Decision", "Deployable", "Exit",
    "NetworkSpec", "Normalize", "NotFiniteError", "RoutedCells", "RoutedMLP", "RoutedModule", "RoutedNetwork",
    "RoutedPyramid", "RoutingState", "StaticPyramid", "Waiting", "accept", "accept_plan", "claim", "is_weights",
    "make_network", "register_network", "route", "static_pyramid", "ways_out",
]  # fmt: skip
