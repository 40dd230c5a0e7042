"""Training of an agent and the blocks, epoch by epoch, with a checkpoint after each."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from routing_gym.agents import Agent, Population
from routing_gym.envs import Evaluation, TrainingDivergedError, evaluate
from routing_gym.experiments.engine.callbacks import Callback, Session, tell
from routing_gym.experiments.engine.command import stop_if_asked, unbroken
from routing_gym.experiments.engine.machine import give_back_freed_memory
from routing_gym.experiments.engine.metrics import METRICS, Judged
from routing_gym.experiments.engine.records import Curve, read_arrays, write_arrays
from routing_gym.experiments.engine.settings import TrainingSettings
from routing_gym.networks import ways_out
from routing_gym.tasks import MultiTaskDataset

CHECKPOINT, BEST, ROUTES, POLICIES = "checkpoint.pt", "best.pt", "routes.npz", "policies.npz"
SNAPSHOTS_PER_EPOCH = 20  # of an agent's policy
UNSETTLED = 0.05
FEW = 1000  # instances on which a trial is judged, about


def begun_curve(agent: Agent) -> Curve:
    """Curve without epochs, judged on the validation split, or on the test split where nothing is held out."""
    return {"judged_on": "validation" if "validation" in agent.env.datasets else "test", "epoch": []}


class Course:
    """A run's way through its epochs: what is told, judged and written after each.

    After every epoch these are written: `checkpoint.pt`, so that a run that stops keeps its last good one; `best.pt`,
    of the epoch with the highest validation accuracy; `routes.npz`, `routes` `(E, T, N, A)` int32 as in `Evaluation`;
    and, of an agent that has a policy in a table, `policies.npz`, `policies` `(S, T, N, A)` float16 and `episodes`
    `(S,)`, for Figs. 9 and 10 of Rosenbaum et al. (2018).

    The curve of the session grows. The settings say how many passes make an epoch, `batches` in number, and after how
    many epochs without a higher validation accuracy it stops, and goes back to the best checkpoint.
    """

    def __init__(self, session: Session, callbacks: Sequence[Callback], settings: TrainingSettings) -> None:
        self.session, self.callbacks, self.settings = session, callbacks, settings
        agent, self.curve, done, folder = session.agent, session.curve, session.curve["epoch"], session.folder
        self.batches = -(-settings.epoch_passes * agent.env.trainer.optimization.epoch // agent.env.batch_size)
        self._every = 0 if checked_policy(agent) is None else -(-self.batches // SNAPSHOTS_PER_EPOCH)
        self._number = agent.episodes // agent.env.batch_size  # of the next batch
        self._policies = EpochLog(folder / POLICIES, len(done), episodes=1, policies=4)
        self._routes = EpochLog(folder / ROUTES, len(done), routes=4)
        self._seen: list[dict[str, Tensor]] = []
        self._snapshots: list[tuple[int, np.ndarray]] = []
        if done and self.curve["judged_on"] == "validation" and best_epoch(self.curve) == done[-1]:
            _keep_best(folder)  # a kill may have come between the two files

    @property
    def over(self) -> bool:
        """Whether there are as many epochs as there should be."""
        waited = stop_of(self.curve, self.settings.patience) is not None
        return len(self.curve["epoch"]) >= self.session.epochs or waited

    def note(self, metrics: dict[str, Tensor], episodes: int, policy: Callable[[], Tensor | None]) -> None:
        """Tell of a batch, after so many episodes, and now and then keep the policy that it has led to."""
        self._seen.append(metrics)
        if self._every and self._number % self._every == 0 and (table := policy()) is not None:
            self._snapshots.append((episodes, table.to(torch.float16).cpu().numpy()))
        self._number += 1
        for callback in self.callbacks:
            tell(callback, "on_batch", self.session, metrics)

    def end_epoch(self, seconds: float) -> None:
        """Judge and write down what an epoch has come to, which took so long.

        Raises:
            TrainingDivergedError: The loss is no longer a number; names agent and epoch.
        """
        agent, curve, folder, done = self.session.agent, self.curve, self.session.folder, self.curve["epoch"]
        seconds += curve["seconds"][-1] if done else 0.0
        reported: dict[str, list[Tensor]] = {}
        for batch in self._seen:  # not every batch need tell of everything
            for key, value in batch.items():
                reported.setdefault(key, []).append(value)
        means = {key: torch.stack(values).mean().item() for key, values in reported.items()}
        judged = judge(agent, curve["judged_on"], seconds, len(done) + 1)
        _add_epoch(curve, means, judged)
        for callback in self.callbacks:
            tell(callback, "on_epoch", self.session, means)
        with unbroken():
            self._policies.write(done[-1], *self._snapshots)
            self._routes.write(done[-1], (judged.evaluation.routes.to(torch.int32).numpy(),))
            plugins = self.session.config.get("plugins", {})
            also = {"curve": curve, "plugins": plugins}
            also |= {"epoch_passes": self.settings.epoch_passes, "threads": self.settings.threads}
            if agent.env.device.type == "cuda" and torch.version.cuda:  # whose own generator dropout draws from
                also["cuda_generator"] = torch.cuda.get_rng_state(agent.env.device)
            agent.save(folder / CHECKPOINT, **also)
            if curve["judged_on"] == "validation" and best_epoch(curve) == done[-1]:
                _keep_best(folder)
        self._seen, self._snapshots = [], []

    def end(self) -> int | None:
        """Go back to the best epoch where one stops early; the epoch after which routes stayed, see `settled`."""
        done, session = self.curve["epoch"], self.session
        session.trained = session.agent.episodes
        if self.settings.patience is not None and best_epoch(self.curve) < done[-1]:
            session.agent = Agent.load(session.folder / BEST, session.agent.env)
        rows = self._routes.rows  # of which some are missing where the file has been taken away
        return settled(np.stack([of for _, of in rows])) if len(rows) == len(done) > 0 else None


def train(courses: Sequence[Course]) -> None:
    """Train until there are as many epochs as there should be; several runs side by side, see `Population`.

    Raises:
        ValueError: Runs that cannot be trained together.
        TrainingDivergedError: The loss is no longer a number; names agent and step, or epoch.
        Stopped: A signal came; nothing was broken off but the epoch.
    """
    first, *others = courses
    agent, env = first.session.agent, first.session.agent.env
    if others and first.settings.patience is not None:
        raise ValueError("with --patience every run has a length of its own")
    together = Population([course.session.agent for course in courses]) if others else None

    def note(*metrics: dict[str, Tensor]) -> None:
        for number, (course, own) in enumerate(zip(courses, metrics, strict=True)):
            policy = agent.policy if together is None else partial(together.policy, number)
            course.note(own, agent.episodes if together is None else together.episodes, policy)
        stop_if_asked()

    while not first.over:
        start = time.perf_counter()
        with unbroken():
            if together is None:
                agent.learn(env, first.batches * env.batch_size, note)
            else:
                together.learn(first.batches * env.num_envs, lambda metrics: note(*metrics))
        if env.device.type == "cuda":
            torch.cuda.synchronize(env.device)  # what it was given counts as training time
        seconds = (time.perf_counter() - start) / len(courses)
        with unbroken():  # so that a signal finds all of them at the same epoch
            for course in courses:
                course.end_epoch(seconds)
        give_back_freed_memory()


def settled(routes: np.ndarray) -> int:
    """Epoch from which on routes are what they are in the end: all but `UNSETTLED` of the choices, mean over tasks.

    Routes are counts of choices after each epoch, `(E, T, N, A)`, as in `Evaluation`.
    """
    shares = routes / np.maximum(routes.sum(-1, keepdims=True), 1)
    moved = 0.5 * np.abs(shares - shares[-1:]).sum(-1).mean((1, 2))  # total variation
    return int((moved > UNSETTLED).nonzero()[0].max(initial=-1)) + 2


def best_epoch(curve: Curve) -> int:
    """First epoch with the highest validation accuracy."""
    accuracies = curve["validation_accuracy"]
    return curve["epoch"][accuracies.index(max(accuracies))]


def stop_of(curve: Curve, patience: int | None) -> int | None:
    """First epoch by which so many have passed without a higher validation accuracy; None where they have not yet."""
    best, at = -math.inf, 0
    for epoch, accuracy in zip(curve["epoch"], curve.get("validation_accuracy", ()), strict=True):
        if accuracy > best:
            best, at = accuracy, epoch
        elif patience is not None and epoch - at >= patience:
            return epoch
    return None


def judge(agent: Agent, split: str, seconds: float, epochs: int, trained: int | None = None) -> Judged:
    """Judge an agent on a split after so much training; a `TrainingDivergedError` where the loss is no number.

    It was trained on so many instances in that time, its own `episodes` by default.
    """
    evaluation = evaluate(agent, agent.env, split=split)
    if math.isnan(evaluation.loss):
        raise TrainingDivergedError(f"agent {agent.name!r}, after epoch {epochs}: the loss on the {split} split is NaN")
    trained = agent.episodes if trained is None else trained
    return Judged(agent, evaluation, seconds, trained / seconds if seconds else 0.0)


def _add_epoch(curve: Curve, means: dict[str, float], judged: Judged) -> None:
    """Append an epoch to a curve; None stands for metrics that were not registered then, or are no longer."""
    done, ways = len(curve["epoch"]), ways_out(judged.agent.env.network.decisions)
    row: dict[str, Any] = {"epoch": done + 1, "train_loss": means["loss"], "train_accuracy": means["accuracy"]}
    row |= {metric.key("validation"): metric.measure(judged) for metric in METRICS.values() if metric.curve}
    row["exits"] = [int(judged.evaluation.exits[way].sum()) for way in ways]
    row["use"] = rounded_use(judged.evaluation)
    for name in dict.fromkeys([*curve, *row]):
        if name != "judged_on":
            curve.setdefault(name, [None] * done).append(row.get(name))


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


def few_of(split: MultiTaskDataset) -> MultiTaskDataset:
    """The first instances of every task of a split, about `FEW` together; images are shared, not copied."""
    each = -(-FEW // split.num_tasks)
    rows = [(split.task == task).nonzero().flatten()[:each] for task in range(split.num_tasks)]
    order = torch.cat(rows).sort().values
    columns = ("image", "task", "label", "planted", "during")
    kept: dict[str, Any] = {name: None if (of := getattr(split, name)) is None else of[order] for name in columns}
    return dataclasses.replace(split, **kept)


def checked_policy(agent: Agent) -> Tensor | None:
    """An agent's policy, `(T, N, A)`, or None; a `ValueError` if it gives something else."""
    policy, wanted = agent.policy(), (agent.num_tasks, agent.num_decisions, agent.num_choices)
    if policy is None or (isinstance(policy, Tensor) and tuple(policy.shape) == wanted):
        return policy
    got = tuple(policy.shape) if isinstance(policy, Tensor) else type(policy).__name__
    raise ValueError(f"agent {agent.name!r}: policy() must give a tensor of shape {wanted}, or None, got {got}")


class EpochLog:
    """Rows of arrays, named with how many axes each has, in a file with the `epoch` each was written in.

    Epochs up to `done` are behind the run; what the file holds of later ones is dropped.
    """

    def __init__(self, path: Path, done: int, **axes: int) -> None:
        self.path, self.names = path, ("epoch", *axes)
        self.rows: list[tuple[Any, ...]] = []
        if done and path.exists():
            known = zip(*read_arrays(path, epoch=1, **axes).values(), strict=True)
            self.rows = [row for row in known if row[0] <= done]

    def write(self, epoch: int, *rows: tuple[Any, ...]) -> None:
        """Add the rows of an epoch to the file, whole or not at all."""
        self.rows += [(epoch, *row) for row in rows]
        if self.rows:
            columns = map(np.stack, zip(*self.rows, strict=True))
            write_arrays(self.path, **dict(zip(self.names, columns, strict=True)))
