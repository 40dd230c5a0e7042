"""After training: a checkpoint with only the blocks in use, and one task's route as an exported program."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from routing_gym.agents import Agent, extract, prune
from routing_gym.blocks import count_macs
from routing_gym.envs import classified_right, evaluate
from routing_gym.envs.evaluation import EVALUATION_BATCH
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import say
from routing_gym.experiments.engine.metrics import count_parameters
from routing_gym.experiments.engine.plugins import Pluggable
from routing_gym.experiments.engine.settings import writable_file
from routing_gym.experiments.train import load_with_env
from routing_gym.files import write_atomically
from routing_gym.networks import Deployable
from routing_gym.tasks import MultiTaskDataset

EXPORTED = ".pt2"


@dataclasses.dataclass(frozen=True)
class Prune(Pluggable):
    """Drop the blocks no task takes; writes a checkpoint of what is left, for `evaluate` and `Agent.load`.

    Attributes:
        checkpoint: A file written by `train`, `compare` or `agent.save`.
        out: The checkpoint to write.
        env_options: Options of the environment to change, as NAME=VALUE.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    out: Path
    env_options: tuple[str, ...] = ()

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        agent = load_with_env(self.checkpoint, self.env_options)
        writable_file(self.out)
        try:
            smaller = prune(agent)
        except ValueError as error:
            raise UsageError(str(error)) from error
        smaller.save(self.out)
        table = Table(title=f"{agent.name}, {self.checkpoint}, split test")
        for column in ("", "blocks", "parameters", "accuracy %", "MACs per instance"):
            table.add_column(column, justify="right")
        for name, judged in (("before", agent), ("after", smaller)):
            result = evaluate(judged, judged.env)
            table.add_row(name, _blocks(judged), *_row(count_parameters(judged), result.accuracy, result.macs))
        console.print(table)
        say(console, f"Written to {self.out}")
        return 0


def _blocks(agent: Agent) -> str:
    network = agent.env.network
    assert isinstance(network, Deployable)
    return " + ".join(map(str, network.block_counts))


def _row(parameters: int, accuracy: float, macs: float) -> tuple[str, str, str]:
    return f"{parameters:,}", f"{100 * accuracy:.2f}", f"{macs:,.0f}"


@dataclasses.dataclass(frozen=True)
class Extract(Pluggable):
    """Write one task's route as a plain network from uint8 pixels to logits, for `torch.export.load`.

    Attributes:
        checkpoint: A file written by `train`, `compare`, `prune` or `agent.save`.
        task: The task.
        out: The file to write, ending in .pt2.
        env_options: Options of the environment to change, as NAME=VALUE.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    task: int
    out: Path
    env_options: tuple[str, ...] = ()

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        agent = load_with_env(self.checkpoint, self.env_options)
        num_tasks, test = agent.env.dataset.num_tasks, agent.env.datasets["test"]
        if not 0 <= self.task < num_tasks:
            raise UsageError(f"--task must lie in [0, {num_tasks}), got {self.task}")
        if self.out.suffix != EXPORTED:
            raise UsageError(f"--out must end in {EXPORTED}, which is what torch.export.load reads, got {self.out}")
        writable_file(self.out)
        try:
            static = extract(agent, self.task).cpu()
        except ValueError as error:
            raise UsageError(str(error)) from error
        # Of two rows, because torch would make a constant of one.
        images = torch.zeros(2, *test.input_shape, dtype=torch.uint8)
        batch = torch.export.Dim("batch")
        program = torch.export.export(static, (images,), dynamic_shapes=({0: batch},))
        file = io.BytesIO()
        with warnings.catch_warnings():
            # Said of weights that lie channels last; it does not matter on the CPU.
            warnings.filterwarnings("ignore", "No complete tensor found")
            torch.export.save(program, file)
        write_atomically(self.out, lambda out: out.write(file.getvalue()))
        table = Table(title=f"{agent.name}, {self.checkpoint}, task {self.task}, split test")
        for column in ("", "parameters", "accuracy %", "MACs per instance"):
            table.add_column(column, justify="right")
        routed = evaluate(agent, agent.env)
        accuracy, macs = routed.task_accuracy[self.task], routed.task_macs[self.task]
        table.add_row("routed", *_row(count_parameters(agent), accuracy, macs))
        accuracy, macs = task_accuracy(program.module(), test, self.task), count_macs(static, images[:1])
        table.add_row("extracted", *_row(sum(p.numel() for p in static.parameters()), accuracy, macs))
        console.print(table)
        say(console, f"Written to {self.out}")
        return 0


@torch.no_grad()
def task_accuracy(classify: Callable[[Tensor], Tensor], dataset: MultiTaskDataset, task: int) -> float:
    """Return the share of a task's instances that are classified right.

    Args:
        classify: Takes `(B, C, H, W)` uint8 on the CPU, gives logits.
        dataset: The split.
        task: The task.
    """
    rows = (dataset.task == task).nonzero().flatten()
    right = [
        classified_right(classify(dataset.images[dataset.image[part]].cpu()), dataset.label[part].cpu())
        for part in rows.split(EVALUATION_BATCH)
    ]
    return float(torch.cat(right).double().mean())
