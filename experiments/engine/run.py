"""One run: one agent, one seed, trained and judged."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from routing_gym.agents import Agent
from routing_gym.envs import Evaluation, RoutingVectorEnv, TrainingDivergedError, evaluate
from routing_gym.experiments.engine.machine import device_name, give_back_freed_memory
from routing_gym.experiments.engine.records import read_arrays, write_arrays
from routing_gym.experiments.engine.stopping import stop_if_asked, unbroken
from routing_gym.networks import ways_out


@dataclasses.dataclass(frozen=True)
class Curve:
    """How a run went, one entry per epoch.

    Attributes:
        epoch: 1, 2, ...
        train_loss: Mean loss of the blocks over the epoch's batches.
        train_accuracy: Mean accuracy while training, exploration included.
        validation_accuracy: Of the deterministic policy after the epoch; on the test split where nothing is held out.
        seconds: Training time so far, without judging.
        judged_on: The split `validation_accuracy`, `macs` and `exits` are of.
        macs: Mean multiply-accumulates per instance after the epoch, the router's own included; None for epochs that
            were run before this was written down.
        exits: How many instances left by each way out (`ways_out`) after the epoch, of all labels; or None.
        use: `(N, A)` share of each choice in the weight at its decision after the epoch (`Evaluation.use`), to four
            digits; or None.
    """

    epoch: list[int] = dataclasses.field(default_factory=list)
    train_loss: list[float] = dataclasses.field(default_factory=list)
    train_accuracy: list[float] = dataclasses.field(default_factory=list)
    validation_accuracy: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    judged_on: str = "validation"
    macs: list[float | None] = dataclasses.field(default_factory=list)
    exits: list[list[int] | None] = dataclasses.field(default_factory=list)
    use: list[list[list[float]] | None] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        later: tuple[list, ...] = (self.macs, self.exits, self.use)
        for column in later:
            column[:0] = [None] * (len(self.epoch) - len(column))


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        agent: The trained agent; its environment holds the trained blocks.
        curve: How it went.
        final: How it does in the end, on the split it was to be judged on.
        seconds: Training time.
        samples_per_second: Instances trained on per second of training time.
    """

    agent: Agent
    curve: Curve
    final: Evaluation
    seconds: float
    samples_per_second: float


def run(
    agent: Agent,
    env: RoutingVectorEnv,
    epochs: int,
    folder: Path,
    curve: Curve | None = None,
    after_epoch: Callable[[Curve], None] | None = None,
    *,
    split: str = "test",
) -> Result:
    """Train an agent and the blocks; judge them on the validation split after every epoch and on the test split last.

    Args:
        agent: A fresh agent, or one loaded from `folder` that has some epochs behind it.
        env: Its environment.
        epochs: How many epochs there should be in the end.
        folder: Receives `checkpoint.pt` after every epoch, so that a run that stops keeps its last good one,
            TensorBoard events, and `policies.npz`: how the agent's policy developed, where it is in a table.
        curve: The epochs that are behind the agent already, from the checkpoint it was loaded from.
        after_epoch: Called with the curve after every epoch, when its checkpoint is written.
        split: What it is judged on in the end.

    Raises:
        TrainingDivergedError: The loss is no longer a number; names agent and step, or epoch.
        Stopped: A signal came; nothing was broken off but the epoch.
    """
    batches = -(-env.trainer.optimization.epoch // env.num_envs)
    judged_on = "validation" if "validation" in env.datasets else "test"
    curve = Curve(judged_on=judged_on) if curve is None else curve
    done = len(curve.epoch)
    policies = PolicyLog(agent, folder / "policies.npz", done, every=-(-batches // SNAPSHOTS_PER_EPOCH))
    seconds = curve.seconds[-1] if curve.seconds else 0.0
    writer = SummaryWriter(str(folder), purge_step=done + 1)
    try:
        for epoch in range(done + 1, epochs + 1):
            seen: list[dict[str, Tensor]] = []
            start = time.perf_counter()

            def note(metrics: dict[str, Tensor], seen: list[dict[str, Tensor]] = seen) -> None:
                seen.append(metrics)
                policies.note()
                stop_if_asked()

            with unbroken():
                agent.learn(env, batches * env.num_envs, note)
            _wait_for(env.device)
            seconds += time.perf_counter() - start
            means = {key: torch.stack([batch[key] for batch in seen]).mean().item() for key in seen[0]}
            validation = _judged(agent, judged_on, epoch)
            curve.epoch.append(epoch)
            curve.train_loss.append(means["loss"])
            curve.train_accuracy.append(means["accuracy"])
            curve.validation_accuracy.append(validation.accuracy)
            curve.seconds.append(seconds)
            curve.macs.append(validation.macs)
            curve.exits.append([int(validation.exits[way].sum()) for way in ways_out(env.network.decisions)])
            curve.use.append(_rounded(validation))
            for key, value in means.items():
                writer.add_scalar(f"train/{key}", value, epoch)
            writer.add_scalar(f"{judged_on}/accuracy_by_epoch", validation.accuracy, epoch)
            writer.add_scalar(f"{judged_on}/macs", validation.macs, epoch)
            with unbroken():
                policies.write(epoch)
                agent.save(folder / "checkpoint.pt", curve=dataclasses.asdict(curve))
            give_back_freed_memory()
            if after_epoch is not None:
                after_epoch(curve)
        final = _judged(agent, split, epochs)
        writer.add_scalar(f"{split}/accuracy", final.accuracy, epochs)
    finally:
        writer.close()
    return Result(agent, curve, final, seconds, agent.episodes / seconds if seconds else 0.0)


def _judged(agent: Agent, split: str, epoch: int) -> Evaluation:
    """Judge an agent on a split.

    Raises:
        TrainingDivergedError: What the network says is no longer numbers.
    """
    judged = evaluate(agent, agent.env, split=split)
    if math.isnan(judged.loss):
        raise TrainingDivergedError(f"agent {agent.name!r}, after epoch {epoch}: the loss on the {split} split is NaN")
    return judged


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


def record_of(result: Result, env_id: str, seed: int, **more: Any) -> dict[str, Any]:
    """Return a run as plain values, the form of `results.json`; MACs are per instance, accuracies 0 to 1.

    Infinite numbers, of an option say, are None: JSON has no word for them.
    """
    agent, final = result.agent, result.final
    network, k_cpt = agent.env.network, agent.env.config.k_cpt
    priced = {"cost": final.cost(k_cpt)} if isinstance(k_cpt, int | float) else {}  # not where prices are drawn
    live = {"live_paths": final.live_paths.tolist()} if network.num_tensors > 1 else {}  # else a choice is a path
    record = {
        "agent": agent.name,
        "env": env_id,
        "seed": seed,
        f"{final.split}_accuracy": final.accuracy,
        "macs": final.macs,
        "blocks_used": final.blocks_used,
        "samples_per_second": result.samples_per_second,
        "seconds": result.seconds,
        f"{final.split}_loss": final.loss,
        "task_accuracy": final.task_accuracy,
        "router_macs": final.router_macs,
        **priced,
        "paths": final.paths,
        **live,
        "parameters": count_parameters(agent),
        "parameters_used": mean_parameters(agent, final),
        "epochs": len(result.curve.epoch),
        "batch_size": agent.env.num_envs,
        "config": dataclasses.asdict(agent.config),
        "env_config": dataclasses.asdict(agent.env.config),
        "curve": dataclasses.asdict(result.curve),
        "routes": final.routes.tolist(),
        "routes_by_label": final.routes_by_label.tolist(),
        "use": _rounded(final),
        "exits": final.exits.tolist(),
        "ways_out": [list(way) for way in ways_out(network.decisions)],
        "decisions": [{"name": decision.name, "next": list(decision.next)} for decision in network.decisions],
        "experts": [list(names) for names in getattr(network, "experts", ())],
        "dataset": agent.env.datasets[final.split].name,
        "device": device_name(agent.env.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **more,
    }
    return {key: finite(value) for key, value in record.items()}


def finite(value: Any) -> Any:
    """Return a plain value with None in place of every number in it that is not finite."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def judged_by_price(result: Result, prices: Sequence[float]) -> list[dict[str, float]]:
    """Judge one agent that knows the price of computation at several prices.

    Args:
        result: A finished run.
        prices: Of one multiply-accumulate each.

    Returns:
        For each price `k_cpt`, the accuracy, `macs`, `loss` and `cost` at it, as in `record_of`.
    """
    points = []
    for price in prices:
        judged = evaluate(result.agent, result.agent.env, split=result.final.split, k_cpt=price)
        points.append(
            {
                "k_cpt": price,
                f"{judged.split}_accuracy": judged.accuracy,
                "macs": judged.macs,
                "loss": judged.loss,
                "cost": judged.cost(price),
            }
        )
    return points


def count_parameters(agent: Agent) -> int:
    """Return how many parameters network and agent have together."""
    return sum(p.numel() for module in (agent.env.network, agent) for p in module.parameters() if p.requires_grad)


def mean_parameters(agent: Agent, judged: Evaluation) -> float | None:
    """Return how many parameters an instance passes on average, as Ramachandran and Le (2019, Table 4) count them.

    Those of the choices it takes; what belongs to no choice, all readouts and the agent included, counts whole.

    Returns:
        None where choices have parameters in common, as in a recurrent network: which of them an instance passes twice
        is not in the counts.
    """
    network = agent.env.network
    share = judged.routes.sum(0).double() / judged.exits.sum()
    seen: set[tuple[int, int | None]] = set()
    total = float(count_parameters(agent))
    for number, decision in enumerate(network.decisions):
        for choice in range(len(decision.next)):
            for owned in network.parameters_of(number, choice):
                piece = (id(owned.parameter), owned.index)
                if piece in seen:
                    return None
                seen.add(piece)
                total -= (1 - float(share[number, choice])) * owned.value.numel()
    return total


def _rounded(judged: Evaluation) -> list[list[float]]:
    """Return the use of every choice in as many digits as a picture shows."""
    return [[round(value, 4) for value in row] for row in judged.use.tolist()]


def _wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, so that it counts as training time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
