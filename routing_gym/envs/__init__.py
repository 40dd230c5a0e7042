"""The environment: the vector core, and thin faces over it."""

from routing_gym.envs.batch import Batch, classified_right
from routing_gym.envs.config import EnvConfig, is_price
from routing_gym.envs.drive import PRICED_MACS, Manner, Seen, Turn, along, drive, take_turn
from routing_gym.envs.evaluation import Evaluation, evaluate, macs_of, route_split
from routing_gym.envs.make import DATASETS, make_routing_env, make_routing_vector_env, register_dataset
from routing_gym.envs.render import CELL, GAP, routing_map
from routing_gym.envs.rewards import REWARDS, register_reward
from routing_gym.envs.rollout import Asked, Context, Known, Observation, Router, SettledExit, Step, Trajectory, rollout
from routing_gym.envs.single import RoutingEnv
from routing_gym.envs.talr import TALR
from routing_gym.envs.training import TrainingDivergedError, finite_gradients
from routing_gym.envs.vector import RoutingVectorEnv, core_of
from routing_gym.envs.wrappers import RecordEpisodeStatistics, RecordRoutes, ToNumpy

__all__ = [
    "CELL",
    "DATASETS",
    "GAP",
    "PRICED_MACS",
    "REWARDS",
    "TALR",
    "Asked",
    "Batch",
    "Context",
    "EnvConfig",
    "Evaluation",
    "Known",
    "Manner",
    "Observation",
    "RecordEpisodeStatistics",
    "RecordRoutes",
    "Router",
    "RoutingEnv",
    "RoutingVectorEnv",
    "Seen",
    "SettledExit",
    "Step",
    "ToNumpy",
    "TrainingDivergedError",
    "Trajectory",
    "Turn",
    "along",
    "classified_right",
    "core_of",
    "drive",
    "evaluate",
    "macs_of",
    "route_split",
    "finite_gradients",
    "is_price",
    "make_routing_env",
    "make_routing_vector_env",
    "register_dataset",
    "register_reward",
    "rollout",
    "routing_map",
    "take_turn",
]
