"""The environment: the vector core, and thin faces over it."""

from routing_gym.envs.config import EnvConfig, check_types
from routing_gym.envs.make import DATASETS, make_routing_env, make_routing_vector_env
from routing_gym.envs.render import CELL, GAP, routing_map
from routing_gym.envs.rewards import RunningShare
from routing_gym.envs.rollout import Evaluation, core_of, evaluate, rollout
from routing_gym.envs.single import RoutingEnv
from routing_gym.envs.training import BlocksTrainer, TrainingDivergedError, gradient_sums
from routing_gym.envs.trajectory import Context, Observation, Router, SettledExit, Step, Trajectory
from routing_gym.envs.vector import RoutingVectorEnv
from routing_gym.envs.wrappers import RecordEpisodeStatistics, RecordRoutes, ToNumpy

__all__ = [
    "CELL",
    "DATASETS",
    "GAP",
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
    "core_of",
    "evaluate",
    "gradient_sums",
    "make_routing_env",
    "make_routing_vector_env",
    "rollout",
    "routing_map",
]
