"""What an epoch costs, against the number of blocks (Fig. 13 of Rosenbaum et al. 2018)."""

from __future__ import annotations

import dataclasses
import statistics
from functools import partial
from pathlib import Path

import torch

from routing_gym.agents import agent_class, make_agent, train_batch
from routing_gym.envs import RoutingVectorEnv
from routing_gym.experiments.benchmarks.timing import in_turns
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.machine import device_name
from routing_gym.experiments.engine.records import Record, read_results, write_results
from routing_gym.experiments.engine.settings import TrainingSettings
from routing_gym.networks import make_network
from routing_gym.registration import ENV_IDS

AGENTS = ("wpl", "task-specific-all", "cross-stitch")
BLOCKS = (2, 3, 5, 10, 20, 40)
ROUNDS = 15


def cost_against_number_of_blocks(base: TrainingSettings, path: Path) -> list[Record]:
    """Time training with 2 to 40 blocks per layer: a block is added per task, as in the paper, and beyond the last.

    Batches of all agents and numbers of blocks are taken in turns, so that changes in the machine's speed meet all
    alike; an epoch is the median batch times the number of batches.

    Args:
        base: Environment, batch size, device, threads and data folder.
        path: Where the records are kept; what stands there already is not measured again.

    Returns:
        One record per (agent, blocks): `agent`, `blocks`, `tasks`, `seconds_per_epoch`, `seconds_per_epoch_and_task`,
        and what it was measured with: `env`, `batch_size`, `device`, `threads`, `torch`.

    Raises:
        UsageError: The data are missing, or `path` holds what was measured with something else.
    """
    whole = base.make_env("shared", 0)  # the data are loaded once, and shared by all
    setting = {
        "env": base.env,
        "batch_size": base.batch_size,
        "device": device_name(whole.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if path.exists():
        known = read_results(path)
        for key, value in setting.items():
            if known[0].get(key) != value:
                was = f"{path} was measured with {key}={known[0].get(key)!r}, now it is {value!r}"
                raise UsageError(f"{was}: delete it, or take another folder")
        return known
    agents = {
        (name, blocks): make_agent(name, _with_blocks(whole, base.env, name, blocks)).train()
        for blocks in BLOCKS
        for name in AGENTS
    }
    steps = {case: partial(train_batch, agent, agent.env) for case, agent in agents.items()}
    records = []
    for (name, blocks), times in in_turns(steps, ROUNDS, whole.device).items():
        env = agents[name, blocks].env
        tasks, seconds = env.dataset.num_tasks, statistics.median(times) * len(env.dataset) / env.num_envs
        record = {"agent": name, "blocks": blocks, "tasks": tasks, "seconds_per_epoch": seconds}
        records.append({**record, "seconds_per_epoch_and_task": seconds / tasks, **setting})
    write_results(records, path)
    return records


def _with_blocks(whole: RoutingVectorEnv, env_id: str, agent: str, blocks: int) -> RoutingVectorEnv:
    """Return an environment of as many tasks, if there are, as blocks per layer, in the form an agent needs."""
    tasks = min(blocks, whole.dataset.num_tasks)
    data = {split: part.select_tasks(range(tasks)) for split, part in whole.datasets.items()}
    train = data[whole.config.split]
    network = make_network(
        ENV_IDS[env_id]["network"],
        num_tasks=tasks,
        num_classes=train.num_classes,
        input_shape=train.input_shape,
        num_blocks=blocks,
        **agent_class(agent).env_kwargs,
    )
    options = {**dataclasses.asdict(whole.config), "action_type": agent_class(agent).action_type}
    return RoutingVectorEnv(network, data, whole.num_envs, **options)
