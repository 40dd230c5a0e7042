"""What an epoch costs, against the number of blocks (Fig. 13 of Rosenbaum et al. 2018)."""

from __future__ import annotations

import dataclasses
import json
import statistics
from functools import partial
from pathlib import Path

import torch

from routing_gym.agents import train_batch
from routing_gym.experiments.bench import in_turns
from routing_gym.experiments.report import Record, write_results
from routing_gym.experiments.settings import TrainingSettings, build_agent

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
        `device`, `threads`.
    """
    if path.exists():
        known: list[Record] = json.loads(path.read_text())
        return known
    steps, sizes = {}, {}
    num_tasks = base.make_env("shared", 0).dataset.num_tasks
    for blocks in BLOCKS:
        tasks = min(blocks, num_tasks)
        settings = dataclasses.replace(
            base, env_options=(*base.env_options, f"num_tasks={tasks}", f"num_blocks={blocks}")
        )
        for name in AGENTS:
            env = settings.make_env(name, 0)
            agent = build_agent(name, env, 0, ()).train()
            steps[f"{name} {blocks}"] = partial(train_batch, agent, env)
            sizes[f"{name} {blocks}"] = (name, blocks, tasks, len(env.dataset) / env.num_envs)
    times = in_turns(steps, ROUNDS)
    records = []
    for key, (name, blocks, tasks, batches) in sizes.items():
        seconds = statistics.median(times[key]) * batches
        records.append(
            {
                "agent": name,
                "blocks": blocks,
                "tasks": tasks,
                "seconds_per_epoch": seconds,
                "seconds_per_epoch_and_task": seconds / tasks,
                "device": base.device,
                "threads": torch.get_num_threads(),
            }
        )
    write_results(records, path)
    return records
