"""The loop that trains an agent and the blocks together (Rosenbaum et al. 2018, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from routing_gym.agents.base import Agent
from routing_gym.envs import RoutingVectorEnv, TrainingDivergedError, core_of, rollout


def learn(agent: Agent, env: Any, episodes: int, callback: Callable[[dict[str, Tensor]], None] | None = None) -> None:
    """Train for at least `episodes` instances, in whole batches of `env.num_envs`.

    Args:
        agent: The agent.
        env: The environment it was made for; one in mode `"same_step"` is switched to `"disabled"` meanwhile, and its
            episodes under way are given up.
        episodes: How many instances to route, at least 1.
        callback: Called after every batch with its metrics, 0-dimensional tensors: `loss`, `accuracy`, `reward`, `macs`
            and what the agent reports.

    Raises:
        ValueError: A count below 1, or an environment the agent was not made for.
        TrainingDivergedError: The loss is no longer a number; agent and blocks are as they were before the batch.
    """
    if isinstance(episodes, bool) or not isinstance(episodes, int) or episodes < 1:
        raise ValueError(f"episodes must be an integer of at least 1, got {episodes!r}")
    core = core_of(env)
    if core is not agent.env:
        raise ValueError("the agent was made for another environment: make_agent(name, env) first, or Agent.load")
    if not core.config.train:
        raise ValueError("this environment was made with train=False: its blocks cannot be trained")
    agent.train()
    with core.batch_mode():
        for _ in range(-(-episodes // core.num_envs)):
            metrics = train_batch(agent, core)
            if callback is not None:
                callback(metrics)


def train_batch(agent: Agent, env: RoutingVectorEnv) -> dict[str, Tensor]:
    """Route one batch, train the blocks on it, then the agent; return the batch's metrics."""
    trajectory = rollout(agent, env)
    if agent.optimizer is not None and agent.needs_gradients:
        agent.optimizer.zero_grad(set_to_none=True)
    try:
        loss = env.train_blocks(agent.auxiliary_loss(trajectory))
    except TrainingDivergedError as error:
        raise TrainingDivergedError(f"agent {agent.name or type(agent).__name__!r}: {error}") from error
    if agent.optimizer is not None and agent.needs_gradients:
        agent.optimizer.step()
    reported = agent.receive(trajectory)
    agent.episodes += len(trajectory)
    return {
        "loss": loss,
        "accuracy": trajectory.correct.mean(),
        "reward": trajectory.reward().mean(),
        "macs": trajectory.macs.mean(),
        **reported,
    }
