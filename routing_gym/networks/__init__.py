"""Routed networks: which decisions exist, and what a transition computes."""

from routing_gym.networks.actions import Accepted, Action, NotFiniteError, accept, accept_plan, is_weights
from routing_gym.networks.banked import BankedNetwork, Deployable, Normalize
from routing_gym.networks.cells import RoutedCells
from routing_gym.networks.fully_connected import ColumnsMLP, RoutedMLP
from routing_gym.networks.network import RoutedNetwork
from routing_gym.networks.pyramid import RoutedPyramid, StaticPyramid, static_pyramid
from routing_gym.networks.registry import NETWORKS, NetworkSpec, claim, make_network, register_network
from routing_gym.networks.route import RoutedModule, route
from routing_gym.networks.side_by_side import SideBySide
from routing_gym.networks.state import EXIT, Decision, Exit, RoutingState, Waiting, ways_out

__all__ = [
    "EXIT", "NETWORKS", "Accepted", "Action", "BankedNetwork", "ColumnsMLP", "Decision", "Deployable", "Exit",
    "NetworkSpec", "Normalize", "NotFiniteError", "RoutedCells", "RoutedMLP", "RoutedModule", "RoutedNetwork",
    "RoutedPyramid", "RoutingState", "SideBySide", "StaticPyramid", "Waiting", "accept", "accept_plan", "claim",
    "is_weights", "make_network", "register_network", "route", "static_pyramid", "ways_out",
]  # fmt: skip
