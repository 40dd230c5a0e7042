"""Agents, one file per algorithm, and the loop that trains them together with the blocks."""

from routing_gym.agents.actor import Actor, ActorConfig
from routing_gym.agents.actor_critic import ActorCritic, ActorCriticConfig
from routing_gym.agents.annealed_em import AnnealedEM, AnnealedEMConfig
from routing_gym.agents.base.agent import AGENTS, Agent, AgentConfig
from routing_gym.agents.base.checkpoint import read
from routing_gym.agents.base.learning import learn, train_batch
from routing_gym.agents.base.population import Population
from routing_gym.agents.base.registry import agent_class, load_installed_agents, make_agent, needs, register_agent
from routing_gym.agents.best_random import BestRandom, BestRandomConfig
from routing_gym.agents.codinet import CoDiNet, CoDiNetConfig
from routing_gym.agents.confidence import Confidence, ConfidenceConfig
from routing_gym.agents.critics import (
    CriticConfig,
    OptimisticCritic,
    PragmaticCritic,
    PragmaticCriticConfig,
    SampledCriticConfig,
    SampledOptimisticCritic,
    SampledPragmaticCritic,
)
from routing_gym.agents.cross_stitch import CrossStitch, CrossStitchConfig
from routing_gym.agents.crossing import CrossConnection, CrossingConfig, CrossPrediction
from routing_gym.agents.dselect_k import DSelectK, DSelectKConfig
from routing_gym.agents.em import EM, EMConfig
from routing_gym.agents.expert_choice import ExpertChoice, ExpertChoiceConfig
from routing_gym.agents.fixed import (
    FixedAgent,
    FixedRoutes,
    FixedRoutesConfig,
    Oracle,
    RandomAgent,
    RandomFixed,
    Shared,
    SharedWithTask,
    SingleTask,
    TaskSpecificAll,
    TaskSpecificLast,
)
from routing_gym.agents.grpo import GRPO, GRPOConfig
from routing_gym.agents.gumbel import Gumbel, GumbelConfig
from routing_gym.agents.hash import Hash, HashConfig
from routing_gym.agents.loss_free import LossFree, LossFreeConfig
from routing_gym.agents.mixture_of_depths import MixtureOfDepths, MixtureOfDepthsConfig
from routing_gym.agents.one_shot import OneShot, OneShotConfig
from routing_gym.agents.parts.stable_baselines import DQNConfig, OnPolicyConfig, SB3Config, SB3PPOConfig
from routing_gym.agents.ppo import PPO, PPOConfig
from routing_gym.agents.q_learning import QLearning, QLearningConfig, Sarsa
from routing_gym.agents.reinforce import Reinforce, ReinforceConfig
from routing_gym.agents.relax import Relax, RelaxConfig
from routing_gym.agents.remoe import ReMoE, ReMoEConfig
from routing_gym.agents.sb3 import SB3A2C, SB3DQN, SB3PPO, SB3Agent, SB3MaskablePPO
from routing_gym.agents.sinkhorn import Sinkhorn, SinkhornConfig
from routing_gym.agents.smear import SMEAR
from routing_gym.agents.soft_mixture import SoftMixture, SoftMixtureConfig
from routing_gym.agents.task_clustering import TaskClustering, TaskClusteringConfig
from routing_gym.agents.thompson import Thompson, ThompsonConfig
from routing_gym.agents.top_k import TopK, TopKConfig
from routing_gym.agents.trained.reshape import add_task, extract, prune
from routing_gym.agents.wpl import WPL, WPLConfig

register_agent("wpl", WPL)
register_agent("reinforce", Reinforce)
register_agent("q-learning", QLearning)
register_agent("sarsa", Sarsa)
register_agent("actor-critic", ActorCritic)
register_agent("ppo", PPO)
register_agent("grpo", GRPO)
register_agent("relax", Relax)
register_agent("thompson", Thompson)
register_agent("em", EM)
register_agent("task-clustering", TaskClustering)
register_agent("annealed-em", AnnealedEM)
register_agent("gumbel", Gumbel)
register_agent("soft-mixture", SoftMixture)
register_agent("smear", SMEAR)
register_agent("cross-stitch", CrossStitch)
register_agent("top-k", TopK)
register_agent("expert-choice", ExpertChoice)
register_agent("loss-free", LossFree)
register_agent("sinkhorn", Sinkhorn)
register_agent("remoe", ReMoE)
register_agent("dselect-k", DSelectK)
register_agent("mixture-of-depths", MixtureOfDepths)
register_agent("actor", Actor)
register_agent("pragmatic-critic", PragmaticCritic)
register_agent("optimistic-critic", OptimisticCritic)
register_agent("confidence", Confidence)
register_agent("codinet", CoDiNet)
register_agent("cross-connection", CrossConnection)
register_agent("cross-prediction", CrossPrediction)
register_agent("pragmatic-critic-sampled", SampledPragmaticCritic)
register_agent("optimistic-critic-sampled", SampledOptimisticCritic)
register_agent("task-specific-all", TaskSpecificAll)
register_agent("task-specific-last", TaskSpecificLast)
register_agent("single-task", SingleTask)
register_agent("shared", Shared)
register_agent("shared-with-task", SharedWithTask)
register_agent("random-fixed", RandomFixed)
register_agent("hash", Hash)
register_agent("best-random", BestRandom)
register_agent("one-shot", OneShot)
register_agent("random", RandomAgent)
register_agent("fixed-routes", FixedRoutes)
register_agent("oracle", Oracle)
register_agent("sb3:PPO", SB3PPO)
register_agent("sb3:A2C", SB3A2C)
register_agent("sb3:DQN", SB3DQN)
register_agent("sb3:MaskablePPO", SB3MaskablePPO)

__all__ = [
    "AGENTS", "Actor", "ActorConfig", "ActorCritic", "ActorCriticConfig", "Agent", "AgentConfig", "AnnealedEM",
    "AnnealedEMConfig", "BestRandom", "BestRandomConfig", "CoDiNet", "CoDiNetConfig", "Confidence", "ConfidenceConfig",
    "CriticConfig", "CrossConnection", "CrossPrediction", "CrossStitch", "CrossStitchConfig", "CrossingConfig",
    "DQNConfig", "DSelectK", "DSelectKConfig", "EM", "EMConfig", "ExpertChoice", "ExpertChoiceConfig", "FixedAgent",
    "FixedRoutes", "FixedRoutesConfig", "GRPO", "GRPOConfig", "Gumbel", "GumbelConfig", "Hash", "HashConfig",
    "LossFree", "LossFreeConfig", "MixtureOfDepths", "MixtureOfDepthsConfig", "OnPolicyConfig", "OneShot",
    "OneShotConfig", "OptimisticCritic", "Oracle", "PPO", "PPOConfig", "Population", "PragmaticCritic",
    "PragmaticCriticConfig", "QLearning", "QLearningConfig", "RandomAgent", "RandomFixed", "ReMoE", "ReMoEConfig",
    "Reinforce", "ReinforceConfig", "Relax", "RelaxConfig", "SB3A2C", "SB3Agent", "SB3Config", "SB3DQN",
    "SB3MaskablePPO", "SB3PPO", "SB3PPOConfig", "SMEAR", "SampledCriticConfig", "SampledOptimisticCritic",
    "SampledPragmaticCritic", "Sarsa", "Shared", "SharedWithTask", "SingleTask", "Sinkhorn", "SinkhornConfig",
    "SoftMixture", "SoftMixtureConfig", "TaskClustering", "TaskClusteringConfig", "TaskSpecificAll", "TaskSpecificLast",
    "Thompson", "ThompsonConfig", "TopK", "TopKConfig", "WPL", "WPLConfig", "add_task", "agent_class", "extract",
    "learn", "load_installed_agents", "make_agent", "needs", "prune", "read", "register_agent", "train_batch",
]  # fmt: skip
