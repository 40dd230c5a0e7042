"""One run: an agent with its options, an environment, a seed, and the folder it is run in."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from routing_gym.agents import Agent, read
from routing_gym.envs import TrainingDivergedError, evaluate
from routing_gym.experiments.engine.callbacks import Callback, CallbackError, Session, make_callbacks, tell
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.folders import locked
from routing_gym.experiments.engine.logits import keep_logits
from routing_gym.experiments.engine.machine import commit, device_name, processor_name
from routing_gym.experiments.engine.metrics import METRICS, Judged
from routing_gym.experiments.engine.paths import judged_paths
from routing_gym.experiments.engine.records import (
    VERSION,
    Curve,
    Record,
    check_curve,
    check_run,
    read_run,
    write_results,
    write_text,
)
from routing_gym.experiments.engine.settings import (
    TrainingSettings,
    build_agent,
    config_text,
    default_env_options,
    parse_options,
    resolved_agent_options,
    resolved_env_options,
    writable_folder,
)
from routing_gym.experiments.engine.stopping import unbroken
from routing_gym.experiments.engine.training import (
    CHECKPOINT,
    begun_curve,
    best_epoch,
    checked_policy,
    few_of,
    judge,
    rounded_use,
    train,
)
from routing_gym.files import clear_orphans
from routing_gym.networks import ways_out

PATHS = "paths.npz"
"""The file in a run's folder that holds the paths of all images."""

LOGITS = "logits.npz"
"""The file in a run's folder that holds what is said of all images."""

RESULTS, KEPT = "results.json", "results.json.gz"
"""The file in a run's folder that holds its record, and the one that stands for it where it is kept for long."""

CONFIG = "config.toml"
"""The file in a run's folder that holds all it was made with; `routing-gym train --config` takes it."""

WHEREABOUTS = {"data_dir", "device"}
"""Options that say where something lies, not what is computed."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What is run: known by what it asks for, interrupted at any time, gone on with where it stopped.

    Its folder holds `config.toml`, `checkpoint.pt` (agent, blocks, optimisers, random states; written whole after every
    epoch) and, when it is finished, `results.json`.

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
        title: What it is called; agent and seed by default.
        facts: What its record should hold besides.
        plugins: Files that register what it needs, for other processes.
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
    title: str = ""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    plugins: tuple[Path, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", f"{self.agent}, seed {self.seed}")

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
        if self.training.patience is not None and "validation" not in env.datasets:
            raise UsageError(
                f"--patience goes by the validation accuracy, {env.dataset.name} has only {', '.join(env.datasets)}: "
                f"leave it out, or hold data out by an option of theirs (`routing-gym list {self.training.env}`)"
            )
        return build_agent(self.agent, env, self.seed, self.agent_options)

    @property
    def asked(self) -> dict[str, Any]:
        """What the run is known by: every option, whether given or left at its default."""
        patience = self.training.patience
        return {
            "env": self.training.env,
            "agent": self.agent,
            "seed": self.seed,
            "epochs": self.training.epochs,
            "batch_size": self.training.batch_size,
            "split": self.split,
            **({"patience": patience} if patience is not None else {}),
            **({"judge_at": list(self.judge_at)} if self.judge_at else {}),
            **({"compare_paths": True} if self.compare_paths else {}),
            **({"keep_logits": True} if self.keep_logits else {}),
            "env_options": resolved_env_options(self.training.env, self.training.env_options),
            "agent_options": resolved_agent_options(self.agent, self.agent_options),
        }

    def finished(self) -> Record | None:
        """Record of this very run, if it is finished.

        Options that are younger than the record count as if it had had their default.

        Raises:
            UsageError: The folder holds the results of another run, or damaged ones.
        """
        path = next((path for name in (RESULTS, KEPT) if (path := self.folder / name).exists()), None)
        if path is None:
            return None
        record = read_run(path)
        asked = record["asked"]
        of_env = default_env_options(self.training.env, parse_options("env_options", self.training.env_options))
        defaults = {"env_options": of_env, "agent_options": resolved_agent_options(self.agent, ())}
        saved = {**asked, **{kind: {**of, **asked.get(kind, {})} for kind, of in defaults.items()}}
        check_same(path, saved, self.asked)
        return {**record, **self.facts}

    def try_out(self, *, batch: bool, fresh: bool) -> None:
        """Find out what would go wrong, on a throwaway copy: no random number and no file is touched.

        Args:
            batch: Route one batch, train on it and judge one; else see only whether the checkpoint, where there is
                one, is one to go on with.
            fresh: The checkpoint is about to be replaced.

        Raises:
            UsageError: A wrong option, or a checkpoint of other options.
        """
        checkpoint = self.folder / CHECKPOINT
        goes_on = not fresh and checkpoint.exists()
        if not (batch or goes_on):
            return
        with _no_trace():
            agent = self.make()
            if goes_on:
                agent, _ = resumed(checkpoint, agent, self.training.epochs)
            if batch:
                agent.learn(agent.env, agent.env.num_envs)
                checked_policy(agent)
                agent.env.datasets[self.split] = few_of(agent.env.datasets[self.split])
                with suppress(TrainingDivergedError):  # which is the run's affair
                    judged = judge(agent, self.split, 1.0, 1)
                    for metric in METRICS.values():
                        metric.measure(judged)

    def perform(self, callbacks: Sequence[Callback] = ()) -> Record:
        """Train and judge, going on from the folder's checkpoint where there is one.

        Args:
            callbacks: Told of batches and epochs, besides those the settings name.

        Raises:
            UsageError: The checkpoint is of other options, or another command is at work in the folder.
            TrainingDivergedError: The loss is no longer a number.
        """
        agent, folder = self.make(), self.folder
        curve = begun_curve(agent)
        with locked(writable_folder(folder)):
            clear_orphans(folder)
            asked = self.asked
            if (folder / CHECKPOINT).exists():
                agent, curve = resumed(folder / CHECKPOINT, agent, self.training.epochs)
            write_text(folder / CONFIG, config_text(self.configuration))
            callbacks = [*make_callbacks(self.training.callbacks), *callbacks]
            session = Session(self.title, agent, folder, self.training.epochs, curve, asked)
            begun: list[Callback] = []
            try:
                for callback in callbacks:
                    begun.append(callback)
                    tell(callback, "on_begin", session)
                train(session, callbacks, self.training.patience)
                record = self._record(session)
                with unbroken():
                    write_results([record], folder / RESULTS)
                while begun:
                    tell(begun[0], "on_end", session, record)
                    del begun[0]
            except BaseException as error:
                for callback in begun:
                    try:
                        tell(callback, "on_failure", session, error)
                    except CallbackError as another:  # the first error counts, and the others are told all the same
                        error.add_note(str(another))
                raise
        return {**record, **self.facts}

    @property
    def configuration(self) -> dict[str, Any]:
        """What `config.toml` holds: the options of `routing-gym train`, but those that the agent decides."""
        settings = self.training
        training: dict[str, Any] = {"callbacks": settings.callbacks, "threads": settings.threads}
        training |= {"device": settings.device} if settings.device != "auto" else {}
        training |= {"data_dir": settings.data_dir} if settings.data_dir is not None else {}
        plugins = {"plugin": [str(path.resolve()) for path in self.plugins]} if self.plugins else {}
        decided = self.training.decided_by(self.agent)
        of_env = {name: value for name, value in self.asked["env_options"].items() if name not in decided}
        return {**training, **plugins, **self.asked, "env_options": of_env}

    def _record(self, session: Session) -> Record:
        """Judge what has been trained, and say all there is to say of it."""
        agent, curve, folder = session.agent, session.curve, self.folder
        seconds = curve["seconds"][-1]
        judged = judge(agent, self.split, seconds, len(curve["epoch"]))
        more: dict[str, Any] = {}
        if self.judge_at:
            more["by_price"] = judged_by_price(judged, self.judge_at)
        if self.compare_paths:
            more["compared_paths"] = judged_paths(judged, self.seed, folder / PATHS)
        if self.keep_logits:
            keep_logits(agent, self.split, folder / LOGITS)
        record = record_of(judged, self, curve) | more
        check_run(record)
        return record


def record_of(judged: Judged, run: Run, curve: Curve) -> Record:
    """A run as plain values, the form of `results.json`; MACs are per instance, accuracies 0 to 1.

    Infinite numbers, of an option say, are None: JSON has no word for them.
    """
    agent, final = judged.agent, judged.evaluation
    network = agent.env.network
    live = {"live_paths": final.live_paths.tolist()} if network.num_tensors > 1 else {}  # else a choice is a path
    record = {
        "version": VERSION,
        "agent": agent.name,
        "env": run.training.env,
        "seed": run.seed,
        **{metric.key(final.split): metric.measure(judged) for metric in METRICS.values()},
        "task_accuracy": final.task_accuracy,
        "task_macs": final.task_macs,
        **live,
        "epochs": len(curve["epoch"]),
        "best_epoch": best_epoch(curve),
        "batch_size": agent.env.num_envs,
        "asked": run.asked,
        "config": dataclasses.asdict(agent.config),
        "env_config": dataclasses.asdict(agent.env.config),
        "curve": curve,
        "routes": final.routes.tolist(),
        "routes_by_label": final.routes_by_label.tolist(),
        "use": rounded_use(final),
        "exits": final.exits.tolist(),
        "ways_out": [list(way) for way in ways_out(network.decisions)],
        "decisions": [{"name": decision.name, "next": list(decision.next)} for decision in network.decisions],
        "experts": [list(names) for names in getattr(network, "experts", ())],
        "dataset": agent.env.datasets[final.split].name,
        "device": device_name(agent.env.device),
        "processor": processor_name(),
        "torch": torch.__version__,
        "commit": commit(),
        "threads": torch.get_num_threads(),
    }
    return {key: finite(value) for key, value in record.items()}


def finite(value: Any) -> Any:
    """A plain value with None in place of every number in it that is not finite, and lists in place of tuples."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def judged_by_price(judged: Judged, prices: Sequence[float]) -> list[dict[str, float]]:
    """Judge one agent that knows the price of computation at several prices.

    Returns:
        For each price `k_cpt`, the accuracy, `macs`, `loss` and `cost` at it, as in `record_of`.
    """
    points = []
    for price in prices:
        at = evaluate(judged.agent, judged.agent.env, split=judged.evaluation.split, k_cpt=price)
        accuracy = {f"{at.split}_accuracy": at.accuracy}
        points.append({"k_cpt": price, **accuracy, "macs": at.macs, "loss": at.loss, "cost": at.cost(price)})
    return points


def check_same(path: Path, saved: dict[str, Any], asked: dict[str, Any], within: str = "") -> None:
    """Refuse the record of a run that another is not to be taken for.

    Args:
        path: Where it stands.
        saved: What it was asked for.
        asked: What is asked for now.
        within: Name of the table of options they are, `env_options ` say.

    Raises:
        UsageError: Names file and option.
    """
    saved, asked = finite(saved), finite(asked)
    for key in sorted(saved.keys() | asked.keys()):
        ours, theirs = asked.get(key), saved.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            check_same(path, theirs, ours, f"{key} ")
        elif ours != theirs:
            raise UsageError(
                f"{path} holds another run: its {within}{key} is {theirs!r}, asked for is {ours!r}; take "
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
        given = (checkpoint["env_kwargs"], env.spec.kwargs)
        of_env = tuple({**default_env_options(env.spec.id, kwargs), **kwargs} for kwargs in given)
        for saved, ours in (run, of_agent, of_env):  # one by one: agents and environments have options of one name
            for option in sorted((ours.keys() | saved.keys()) - WHEREABOUTS):
                if finite(ours.get(option)) != finite(saved.get(option)):
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
        younger = {name: [None] * done for name, of in begun_curve(fresh).items() if isinstance(of, list)}
    except (ValueError, RuntimeError) as error:  # a tensor where a value belongs cannot be compared
        raise UsageError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    return agent, {**younger, **checkpoint["extra"]["curve"]}
