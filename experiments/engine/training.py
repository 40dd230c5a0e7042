"""Training of an agent and the blocks, epoch by epoch, with a checkpoint after each."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from routing_gym.agents import Agent
from routing_gym.envs import Evaluation, TrainingDivergedError, evaluate
from routing_gym.experiments.engine.callbacks import Callback, Session, tell
from routing_gym.experiments.engine.machine import give_back_freed_memory
from routing_gym.experiments.engine.metrics import METRICS, Judged
from routing_gym.experiments.engine.records import OF_TRAINING, Curve, read_arrays, write_arrays
from routing_gym.experiments.engine.stopping import stop_if_asked, unbroken
from routing_gym.networks import ways_out
from routing_gym.tasks import MultiTaskDataset

CHECKPOINT, BEST = "checkpoint.pt", "best.pt"
ROUTES = "routes.npz"
"""The file in a run's folder that holds its routes after every epoch."""


def begun_curve(agent: Agent) -> Curve:
    """Curve without epochs, judged on the validation split, or on the test split where nothing is held out."""
    names = ("epoch", *OF_TRAINING, *(metric.key("validation") for metric in METRICS.values() if metric.curve))
    split = "validation" if "validation" in agent.env.datasets else "test"
    return {"judged_on": split, **{name: [] for name in (*names, "exits", "use")}}


def train(session: Session, callbacks: Sequence[Callback], patience: int | None = None) -> None:
    """Train until there are as many epochs as there should be; judge after every epoch.

    `checkpoint.pt` is written after every epoch, so that a run that stops keeps its last good one, and `best.pt`, of
    the epoch with the highest validation accuracy; `routes.npz` holds the routes after every epoch; `policies.npz` says
    how the agent's policy developed, where it is in a table.

    Args:
        session: The run; its curve grows.
        callbacks: Told of batches and epochs.
        patience: Stop after so many epochs without a higher validation accuracy, and go back to the best checkpoint.

    Raises:
        TrainingDivergedError: The loss is no longer a number; names agent and step, or epoch.
        Stopped: A signal came; nothing was broken off but the epoch.
    """
    agent, curve, folder = session.agent, session.curve, session.folder
    env = agent.env
    batches = -(-env.trainer.optimization.epoch // env.num_envs)
    policies = PolicyLog(agent, folder / "policies.npz", len(curve["epoch"]), every=-(-batches // SNAPSHOTS_PER_EPOCH))
    routes = RouteLog(folder / ROUTES, len(curve["epoch"]))
    if curve["epoch"] and best_epoch(curve) == curve["epoch"][-1]:
        _keep_best(folder)  # a kill may have come between the two files
    while len(curve["epoch"]) < session.epochs and not _exhausted(curve, patience):
        seen: list[dict[str, Tensor]] = []
        start = time.perf_counter()

        def note(metrics: dict[str, Tensor], seen: list[dict[str, Tensor]] = seen) -> None:
            seen.append(metrics)
            policies.note()
            for callback in callbacks:
                tell(callback, "on_batch", session, metrics)
            stop_if_asked()

        with unbroken():
            agent.learn(env, batches * env.num_envs, note)
        wait_for(env.device)
        seconds = (curve["seconds"][-1] if curve["seconds"] else 0.0) + time.perf_counter() - start
        means = {key: torch.stack([batch[key] for batch in seen]).mean().item() for key in seen[0]}
        judged = judge(agent, curve["judged_on"], seconds, len(curve["epoch"]) + 1)
        _add_epoch(curve, means, judged)
        for callback in callbacks:
            tell(callback, "on_epoch", session, means)
        with unbroken():
            policies.write(curve["epoch"][-1])
            routes.write(curve["epoch"][-1], judged.evaluation.routes)
            agent.save(folder / CHECKPOINT, curve=curve)
            if best_epoch(curve) == curve["epoch"][-1]:
                _keep_best(folder)
        give_back_freed_memory()
    if patience is not None and best_epoch(curve) < curve["epoch"][-1]:
        session.agent = Agent.load(folder / BEST, env)


def best_epoch(curve: Curve) -> int:
    """First epoch with the highest validation accuracy."""
    accuracies = curve["validation_accuracy"]
    return curve["epoch"][accuracies.index(max(accuracies))]


def _exhausted(curve: Curve, patience: int | None) -> bool:
    return patience is not None and bool(curve["epoch"]) and curve["epoch"][-1] - best_epoch(curve) >= patience


def judge(agent: Agent, split: str, seconds: float, epochs: int) -> Judged:
    """Judge an agent on a split, after so many epochs and seconds of training.

    Raises:
        TrainingDivergedError: What the network says is no longer numbers.
    """
    evaluation = evaluate(agent, agent.env, split=split)
    if math.isnan(evaluation.loss):
        raise TrainingDivergedError(f"agent {agent.name!r}, after epoch {epochs}: the loss on the {split} split is NaN")
    instances = epochs * agent.env.trainer.optimization.epoch
    return Judged(agent, evaluation, seconds, instances / seconds if seconds else 0.0)


def _add_epoch(curve: Curve, means: dict[str, float], judged: Judged) -> None:
    """Append an epoch to a curve."""
    evaluation = judged.evaluation
    row: dict[str, Any] = {
        "epoch": len(curve["epoch"]) + 1,
        "train_loss": means["loss"],
        "train_accuracy": means["accuracy"],
        **{metric.key("validation"): metric.measure(judged) for metric in METRICS.values() if metric.curve},
        "exits": [int(evaluation.exits[way].sum()) for way in ways_out(judged.agent.env.network.decisions)],
        "use": rounded_use(evaluation),
    }
    for name, column in curve.items():
        if isinstance(column, list):
            column.append(row.get(name))  # None of a metric that is no longer registered


def rounded_use(evaluation: Evaluation) -> list[list[float]]:
    """Use of every choice, `(N, A)`, in as many digits as a picture shows."""
    return [[round(value, 4) for value in row] for row in evaluation.use.tolist()]


def _keep_best(folder: Path) -> None:
    """Let the best checkpoint be the last one, without writing it again where the file system has links."""
    part = folder / f".{BEST}.part"
    with suppress(FileNotFoundError):
        part.unlink()
    with suppress(FileNotFoundError):  # somebody has taken the checkpoint away: the next one will do
        try:
            os.link(folder / CHECKPOINT, part)
        except OSError:
            part.write_bytes((folder / CHECKPOINT).read_bytes())
        part.replace(folder / BEST)


FEW = 1000
"""Instances on which a trial is judged, about."""


def few_of(split: MultiTaskDataset) -> MultiTaskDataset:
    """The first instances of every task of a split, about `FEW` together; images are shared, not copied."""
    order = split.task.argsort(stable=True)
    first = torch.bincount(split.task, minlength=split.num_tasks).cumsum(0).roll(1)
    first[0] = 0
    place = torch.arange(len(order), device=order.device) - first[split.task[order]]
    rows = order[place < -(-FEW // split.num_tasks)].sort().values
    return dataclasses.replace(split, image=split.image[rows], task=split.task[rows], label=split.label[rows])


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, so that it counts as training time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


SNAPSHOTS_PER_EPOCH = 20


def checked_policy(agent: Agent) -> Tensor | None:
    """Return an agent's policy, `(T, N, A)`, or None.

    Raises:
        ValueError: It gives something else.
    """
    policy, wanted = agent.policy(), (agent.num_tasks, agent.num_decisions, agent.num_choices)
    if policy is None or (isinstance(policy, Tensor) and tuple(policy.shape) == wanted):
        return policy
    got = tuple(policy.shape) if isinstance(policy, Tensor) else type(policy).__name__
    raise ValueError(f"agent {agent.name!r}: policy() must give a tensor of shape {wanted}, or None, got {got}")


class PolicyLog:
    """Writes down how the policy of an agent develops, for Figs. 9 and 10 of Rosenbaum et al. (2018).

    Args:
        agent: The agent; nothing is written if it has no `policy()`.
        path: The file: `policies` `(S, T, N, A)` float16, `episodes` `(S,)`, and `epoch` `(S,)`, the epoch each
            snapshot was taken in.
        done: Epochs that are behind the agent; what the file holds of later ones is dropped.
        every: Batches from one snapshot to the next.
    """

    def __init__(self, agent: Agent, path: Path, done: int, every: int) -> None:
        self.agent, self.path, self.every = agent, path, every
        self.batches = agent.episodes // agent.env.num_envs
        self.rows: list[tuple[int, int, np.ndarray]] = []
        self.fresh: list[tuple[int, np.ndarray]] = []
        if checked_policy(agent) is None:
            self.every = 0
        elif done and path.exists():
            known = zip(*read_arrays(path, epoch=1, episodes=1, policies=4).values(), strict=True)
            self.rows = [(int(epoch), int(at), policy) for epoch, at, policy in known if epoch <= done]

    def note(self) -> None:
        """Take a snapshot, when it is time."""
        self.batches += 1
        if self.every and (self.batches - 1) % self.every == 0:
            policy = self.agent.policy()
            assert policy is not None
            self.fresh.append((self.agent.episodes, policy.to(torch.float16).cpu().numpy()))

    def write(self, epoch: int) -> None:
        """Add the snapshots of an epoch to the file, whole or not at all."""
        self.rows += [(epoch, at, policy) for at, policy in self.fresh]
        self.fresh = []
        if self.rows:
            epochs, episodes, policies = zip(*self.rows, strict=True)
            whole = {"epoch": np.array(epochs), "episodes": np.array(episodes), "policies": np.stack(policies)}
            write_arrays(self.path, **whole)


class RouteLog:
    """Writes down which ways instances take after every epoch, for the report.

    Args:
        path: The file: `routes` `(E, T, N, A)` int32, as `Evaluation.routes` of the split that epochs are judged on,
            and `epoch` `(E,)`.
        done: Epochs that are behind the agent; what the file holds of later ones is dropped.
    """

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        self.rows: list[tuple[int, np.ndarray]] = []
        if done and path.exists():
            known = zip(*read_arrays(path, epoch=1, routes=4).values(), strict=True)
            self.rows = [(int(epoch), routes) for epoch, routes in known if epoch <= done]

    def write(self, epoch: int, routes: Tensor) -> None:
        """Add the routes `(T, N, A)` of an epoch to the file, whole or not at all."""
        self.rows.append((epoch, routes.to(torch.int32).numpy()))
        epochs, counts = zip(*self.rows, strict=True)
        write_arrays(self.path, epoch=np.array(epochs), routes=np.stack(counts))
