"""The environment: the vector core, and thin faces over it."""

from routing_gym.envs.config import EnvConfig, check_types, is_price
from routing_gym.envs.evaluation import Evaluation, evaluate, macs_of, route_split
from routing_gym.envs.make import DATASETS, make_routing_env, make_routing_vector_env, register_dataset
from routing_gym.envs.outcome import classified_right
from routing_gym.envs.render import CELL, GAP, routing_map
from routing_gym.envs.rewards import FINAL_REWARDS, RunningShare, register_reward
from routing_gym.envs.rollout import core_of, rollout
from routing_gym.envs.single import RoutingEnv
from routing_gym.envs.spaces import PRICED_MACS
from routing_gym.envs.talr import TALR
from routing_gym.envs.training import BlocksTrainer, TrainingDivergedError, finite_gradients
from routing_gym.envs.trajectory import Context, Observation, Router, SettledExit, Step, Trajectory
from routing_gym.envs.vector import RoutingVectorEnv
from routing_gym.envs.wrappers import RecordEpisodeStatistics, RecordRoutes, ToNumpy

__all__ = [
    "CELL",
    "DATASETS",
    "FINAL_REWARDS",
    "GAP",
    "PRICED_MACS",
    "TALR",
    "BlocksTrainer",
    "Context",
    "EnvConfig",
    "Evaluation",
    "Observation",
    "RecordEpisodeStatistics",
    "RecordRoutes",
    "Router",
    "RoutingEnv",
    "RoutingVectorEnv",
    "RunningShare",
    "SettledExit",
    "Step",
    "ToNumpy",
    "TrainingDivergedError",
    "Trajectory",
    "check_types",
    "classified_right",
    "core_of",
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
]
