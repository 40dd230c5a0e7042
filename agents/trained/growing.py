"""Growing task sets: one more task for an agent and blocks that are trained already."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from routing_gym.agents.base.agent import Agent
from routing_gym.agents.parts.learner import LearningConfig
from routing_gym.envs import RoutingVectorEnv
from routing_gym.tasks import MultiTaskDataset


def add_task(agent: Agent, data: Mapping[str, MultiTaskDataset], *, block_rate: float = 0.1) -> Agent:
    """Add tasks to a trained agent: new agents for them, blocks that go on learning slowly.

    "We add a new routing agent for each and overfit it on the few shot examples while training the function modules
    with a very slow learning rate" (Rosenbaum et al. 2018, section 6). The blocks are those of the old agent, not a
    copy. Its environment stays as it is; the new agent has one of its own, which holds the old tasks and the new, and
    draws instances of the new ones only. `evaluate` judges all, so that forgetting is seen.

    Args:
        agent: The trained agent.
        data: The new tasks, by split: at least the splits of the agent's own environment, with images of the same shape
            and no more classes than the network has logits for. They are normalised as the old ones are.
        block_rate: What the blocks' learning rate is multiplied by, above 0; their schedule ends. Whatever it is, batch
            norm that all tasks share goes on averaging, over the new tasks now.

    Returns:
        A new agent of the same class and options. What it knows of the old tasks it has kept; of the new ones it knows
        nothing, but its schedules stand where they stood: those in instances, and those in passes to the nearest
        instance. Its optimisers begin anew.

    Raises:
        ValueError: A split is missing, the data do not fit the network, the network is told the task as input or
            reads each out by itself, or the agent cannot route so many tasks.
    """
    if not 0 < block_rate < float("inf"):
        raise ValueError(f"block_rate must be positive and finite, got {block_rate}")
    old = agent.env
    if missing := sorted(set(old.datasets) - set(data)):
        raise ValueError(f"the new tasks have no split {missing[0]!r}; they need {', '.join(old.datasets)}")
    if any(getattr(old.network, told, False) for told in ("task_input", "readout_per_task")):
        raise ValueError(
            "this network is told the task as input, or reads each out by itself: it has no place for another one"
        )
    datasets = {name: split.with_tasks(data[name]) for name, split in old.datasets.items()}
    before, after = old.dataset.num_tasks, datasets[old.config.split].num_tasks
    rate, drawn = old.config.learning_rate * block_rate, tuple(range(before, after))
    changed = dataclasses.replace(old.config, draw_tasks=drawn, learning_rate=rate, schedule="constant")
    env = RoutingVectorEnv(old.network, datasets, old.num_envs, **dataclasses.asdict(changed))
    config = agent.config
    if isinstance(config, LearningConfig) and config.arrangement == "dispatched":
        config = dataclasses.replace(config, num_agents=config.num_agents or before)
    grown = type(agent)(env, config).to(env.device)
    grown.name, grown.episodes = agent.name, agent.episodes
    grown.carried = round(agent.passes * env.trainer.optimization.epoch) - agent.episodes
    known = agent.state_dict()
    state = {key: _extended(known[key], fresh) if key in known else fresh for key, fresh in grown.state_dict().items()}
    grown.load_state_dict(state)
    env.rewards.share.total = old.rewards.share.total.clone()
    return grown


def _extended(known: Any, fresh: Any) -> Any:
    """Fresh tensor, or a dictionary of some, whose first entries along every axis are the known ones.

    Tables and stacked approximators are agent by agent, and a one-hot task is joined at the end, so that what is new
    comes last everywhere.
    """
    if isinstance(known, Mapping):
        return {key: _extended(known[key], fresh[key]) for key in fresh}
    if known.ndim != fresh.ndim or any(old > new for old, new in zip(known.shape, fresh.shape, strict=True)):
        raise ValueError(f"an agent's state of shape {tuple(known.shape)} does not grow into {tuple(fresh.shape)}")
    grown = fresh.clone()
    grown[tuple(slice(size) for size in known.shape)] = known
    return grown
