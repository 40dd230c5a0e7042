"""After training: a checkpoint with only the blocks in use, and what was trained as an exported program."""

from __future__ import annotations

import dataclasses
import io
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from routing_gym.agents import Agent, extract, prune
from routing_gym.agents.trained.dense import exported
from routing_gym.agents.trained.reshape import number_of
from routing_gym.blocks import count_macs
from routing_gym.envs import classified_right, evaluate
from routing_gym.envs.evaluation import EVALUATION_BATCH
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import one_line, say
from routing_gym.experiments.engine.metrics import count_parameters
from routing_gym.experiments.engine.settings import writable_file
from routing_gym.experiments.train import OfCheckpoint, accuracy_and_macs, load_with_env, table_of
from routing_gym.files import write_atomically
from routing_gym.networks import Deployable
from routing_gym.tasks import MultiTaskDataset

READERS = {".pt2": "torch.export.load", ".onnx": "ONNX Runtime"}
"""What reads an exported program, by the ending of its file."""
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
        writable_file(self.out, reads=self.checkpoint)
        try:
            smaller = prune(agent)
        except ValueError as error:
            raise UsageError(str(error)) from error
        split = _judged_on(agent)
        table = table_of(f"{agent.name}, {self.checkpoint}, split {split}", "", "blocks", *COLUMNS)
        for name, judged in (("before", agent), ("after", smaller)):
            network, result = judged.env.network, evaluate(judged, judged.env, split=split)
            assert isinstance(network, Deployable)
            blocks = " + ".join(map(str, network.block_counts))
            numbers = accuracy_and_macs(result.accuracy, result.macs)
            table.add_row(name, blocks, f"{count_parameters(judged):,}", *numbers)
        smaller.save(self.out)
        console.print(table)
        say(console, f"Written to {self.out}")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extract(OfCheckpoint):
    """Write one task's route, or network and agent together, as a plain network from images to logits.

    Attributes:
        out: The file to write, ending in .pt2 for `torch.export.load`, or in .onnx.
        task: The task whose single route is written, its number or its name; by default network and agent are, in
            which all blocks run and decisions weigh. Where there are several tasks that of an image is an input then.
        k_cpt: What a multiply-accumulate costs, where network and agent are written and the agent sees the price.
    """

    out: Path
    task: str | None = None
    k_cpt: float | None = None

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        agent = load_with_env(self.checkpoint, self.env_options)
        split, task = _judged_on(agent), self._number(agent)
        data = agent.env.datasets[split]
        if self.out.suffix not in READERS:
            named = " or ".join(f"{ending} ({reader} reads it)" for ending, reader in READERS.items())
            raise UsageError(f"--out must end in {named}, got {self.out}")
        writable_file(self.out, reads=self.checkpoint)
        try:
            plain = extract(agent, task, k_cpt=self.k_cpt).cpu()
        except ValueError as error:
            raise UsageError(str(error)) from error
        rows = torch.zeros(2, *data.input_shape, dtype=data.images.dtype), torch.zeros(2, dtype=torch.int64)
        inputs = rows[: getattr(plain, "inputs", 1)]
        program = exported(plain, *inputs)
        content = _onnx(program, len(inputs)) if self.out.suffix == ".onnx" else _pt2(program)
        routed = evaluate(agent, agent.env, split=split, k_cpt=self.k_cpt)
        if task is None:
            before, what = accuracy_and_macs(routed.accuracy, routed.macs), "all tasks"
        else:
            before, what = accuracy_and_macs(routed.task_accuracy[task], routed.task_macs[task]), f"task {self.task}"
        macs = count_macs(plain, *(part[:1] for part in inputs))
        after = accuracy_and_macs(accuracy_of(program.module(), data, task, len(inputs)), macs)
        table = table_of(f"{agent.name}, {self.checkpoint}, {what}, split {split}", "", *COLUMNS)
        table.add_row("routed", f"{count_parameters(agent):,}", *before)
        table.add_row("extracted", f"{sum(p.numel() for p in plain.parameters()):,}", *after)
        write_atomically(self.out, lambda out: out.write(content))
        console.print(table)
        say(console, f"Written to {self.out}")
        return 0

    def _number(self, agent: Agent) -> int | None:
        """Number of the task, None for all."""
        if self.task is None:
            return None
        numbers = {str(number): number for number in range(agent.num_tasks)}
        try:
            return number_of(agent, numbers.get(self.task, self.task))
        except ValueError as error:
            raise UsageError(f"--{error}") from error


def _judged_on(agent: Agent) -> str:
    """The split that tells most of how good it is: `test`, where there is one."""
    return next(split for split in ("test", "validation", *agent.env.datasets) if split in agent.env.datasets)


def _pt2(program: torch.export.ExportedProgram) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Said of weights that lie channels last; it does not matter on the CPU.
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(program, file)
    return file.getvalue()


def _onnx(program: torch.export.ExportedProgram, inputs: int) -> bytes:
    """ONNX file of a program of so many inputs, weights included; a `UsageError` if what writes it is not installed."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of every library that is not there
    batch = {0: "batch"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it uses itself, and that inputs share the axis "batch"
            model = torch.onnx.export(
                program, (), dynamo=True, verbose=False, output_names=["logits"], dynamic_shapes=(batch,) * inputs
            )
    except ImportError as error:
        raise UsageError(f"--out FILE.onnx needs its extra: pip install 'routing-gym[onnx]' ({error})") from error
    except torch.onnx.errors.OnnxExporterError as error:
        missing = re.search(r"No ONNX function found for (?:<OpOverload\(op=')?([\w.]+)", str(error))
        what = f"there is no {missing[1]} in ONNX" if missing else one_line(error)
        raise UsageError(f"this agent or network cannot be written to .onnx, {what}: write .pt2") from error
    assert model is not None
    return model.model_proto.SerializeToString()


@torch.no_grad()
def accuracy_of(classify: Callable[..., Tensor], dataset: MultiTaskDataset, task: int | None, inputs: int = 1) -> float:
    """Share of a task's instances, or of all, that are classified right.

    By a function from images `(B, C, H, W)`, and where it takes two `inputs` from tasks `(B,)`, to logits.
    """
    rows = (dataset.task == (dataset.task if task is None else task)).nonzero().flatten()
    right = []
    for part in rows.split(EVALUATION_BATCH):
        given = dataset.images[dataset.image[part]].cpu(), dataset.task[part].cpu()
        right.append(classified_right(classify(*given[:inputs]), dataset.label[part].cpu()))
    return float(torch.cat(right).double().mean())
