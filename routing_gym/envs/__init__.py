"""The environment: the vector core, and thin faces over it."""

from routing_gym.envs.batch import Batch, SettledExit, Step, Trajectory, classified_right, rollout
from routing_gym.envs.config import EnvConfig, is_price
from routing_gym.envs.evaluation import Evaluation, evaluate, macs_of, route_split
from routing_gym.envs.gradients import finite_gradients
from routing_gym.envs.make import DATASETS, make_routing_env, make_routing_vector_env, register_dataset
from routing_gym.envs.rewards import REWARDS, register_reward
from routing_gym.envs.routes import CELL, GAP, routing_map
from routing_gym.envs.single import RoutingEnv
from routing_gym.envs.throughput import TALR
from routing_gym.envs.training import TrainingDivergedError
from routing_gym.envs.turns import (
    PRICED_MACS,
    Asked,
    Context,
    Known,
    Manner,
    Observation,
    Router,
    Seen,
    Turn,
    along,
    drive,
    take_turn,
)  # fmt: skip
from routing_gym.envs.vector import RoutingVectorEnv, core_of
from routing_gym.envs.wrappers import RecordEpisodeStatistics, RecordRoutes, ToNumpy

__all__ = [
    "CELL", "DATASETS", "GAP", "PRICED_MACS", "REWARDS", "TALR", "Asked", "Batch", "Context", "EnvConfig",
    "Evaluation", "Known", "Manner", "Observation", "RecordEpisodeStatistics", "RecordRoutes", "Router", "RoutingEnv",
    "RoutingVectorEnv", "Seen", "SettledExit", "Step", "ToNumpy", "TrainingDivergedError", "Trajectory", "Turn",
    "along", "classified_right", "core_of", "drive", "evaluate", "finite_gradients", "is_price", "macs_of",
    "make_routing_env", "make_routing_vector_env", "register_dataset", "register_reward", "rollout", "route_split",
    "routing_map", "take_turn",
]  # fmt: skip
