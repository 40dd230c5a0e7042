"""Training one agent, and judging a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from routing_gym.agents import Agent, read
from routing_gym.envs import core_of, evaluate
from routing_gym.experiments.engine import folders
from routing_gym.experiments.engine.arguments import Tunable
from routing_gym.experiments.engine.command import RunFailedError, UsageError
from routing_gym.experiments.engine.console import say
from routing_gym.experiments.engine.distributed import joined
from routing_gym.experiments.engine.folders import Keeping, locked
from routing_gym.experiments.engine.instances import write_routes
from routing_gym.experiments.engine.launchers import InProcess, perform, try_out
from routing_gym.experiments.engine.plugins import Pluggable
from routing_gym.experiments.engine.records import Record, read_run
from routing_gym.experiments.engine.run import Run, finite
from routing_gym.experiments.engine.settings import (
    TrainingSettings,
    check_agents,
    each_once,
    parse_options,
    writable_file,
    writable_folder,
)
from routing_gym.registration import env_ids

OF_GYMNASIUM = {"num_envs", "vectorization_mode", "vector_kwargs", "wrappers"}
"""Arguments of `gymnasium.make_vec` that are none of the environment's: what is judged does not depend on them."""


@dataclasses.dataclass(frozen=True)
class Train(Keeping, Pluggable, Tunable):
    """Train one agent and the blocks; writes checkpoint.pt after every epoch, results.json, TensorBoard events.

    `torchrun --nproc-per-node N -m routing_gym.experiments.cli train ...` shares every batch among N processes.

    Attributes:
        training: How agent and blocks are trained.
        agent: The agent; `routing-gym list` prints them.
        seed: First weights, order of instances and the agent's choices.
        agent_options: Options of the agent as NAME=VALUE, e.g. policy_rate=0.02.
        split: What it is judged on in the end.
        judge_at: Prices of computation to judge it at besides, where it sees the price.
        compare_paths: Find out in the end which paths images take, and whether they keep them when augmented.
        keep_logits: Keep in the end what the network says of every image of the split.
        out: Folder for everything that is written.
    """

    training: Annotated[TrainingSettings, tyro.conf.arg(name="")] = TrainingSettings()
    agent: str = "wpl"
    seed: int = 0
    agent_options: tuple[str, ...] = ()
    split: Literal["train", "validation", "test"] = "test"
    judge_at: tuple[float, ...] = ()
    compare_paths: bool = False
    keep_logits: bool = False
    out: Path = Path("results/train")

    def execute(self, console: Console) -> int:
        """Run it; return the exit status.

        Raises:
            RunFailedError: The run failed; names the reason and what is kept.
        """
        with joined(self.out, console) as out:
            dataclasses.replace(self, out=out)._perform(console)
        return 0

    def _perform(self, console: Console) -> None:
        self.training.check()
        check_agents((self.agent,))
        each_once("agent_options", self.agent_options)
        training, of_agent = self.settings_of(self.training, self.agent, self.agent_options)
        also = (self.split, self.judge_at, self.compare_paths, self.keep_logits)
        run = Run(training, self.agent, self.seed, self.out, of_agent, *also, plugins=self.plugin)

        def show(run: Run, record: Record) -> None:
            values = {**record, **{key: record[f"{self.split}_{key}"] for key in ("accuracy", "loss")}}
            title = f"{self.agent} on {self.training.env}, split {self.split}"
            console.print(evaluation_table(values, title, values.get("task_names", ())))
            events = ", TensorBoard events" if "tensorboard" in self.training.callbacks else ""
            say(console, f"Written to {self.out}: checkpoint.pt, results.json{events}")

        with ExitStack() as stack:
            if self.out.is_dir():
                stack.enter_context(locked(self.out))
            folders.check_free(self.out, resume=self.resume, overwrite=self.overwrite, one_run=True)
            if self.resume and (path := self.out / "results.json").exists():
                read_run(path)  # the run may be longer by now, but not one of another version
            runs, failures = try_out([run], console, self.debug, fresh=self.overwrite)
            if runs:
                stack.enter_context(locked(writable_folder(self.out)))
                if self.overwrite:
                    folders.set_aside(self.out)
                failures = perform(runs, InProcess(), show, console, self.debug)
            if failures:
                raise RunFailedError("; ".join(filter(None, (*failures, folders.what_is_aside(self.out)))))
            if aside := folders.drop_aside(self.out):
                say(console, aside)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfCheckpoint(Pluggable):
    """A command on a checkpoint.

    Attributes:
        checkpoint: A file written by `train`, `compare`, `prune` or `agent.save`.
        env_options: Options of the environment to change, as NAME=VALUE.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    env_options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(OfCheckpoint):
    """Judge a checkpoint: accuracy and cost of the deterministic policy on a whole split.

    Attributes:
        split: The split to judge on.
        json: Print one JSON object instead of a table.
        routes: A CSV file to write besides, a row per instance: index, task, label, predicted, right, macs, and the
            choice at each decision (several tensors joined by +).
    """

    split: Literal["train", "validation", "test"] = "test"
    json: bool = False
    routes: Path | None = None

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        agent = load_with_env(self.checkpoint, self.env_options)
        if self.split not in agent.env.datasets:
            raise UsageError(f"--split must be one of {', '.join(agent.env.datasets)} here, got {self.split}")
        if self.routes is not None:
            writable_file(self.routes, "--routes", reads=self.checkpoint)
        found = evaluate(agent, agent.env, split=self.split)
        values = {**dataclasses.asdict(found), "paths": found.paths}
        del values["route"], values["taken"]  # as long as the split
        if self.routes is not None:
            write_routes(agent, self.split, self.routes)
        if self.json:
            plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}
            console.print_json(json.dumps(finite({"agent": agent.name, **plain})), ensure_ascii=True)
        else:
            title = f"{agent.name}, {self.checkpoint}, split {self.split}"
            console.print(evaluation_table(values, title, agent.env.dataset.task_names))
        return 0


def load_with_env(path: Path, env_options: tuple[str, ...] = ()) -> Agent:
    """Load a checkpoint and make the environment it was trained in.

    Raises:
        UsageError: Not a checkpoint, or one that does not name an environment registered with this library.
    """
    each_once("env_options", env_options)
    try:
        checkpoint = read(path)
        if checkpoint["env_id"] is None:
            raise UsageError(
                f"{path} was trained in an environment that no id and options describe (a network of your own, say): "
                "load it with Agent.load(path, env)"
            )
        if checkpoint["env_id"] not in env_ids():  # Gymnasium imports what stands before a colon
            raise UsageError(
                f"{path} was trained in {checkpoint['env_id']!r}, which is not registered here: name the file that "
                f"registers it with --plugin; known are {', '.join(env_ids())}"
            )
        given = parse_options("env_options", env_options)
        if decided := given.keys() & OF_GYMNASIUM:
            raise UsageError(f"--env-options cannot set {', '.join(sorted(decided))}, which changes nothing here")
        options = {name: value for name, value in checkpoint["env_kwargs"].items() if name not in OF_GYMNASIUM} | given
        env = gymnasium.make_vec(checkpoint["env_id"], num_envs=checkpoint["num_envs"], **options)
        return Agent.load(path, core_of(env))
    except FileNotFoundError as error:
        raise UsageError(f"no such checkpoint: {path}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def table_of(title: str, *columns: str) -> Table:
    """Empty table of numbers."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def evaluation_table(values: Mapping[str, Any], title: str, names: Sequence[str] = ()) -> Table:
    """Accuracy and cost, whole and per task, from the fields of an `Evaluation`; tasks by their names, if any."""
    table = table_of(title, "task", "accuracy %", "MACs per instance")
    for task, (accuracy, macs) in enumerate(zip(values["task_accuracy"], values["task_macs"], strict=True)):
        table.add_row(" ".join([str(task), *names[task : task + 1]]), *accuracy_and_macs(accuracy, macs))
    table.add_section()
    table.add_row("all", *accuracy_and_macs(values["accuracy"], values["macs"]))
    table.caption = (
        f"loss {values['loss']:.4f}, router's own MACs {values['router_macs']:,.0f}, "
        f"blocks used {values['blocks_used']}, paths {values['paths']}"
    )
    return table


def accuracy_and_macs(accuracy: float, macs: float) -> tuple[str, str]:
    """Cells of a table."""
    return f"{100 * accuracy:.2f}", f"{macs:,.0f}"
