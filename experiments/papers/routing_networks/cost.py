"""What an epoch costs, against the number of blocks (Fig. 13 of Rosenbaum et al. 2018), and how much routing saves."""

from __future__ import annotations

import statistics
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium
import torch

from routing_gym.agents import make_agent, needs, train_batch
from routing_gym.envs import core_of
from routing_gym.experiments.benchmarks.timing import in_turns
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.figures import save
from routing_gym.experiments.engine.machine import device_name
from routing_gym.experiments.engine.records import Record, by_label, read_results, write_results
from routing_gym.experiments.engine.settings import TrainingSettings
from routing_gym.experiments.papers.figures import row_of, titled
from routing_gym.experiments.papers.reproduction import Runs, among, distinct
from routing_gym.experiments.papers.tables import heading, line

AGENTS = ("wpl", "task-specific-all", "cross-stitch")
BLOCKS = (2, 3, 5, 10, 20, 40)
ROUNDS = 15
PARTS: dict[str, dict[str, str]] = {"the paper's network": {}, "routed layers alone": {"network": "mlp"}}
"""What is trained, and its options; what routed layers cost hardly shows behind four convolutions."""
PRINTED = "paper: 85 %, 5.6 instead of 38 hours, with 20 tasks"
"""Of CIFAR-MTL (section 4)."""


def cost_against_number_of_blocks(base: TrainingSettings, path: Path) -> list[Record]:
    """Time training with 2 to 40 blocks per layer: a block is added per task, as in the paper, and beyond the last.

    Batches of all agents and numbers of blocks are taken in turns, so that changes in the machine's speed meet all
    alike; an epoch is the median batch times the number of batches.

    Args:
        base: Environment, batch size, device, threads and data folder.
        path: Where the records are kept; what stands there already is not measured again.

    Returns:
        One record per (network, agent, blocks): `network`, of `PARTS`, `agent`, `blocks`, `tasks`, `seconds_per_epoch`,
        `seconds_per_epoch_and_task`, and what it was measured with: `env`, `batch_size`, `device`, `threads`, `torch`.

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
        for key, value in {**setting, "network": next(iter(PARTS))}.items():
            if known[0].get(key) != value:
                was = f"{path} was measured with {key}={known[0].get(key)!r}, now it is {value!r}"
                raise UsageError(f"{was}: delete it, or take another folder")
        return known
    records = []
    for part, network in PARTS.items():
        agents = {}
        for blocks, name in product(BLOCKS, AGENTS):
            tasks = range(min(blocks, whole.dataset.num_tasks))
            data = {split: part.select_tasks(tasks) for split, part in whole.datasets.items()}
            options: dict[str, Any] = {"dataset": data, "num_blocks": blocks, **network, **needs(name)}
            env = gymnasium.make_vec(base.env, num_envs=whole.num_envs, device=base.device, **options)
            agents[name, blocks] = make_agent(name, core_of(env)).train()
        steps = {case: partial(train_batch, agent, agent.env) for case, agent in agents.items()}
        for (name, blocks), times in in_turns(steps, ROUNDS, whole.device).items():
            trained = agents[name, blocks].env.dataset
            count, seconds = trained.num_tasks, statistics.median(times) * len(trained) / whole.num_envs
            record = {"network": part, "agent": name, "blocks": blocks, "tasks": count, "seconds_per_epoch": seconds}
            records.append({**record, "seconds_per_epoch_and_task": seconds / count, **setting})
    write_results(records, path)
    return records


def cost_by_blocks(costs: Runs) -> list[str]:
    """Show seconds per epoch, and per epoch and task, against blocks, what is saved, and what it was measured on."""
    first, tasks = costs[0], max(distinct(costs, "tasks"))
    lines, less = heading(["blocks", *map(str, distinct(costs, "blocks"))]), []
    for network in distinct(costs, "network"):
        own = among(costs, network=network)
        for key, (agent, runs) in product(("seconds_per_epoch", "seconds_per_epoch_and_task"), by_label(own).items()):
            what = f"{agent}, {network}, {key.replace('seconds', 's').replace('_', ' ')}"
            lines.append(line([what, *(f"{run[key]:.2f}" for run in runs)]))
        seconds = {run["agent"]: run["seconds_per_epoch"] for run in among(own, tasks=tasks, blocks=tasks)}
        less.append(f"{network} {100 * (1 - seconds['wpl'] / seconds['cross-stitch']):.0f} %")
    saved = f"WPL takes less training time than cross-stitch, with a block for each of {tasks} tasks: {'; '.join(less)}"
    how = f"{first['env']}, batches of {first['batch_size']}, {first['device']}, {first['threads']} CPU threads"
    return [*lines, "", f"{saved} ({PRINTED}).", "", f"Measured on {how}."]


def cost_against_blocks(records: Runs, out: Path, title: str) -> None:
    """Draw seconds per epoch and task against the number of blocks (Fig. 13), a panel for each network."""
    networks = distinct(records, "network")
    figure = titled(title, 4.5 * len(networks), 3.6)
    for axes, network in zip(row_of(figure, len(networks)), networks, strict=True):
        for agent, runs in by_label(among(records, network=network)).items():
            costs = [run["seconds_per_epoch_and_task"] for run in runs]
            axes.plot([run["blocks"] for run in runs], costs, marker="o", label=agent)
        axes.set(xlabel="blocks per layer", ylabel="seconds per epoch and task", title=network)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, out)
