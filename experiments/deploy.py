"""After training: a checkpoint with only the blocks in use, and one task's route as an exported program."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from routing_gym.agents import extract, prune
from routing_gym.blocks import count_macs
from routing_gym.envs import classified_right, evaluate
from routing_gym.envs.evaluation import EVALUATION_BATCH
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import say
from routing_gym.experiments.engine.metrics import count_parameters
from routing_gym.experiments.engine.settings import writable_file
from routing_gym.experiments.train import OfCheckpoint, accuracy_and_macs, load_with_env, table_of
from routing_gym.files import write_atomically
from routing_gym.networks import Deployable
from routing_gym.tasks import MultiTaskDataset

EXPORTED = ".pt2"
COLUMNS = ("parameters", "accuracy %", "MACs per instance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune(OfCheckpoint):
    """Drop the blocks no task takes; writes a checkpoint of what is left, for `evaluate` and `Agent.load`.

    Attributes:
        out: The checkpoint to write.
    """

    out: Path

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        agent = load_with_env(self.checkpoint, self.env_options)
        writable_file(self.out)
        try:
            smaller = prune(agent)
        except ValueError as error:
            raise UsageError(str(error)) from error
        smaller.save(self.out)
        table = table_of(f"{agent.name}, {self.checkpoint}, split test", "", "blocks", *COLUMNS)
        for name, judged in (("before", agent), ("after", smaller)):
            network, result = judged.env.network, evaluate(judged, judged.env)
            assert isinstance(network, Deployable)
            blocks = " + ".join(map(str, network.block_counts))
            numbers = accuracy_and_macs(result.accuracy, result.macs)
            table.add_row(name, blocks, f"{count_parameters(judged):,}", *numbers)
        console.print(table)
        say(console, f"Written to {self.out}")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extract(OfCheckpoint):
    """Write one task's route as a plain network from uint8 pixels to logits, for `torch.export.load`.

    Attributes:
        task: The task, its number or its name.
        out: The file to write, ending in .pt2.
    """

    task: str
    out: Path

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        agent = load_with_env(self.checkpoint, self.env_options)
        num_tasks, test = agent.env.dataset.num_tasks, agent.env.datasets["test"]
        known = [str(number) for number in range(num_tasks)], list(agent.env.dataset.task_names)
        task = next((names.index(self.task) for names in known if self.task in names), None)
        if task is None:
            named = f" or be one of {known[1]}" if known[1] else ""
            raise UsageError(f"--task must lie in [0, {num_tasks}){named}, got {self.task}")
        if self.out.suffix != EXPORTED:
            raise UsageError(f"--out must end in {EXPORTED}, which is what torch.export.load reads, got {self.out}")
        writable_file(self.out)
        try:
            static = extract(agent, task).cpu()
        except ValueError as error:
            raise UsageError(str(error)) from error
        # Of two rows, because torch would make a constant of one.
        images = torch.zeros(2, *test.input_shape, dtype=torch.uint8)
        program = torch.export.export(static, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        file = io.BytesIO()
        with warnings.catch_warnings():
            # Said of weights that lie channels last; it does not matter on the CPU.
            warnings.filterwarnings("ignore", "No complete tensor found")
            torch.export.save(program, file)
        write_atomically(self.out, lambda out: out.write(file.getvalue()))
        routed, parameters = evaluate(agent, agent.env), sum(p.numel() for p in static.parameters())
        before = accuracy_and_macs(routed.task_accuracy[task], routed.task_macs[task])
        after = accuracy_and_macs(task_accuracy(program.module(), test, task), count_macs(static, images[:1]))
        table = table_of(f"{agent.name}, {self.checkpoint}, task {self.task}, split test", "", *COLUMNS)
        table.add_row("routed", f"{count_parameters(agent):,}", *before)
        table.add_row("extracted", f"{parameters:,}", *after)
        console.print(table)
        say(console, f"Written to {self.out}")
        return 0


@torch.no_grad()
def task_accuracy(classify: Callable[[Tensor], Tensor], dataset: MultiTaskDataset, task: int) -> float:
    """Share of a task's instances that are classified right, by a function from `(B, C, H, W)` uint8 to logits."""
    rows = (dataset.task == task).nonzero().flatten()
    right = [
        classified_right(classify(dataset.images[dataset.image[part]].cpu()), dataset.label[part].cpu())
        for part in rows.split(EVALUATION_BATCH)
    ]
    return float(torch.cat(right).double().mean())
