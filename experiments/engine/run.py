"""One run: an agent with its options, an environment, a seed, and the folder it is run in."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from routing_gym.agents import Agent, agent_class, read
from routing_gym.agents.base.checkpoint import check_kept
from routing_gym.envs import DATASETS, REWARDS, RoutingVectorEnv, TrainingDivergedError, evaluate, is_price
from routing_gym.experiments.engine import records, settings, training
from routing_gym.experiments.engine.callbacks import CALLBACKS, Callback, CallbackError, Session, tell
from routing_gym.experiments.engine.command import UsageError, unbroken
from routing_gym.experiments.engine.exits import exit_curves
from routing_gym.experiments.engine.folders import locked
from routing_gym.experiments.engine.instances import keep_logits
from routing_gym.experiments.engine.machine import commit, device_name, processor_name
from routing_gym.experiments.engine.metrics import METRICS, Judged, Record, alignments
from routing_gym.experiments.engine.paths import judged_paths
from routing_gym.experiments.engine.plugins import OF_METRICS, digests, without_new_metrics
from routing_gym.experiments.engine.settings import finite
from routing_gym.experiments.engine.training import CHECKPOINT
from routing_gym.files import clear_orphans
from routing_gym.networks import EXIT, NETWORKS, ways_out
from routing_gym.registration import ENV_IDS

PATHS, LOGITS, CONFIG = "paths.npz", "logits.npz", "config.toml"
"""Files in a run's folder: paths of all images, what is said of them, and options for `routing-gym train --config`."""

RESULTS, KEPT, DIVERGED = "results.json", "results.json.gz", "diverged.txt"
"""Files in a run's folder: its record, what stands for that where it is kept for long, and why it came to nothing."""

CHANGED = "another version of a plug-in ({})"

WHEREABOUTS = {"data_dir", "device", "distributed", "num_envs"}
"""Options that say where something lies, not what is computed."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What is run: known by what it asks for, interrupted at any time, gone on with where it stopped.

    Its folder holds `config.toml`, `checkpoint.pt` (agent, blocks, optimisers, random states; written whole after every
    epoch) and, when it is finished, `results.json`. Its fields are options of `routing-gym train`, but these:

    Attributes:
        folder: Where everything is written.
        title: What it is called; agent and seed by default.
        facts: What its record should hold besides.
        plugins: Files that register what it needs, for other processes.
    """

    training: settings.TrainingSettings
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
        object.__setattr__(self, "title", self.title or f"{self.agent}, seed {self.seed}")

    def make(self) -> Agent:
        """Make agent and environment; a `UsageError` says which option one of them refuses."""
        env = self.training.make_env(self.agent, self.seed)
        data, splits, listed = env.dataset.name, ", ".join(env.datasets), f"(`routing-gym list {self.training.env}`)"
        ours = DATASETS[ENV_IDS[self.training.env]["dataset"]].__module__.startswith("routing_gym.")
        mend = (
            f"an option of the data holds some out {listed}" if ours else "let the function that makes them return one"
        )
        if self.split not in env.datasets:
            raise UsageError(f"{data} has no {self.split} split, only {splits}; {mend}")
        if self.training.patience is not None and "validation" not in env.datasets:
            mend = f"leave it out, or hold data out: {mend}"
            raise UsageError(f"--patience goes by the validation accuracy, {data} has only {splits}: {mend}")
        self._check_extras(env)
        return settings.build_agent(self.agent, env, self.seed, self.agent_options)

    def _check_extras(self, env: RoutingVectorEnv) -> None:
        """Refuse what can be said of some networks only, before anything is trained."""
        network = env.network
        if wrong := [price for price in self.judge_at if not is_price(price)]:
            raise UsageError(f"--judge-at takes prices of at least 0, finite, got {wrong[0]}")
        if self.judge_at and not env.config.price:
            raise UsageError("--judge-at is for networks that see the price: give --env-options price=True")
        if self.compare_paths and not (network.in_order and all(d.m == 1 and d.n == 2 for d in network.decisions)):
            raise UsageError("--compare-paths is for networks of blocks that all instances run or skip, in order")
        leaving = [decision for decision in network.decisions if EXIT in decision.next]
        if self.keep_logits and (len(leaving) > 1 or leaving[0].mixing != "activation"):
            raise UsageError("--keep-logits is for networks that all instances leave by one exit")

    @property
    def asked(self) -> dict[str, Any]:
        """What the run is known by: every option, whether given or left at its default."""
        given = self.training
        asked = {"env": given.env, "agent": self.agent, "seed": self.seed, "epochs": given.epochs}
        asked |= {"batch_size": given.batch_size, "split": self.split}
        besides = {"patience": given.patience, "judge_at": list(self.judge_at)}
        besides |= {"compare_paths": self.compare_paths, "keep_logits": self.keep_logits}
        besides |= {"epoch_passes": given.epoch_passes} if given.epoch_passes > 1 else {}
        asked |= {name: value for name, value in besides.items() if value}
        of_env = settings.resolved_env_options(given.env, given.env_options)
        of_agent = settings.resolved_agent_options(self.agent, self.agent_options)
        rewards = of_env.get("rewards", ())
        terms = [of_env.get("final_reward"), *([rewards] if isinstance(rewards, str) else rewards)]
        parts = [*agent_class(self.agent).__mro__, DATASETS[ENV_IDS[given.env]["dataset"]]]
        parts += [NETWORKS[name].builder for name in [of_env.get("network")] if name in NETWORKS]
        parts += [REWARDS[name].function for name in terms if name in REWARDS]
        measured = digests(metric.of for metric in METRICS.values())
        found = digests(parts) | {f"{name}{OF_METRICS}": of for name, of in measured.items()}
        asked |= {"plugins": found} if found else {}
        return {**asked, "env_options": of_env, "agent_options": of_agent}

    @property
    def configuration(self) -> dict[str, Any]:
        """What `config.toml` holds: the options of `routing-gym train`, but those that the agent decides."""
        given, asked = self.training, self.asked
        options: dict[str, Any] = {"callbacks": given.callbacks, "threads": given.threads}
        options |= {"device": given.device} if given.device != "auto" else {}
        options |= {"data_dir": str(Path(given.data_dir).absolute())} if given.data_dir is not None else {}
        options |= {"plugin": [str(path.resolve()) for path in self.plugins]} if self.plugins else {}
        decided = given.decided_by(self.agent)
        of_env = {name: value for name, value in asked["env_options"].items() if name not in decided}
        asked.pop("plugins", None)  # are named by their paths
        return {**options, **asked, "env_options": of_env}

    def finished(self) -> Record | None:
        """Record of this very run, if it is finished; a `UsageError` if there is another's, or a damaged one."""
        path = next((path for name in (RESULTS, KEPT) if (path := self.folder / name).exists()), None)
        if path is None:
            return None
        record = records.read_run(path)
        check_same(path, record["asked"], self.asked)
        return {**record, **self.facts}

    def try_out(self, *, batch: bool, fresh: bool) -> None:
        """Find out what would go wrong, on a throwaway copy: no random number and no file is touched.

        With `batch` it routes one, trains on it, is judged, and takes up what would be saved. A checkpoint that is to
        be gone on with, so not where it begins `fresh`, is looked at in any case. A `UsageError` names a wrong option,
        or a checkpoint of other options.
        """
        goes_on = not fresh and (self.folder / CHECKPOINT).exists()
        if not (batch or goes_on):
            return
        with _no_trace():
            agent = self.make()
            if goes_on:
                agent, _ = resumed(self.folder / CHECKPOINT, agent, self)
            if batch:
                agent.learn(agent.env, agent.env.batch_size)
                training.checked_policy(agent)
                agent.env.datasets[self.split] = training.few_of(agent.env.datasets[self.split])
                with suppress(TrainingDivergedError):  # which is the run's affair
                    judged = training.judge(agent, self.split, 1.0, 1)
                    for metric in METRICS.values():
                        metric.measure(judged)
                check_kept(agent)  # else what is trained would be lost

    def perform(self, callbacks: Sequence[Callback] = ()) -> Record:
        """Train and judge this run, see `perform_together`."""
        return perform_together([self], callbacks)[0]

    def begin(self, stack: ExitStack) -> Session:
        """Session of the run, going on from the folder's checkpoint; what it opens is closed by the stack.

        Raises:
            UsageError: The checkpoint is of other options, or another command is at work in the folder.
        """
        agent, folder = self.make(), self.folder
        curve = training.begun_curve(agent)
        stack.enter_context(locked(settings.writable_folder(folder)))
        clear_orphans(folder)
        (folder / DIVERGED).unlink(missing_ok=True)  # of an earlier try
        if (folder / CHECKPOINT).exists():
            agent, curve = resumed(folder / CHECKPOINT, agent, self)
        records.write_text(folder / CONFIG, settings.config_text(self.configuration))
        return Session(self.title, agent, folder, self.training.epochs, curve, self.asked)

    def record(self, session: Session) -> Record:
        """Judge what has been trained, and say all there is to say of it."""
        agent, curve, folder = session.agent, session.curve, self.folder
        judged = training.judge(agent, self.split, curve["seconds"][-1], len(curve["epoch"]), session.trained)
        record = record_of(judged, self, curve)
        if curves := exit_curves(agent, self.split):
            record["exit_curves"] = finite(curves)
        if self.judge_at:
            record["by_price"] = [_at_price(judged, price) for price in self.judge_at]
        if self.compare_paths:
            record["compared_paths"] = judged_paths(judged, self.seed, folder / PATHS)
        if self.keep_logits:
            keep_logits(agent, self.split, folder / LOGITS)
        records.check_run(record)
        return record


def perform_together(runs: Sequence[Run], callbacks: Sequence[Callback] = ()) -> list[Record]:
    """Train and judge runs, several of them side by side; `callbacks` are told besides those the settings name.

    Raises:
        UsageError: See `Run.begin`.
        ValueError: Runs that cannot be trained together.
        TrainingDivergedError: The loss of a run is no longer a number.
    """
    begun: list[tuple[Session, Callback]] = []
    done = []
    with ExitStack() as stack:
        sessions = [run.begin(stack) for run in runs]
        try:
            courses = []
            for run, session in zip(runs, sessions, strict=True):
                told = [*(CALLBACKS[name]() for name in run.training.callbacks), *callbacks]
                for callback in told:
                    begun.append((session, callback))
                    tell(callback, "on_begin", session)
                courses.append(training.Course(session, told, run.training))
            training.train(courses)
            for run, course in zip(runs, courses, strict=True):
                settled, session = course.end(), course.session
                record = {**run.record(session), "settled": settled}
                record |= {"population": len(runs)} if len(runs) > 1 else {}
                with unbroken():
                    records.write_results([record], run.folder / RESULTS)
                while begun and begun[0][0] is session:
                    tell(begun[0][1], "on_end", session, record)
                    del begun[0]
                done.append({**record, **run.facts})
        except BaseException as error:
            if isinstance(error, TrainingDivergedError) and len(runs) == 1:
                records.write_text(runs[0].folder / DIVERGED, f"{error}\n")
            for session, callback in begun:
                try:
                    tell(callback, "on_failure", session, error)
                except CallbackError as another:  # the first error counts, and the others are told all the same
                    error.add_note(str(another))
            raise
    return done


def record_of(judged: Judged, run: Run, curve: records.Curve) -> Record:
    """A run as plain values, the form of `results.json`; MACs are per instance, accuracies 0 to 1, infinity is None."""
    agent, env, final = judged.agent, judged.agent.env, judged.evaluation
    network = env.network
    record: Record = {"version": records.VERSION, "agent": agent.name, "env": run.training.env, "seed": run.seed}
    record |= {metric.key(final.split): metric.measure(judged) for metric in METRICS.values()}
    record |= {"task_accuracy": final.task_accuracy, "task_macs": final.task_macs}
    record |= {"task_names": list(env.dataset.task_names)} if env.dataset.task_names else {}
    record |= {} if (by_decision := alignments(judged)) is None else {"alignments": by_decision}
    record |= {"live_paths": final.live_paths.tolist()} if network.num_tensors > 1 else {}  # else a choice is a path
    record |= {"epochs": len(curve["epoch"]), "best_epoch": training.best_epoch(curve), "batch_size": env.batch_size}
    record |= {"asked": run.asked, "config": dataclasses.asdict(agent.config)}
    record |= {"env_config": dataclasses.asdict(env.config), "curve": curve}
    record |= {name: getattr(final, name).tolist() for name in ("routes", "routes_by_label", "exits")}
    record |= {"use": training.rounded_use(final), "ways_out": ways_out(network.decisions)}
    record |= {"decisions": [{"name": decision.name, "next": decision.next} for decision in network.decisions]}
    record |= {"experts": getattr(network, "experts", ()), "dataset": env.datasets[final.split].name}
    record |= {"device": device_name(env.device), "processor": processor_name(), "torch": torch.__version__}
    record |= {"ranks": env.ranks.count} if env.ranks.count > 1 else {}
    return finite(record | {"commit": commit(), "threads": torch.get_num_threads()})


def _at_price(judged: Judged, price: float) -> dict[str, float]:
    """How an agent that knows the price of computation does at one, `k_cpt`."""
    at = evaluate(judged.agent, judged.agent.env, split=judged.evaluation.split, k_cpt=price)
    accuracy = {f"{at.split}_accuracy": at.accuracy}
    return {"k_cpt": price, **accuracy, "macs": at.macs, "loss": at.loss, "cost": at.cost(price)}


def differences(was: dict[str, Any], now: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the options that differ: name (`env_options num_blocks` in a table), what it was, what it is now."""
    for key in sorted(was.keys() | now.keys()):
        before, after = was.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{within}{key} ")
        elif finite(before) != finite(after):
            yield f"{within}{key}", before, after


def check_same(path: Path, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse, by a `UsageError`, what a file holds if it was asked for with other options.

    Options that are younger than the file count as if it had had their default.
    """
    saved, asked = without_new_metrics(saved, asked)
    for kind in ("env_options", "agent_options"):
        if younger := asked.get(kind, {}).keys() - saved.get(kind, {}).keys():
            of_env = kind == "env_options"
            defaults = settings.default_env_options(asked["env"], asked[kind]) if of_env else {}
            defaults = defaults or settings.resolved_agent_options(asked["agent"], ())
            saved = {**saved, kind: {**{name: defaults.get(name) for name in younger}, **saved.get(kind, {})}}
    mend = f"take another folder, or delete {path.parent}"
    for option, was, now in differences(finite(saved), finite(asked)):
        if option.startswith("plugins"):
            raise UsageError(f"{path} holds a run of {CHANGED.format(option)}: {mend}")
        other = f"its {option} is {was!r}, asked for is {now!r}"
        raise UsageError(f"{path} holds another run: {other}: {mend}")


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


def resumed(path: Path, fresh: Agent, run: Run) -> tuple[Agent, records.Curve]:
    """Load a checkpoint to go on with, if it was trained with the very options a fresh agent was made with now.

    Raises:
        UsageError: Not a checkpoint, not one of `train`, of more epochs, or of other options: names the first.
    """
    try:
        checkpoint, env = read(path), fresh.env
        assert env.spec is not None
        of_env = [
            settings.default_env_options(env.spec.id, given) | dict(given)
            for given in (checkpoint["env_kwargs"], env.spec.kwargs)
        ]
        extra, threads = checkpoint["extra"], run.training.threads  # with more of them a sum is another one
        was = {"agent": checkpoint["agent"], "batch_size": checkpoint["num_envs"]}
        was |= {"epoch_passes": extra.get("epoch_passes", 1), "threads": extra.get("threads", threads)}
        now = {"agent": fresh.name, "batch_size": env.batch_size}
        now |= {"epoch_passes": run.training.epoch_passes, "threads": threads}
        was["plugins"], now["plugins"] = extra.get("plugins", {}), run.asked.get("plugins", {})
        was, now = without_new_metrics(was, now)
        of_run = (was, now)
        of_agent = (checkpoint["config"], dataclasses.asdict(fresh.config))
        for pair in (of_run, of_agent, of_env):  # one by one: agents and environments have options of one name
            for option, before, now in differences(*pair):
                if option.startswith("plugins"):
                    raise UsageError(f"{path} was trained by {CHANGED.format(option)}: train into another folder")
                if option not in WHEREABOUTS:
                    mend = "resume with the same options, or train into another folder"
                    raise UsageError(f"{path} was trained with {option}={before!r}, now it is {now!r}: {mend}")
        if "curve" not in checkpoint["extra"]:
            raise UsageError(f"{path} was not written by `routing-gym train`")
        curve = checkpoint["extra"]["curve"]
        records.check_curve(curve, f"{path}: curve")
        if (done := len(curve["epoch"])) > run.training.epochs:
            raise UsageError(f"{path} was trained for {done} epochs already, asked for are {run.training.epochs}")
        if (stop := training.stop_of(curve, run.training.patience) or done) < done:
            wants = f"--patience {run.training.patience} stops after {stop}"
            raise UsageError(f"{path} was trained for {done} epochs, {wants}: train into another folder")
        agent = Agent.load(path, env)
        torch.set_rng_state(checkpoint["torch_generator"])
        if env.device.type == "cuda" and "cuda_generator" in checkpoint["extra"]:
            torch.cuda.set_rng_state(checkpoint["extra"]["cuda_generator"], env.device)
    except (ValueError, RuntimeError) as error:  # a tensor where a value belongs cannot be compared
        raise UsageError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    return agent, curve
