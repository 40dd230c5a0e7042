"""One cell of an experiment: an agent with its options, an environment, a seed, and the folder it is run in."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from routing_gym.agents import Agent, read
from routing_gym.envs import macs_of
from routing_gym.experiments.engine.folders import locked
from routing_gym.experiments.engine.logits import keep_logits, routed
from routing_gym.experiments.engine.paths import judged_paths
from routing_gym.experiments.engine.records import Record, check_curve, check_run, read_run, write_results
from routing_gym.experiments.engine.run import Curve, Result, checked_policy, judged_by_price, record_of, run
from routing_gym.experiments.engine.settings import TrainingSettings, UsageError, build_agent, writable_folder
from routing_gym.experiments.engine.stopping import unbroken
from routing_gym.files import clear_orphans

PATHS = "paths.npz"
"""The file in a run's folder that holds the paths of all images."""

LOGITS = "logits.npz"
"""The file in a run's folder that holds what is said of all images."""

WHEREABOUTS = {"data_dir", "device"}
"""Options that say where something lies, not what is computed."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run that is known by what it asks for, can be interrupted, and goes on where it stopped.

    Its folder holds `checkpoint.pt` (agent, blocks, optimisers, random states; written whole after every epoch) and,
    when it is finished, `results.json`.

    Attributes:
        training: How agent and blocks are trained.
        agent: The agent.
        seed: First weights, order of instances and the agent's choices.
        folder: Where everything is written.
        agent_options: Options of the agent as NAME=VALUE.
        split: What it is judged on in the end.
        judge_at: Prices of computation it is judged at in the end, one by one, besides.
        compare_paths: Find out in the end which paths images take, and whether they keep them when they are augmented.
        keep_logits: Keep in the end what the agent's network says of every image of the split.
    """

    training: TrainingSettings
    agent: str
    seed: int
    folder: Path
    agent_options: tuple[str, ...] = ()
    split: str = "test"
    judge_at: tuple[float, ...] = ()
    compare_paths: bool = False
    keep_logits: bool = False

    def make(self) -> Agent:
        """Make agent and environment.

        Raises:
            UsageError: An option one of them refuses.
        """
        env = self.training.make_env(self.agent, self.seed)
        if self.split not in env.datasets:
            raise UsageError(
                f"{env.dataset.name} has no {self.split} split, only {', '.join(env.datasets)}; an option of the data "
                f"holds some out (`routing-gym list {self.training.env}`)"
            )
        return build_agent(self.agent, env, self.seed, self.agent_options)

    @property
    def asked(self) -> dict[str, Any]:
        """What the run is known by."""
        return {
            "env": self.training.env,
            "env_options": sorted(self.training.env_options),
            "agent": self.agent,
            "agent_options": sorted(self.agent_options),
            "batch_size": self.training.batch_size,
            "epochs": self.training.epochs,
            "seed": self.seed,
            "split": self.split,
            **({"judge_at": list(self.judge_at)} if self.judge_at else {}),
            **({"compare_paths": True} if self.compare_paths else {}),
            **({"keep_logits": True} if self.keep_logits else {}),
        }

    def finished(self) -> Record | None:
        """Return the record of this very run, if it is finished.

        Raises:
            UsageError: The folder holds the results of another run, or damaged ones.
        """
        path = self.folder / "results.json"
        if not path.exists():
            return None
        record = read_run(path)
        check_same(path, record["asked"], self.asked)
        check_same(path, record, {key: value for key, value in self.asked.items() if key in record})
        return record

    def try_out(self, *, batch: bool, fresh: bool) -> None:
        """Find out what would go wrong, on a throwaway copy: no random number and no file is touched.

        Args:
            batch: Route one batch, train on it and judge one; else see only whether the checkpoint, where there is
                one, is one to go on with.
            fresh: The checkpoint is about to be replaced.

        Raises:
            UsageError: A wrong option, or a checkpoint of other options.
        """
        checkpoint = self.folder / "checkpoint.pt"
        goes_on = not fresh and checkpoint.exists()
        if not (batch or goes_on):
            return
        with _no_trace():
            agent = self.make()
            if goes_on:
                agent, _ = resumed(checkpoint, agent, self.training.epochs)
            if batch:
                agent.learn(agent.env, agent.env.num_envs)
                next(routed(agent, self.split))
                macs_of(agent, agent.env.network)
                checked_policy(agent)

    def run(self, *, after_epoch: Callable[[Curve], None] | None = None, **more: Any) -> tuple[Result, Record]:
        """Train and judge, going on from the folder's checkpoint where there is one.

        Args:
            after_epoch: Called with the curve after every epoch.
            more: What else the record should hold.

        Raises:
            UsageError: The checkpoint is of other options, or another command is at work in the folder.
            TrainingDivergedError: The loss is no longer a number.
        """
        agent, curve = self.make(), None
        with locked(writable_folder(self.folder)):
            folder = self.folder
            clear_orphans(folder)
            if (folder / "checkpoint.pt").exists():
                agent, curve = resumed(folder / "checkpoint.pt", agent, self.training.epochs)
            result = run(agent, agent.env, self.training.epochs, folder, curve, after_epoch, split=self.split)
            if self.judge_at:
                more["by_price"] = judged_by_price(result, self.judge_at)
            if self.compare_paths:
                more["compared_paths"] = judged_paths(result, self.seed, folder / PATHS)
            if self.keep_logits:
                keep_logits(result.agent, self.split, folder / LOGITS)
            record = record_of(result, self.training.env, self.seed, asked=self.asked, **more)
            check_run(record)
            with unbroken():
                write_results([record], folder / "results.json")
        return result, record


def check_same(path: Path, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse the record of a run that another is not to be taken for.

    Args:
        path: Where it stands.
        saved: What it was asked for.
        asked: What is asked for now.

    Raises:
        UsageError: Names file and option.
    """
    for key, value in asked.items():
        if saved.get(key) != value:
            raise UsageError(
                f"{path} holds another run: its {key} is {saved.get(key)!r}, asked for is {value!r}; take "
                "another folder, or delete this one"
            )


@contextmanager
def _no_trace() -> Iterator[None]:
    """Leave global random numbers and the number of threads as they were."""
    python, legacy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
            torch.set_num_threads(threads)


def resumed(path: Path, fresh: Agent, epochs: int) -> tuple[Agent, Curve]:
    """Load a checkpoint to go on with, if it was trained with the very options given now.

    Args:
        path: The checkpoint.
        fresh: An agent made with the options given now.
        epochs: How many epochs there should be in the end.

    Raises:
        UsageError: Not a checkpoint, not one of `train`, or one of other options: names the first.
    """
    try:
        checkpoint = read(path)
        env = fresh.env
        assert env.spec is not None
        run = (
            {"agent": checkpoint["agent"], "batch_size": checkpoint["num_envs"]},
            {"agent": fresh.name, "batch_size": env.num_envs},
        )
        of_agent = (checkpoint["config"], dataclasses.asdict(fresh.config))
        of_env = (checkpoint["env_kwargs"], env.spec.kwargs)
        for saved, ours in (run, of_agent, of_env):  # one by one: agents and environments have options of one name
            for option in sorted((ours.keys() | saved.keys()) - WHEREABOUTS):
                if ours.get(option) != saved.get(option):
                    raise UsageError(
                        f"{path} was trained with {option}={saved.get(option)!r}, now it is {ours.get(option)!r}: "
                        "resume with the same options, or train into another folder"
                    )
        if "curve" not in checkpoint["extra"]:
            raise UsageError(f"{path} was not written by `routing-gym train`")
        check_curve(checkpoint["extra"]["curve"], f"{path}: curve")
        done = len(checkpoint["extra"]["curve"]["epoch"])
        if done > epochs:
            raise UsageError(f"{path} was trained for {done} epochs already, asked for are {epochs}")
        agent = Agent.load(path, env)
        torch.set_rng_state(checkpoint["torch_generator"])
    except (ValueError, RuntimeError) as error:  # a tensor where a value belongs cannot be compared
        raise UsageError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    return agent, Curve(**checkpoint["extra"]["curve"])
