"""One run: one agent, one seed, trained and judged."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from routing_gym.agents import Agent
from routing_gym.envs import Evaluation, RoutingVectorEnv, evaluate


@dataclasses.dataclass(frozen=True)
class Curve:
    """How a run went, one entry per epoch.

    Attributes:
        epoch: 1, 2, ...
        train_loss: Mean loss of the blocks over the epoch's batches.
        train_accuracy: Mean accuracy while training, exploration included.
        validation_accuracy: Of the deterministic policy after the epoch; on the test split where nothing is held out.
        seconds: Training time so far, without judging.
    """

    epoch: list[int] = dataclasses.field(default_factory=list)
    train_loss: list[float] = dataclasses.field(default_factory=list)
    train_accuracy: list[float] = dataclasses.field(default_factory=list)
    validation_accuracy: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        agent: The trained agent; its environment holds the trained blocks.
        curve: How it went.
        test: How it does on the test split.
        seconds: Training time.
        samples_per_second: Instances trained on per second of training time.
    """

    agent: Agent
    curve: Curve
    test: Evaluation
    seconds: float
    samples_per_second: float


def run(
    agent: Agent,
    env: RoutingVectorEnv,
    epochs: int,
    folder: Path,
    curve: Curve | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> Result:
    """Train an agent and the blocks; judge them on the validation split after every epoch and on the test split last.

    Args:
        agent: A fresh agent, or one loaded from `folder` that has some epochs behind it.
        env: Its environment.
        epochs: How many epochs there should be in the end.
        folder: Receives `checkpoint.pt` after every epoch, so that a run that stops keeps its last good one, and
            TensorBoard events.
        curve: The epochs that are behind the agent already, from the checkpoint it was loaded from.
        after_epoch: Called with the number of the epoch just done.

    Raises:
        TrainingDivergedError: The loss is no longer a number; names agent and step.
    """
    batches = -(-len(env.dataset) // env.num_envs)
    curve = Curve() if curve is None else curve
    done = len(curve.epoch)
    judged_on = "validation" if "validation" in env.datasets else "test"
    seconds = curve.seconds[-1] if curve.seconds else 0.0
    writer = SummaryWriter(str(folder), purge_step=done + 1)
    try:
        for epoch in range(done + 1, epochs + 1):
            seen: list[dict[str, Tensor]] = []
            start = time.perf_counter()
            agent.learn(env, batches * env.num_envs, seen.append)
            _wait_for(env.device)
            seconds += time.perf_counter() - start
            means = {key: torch.stack([batch[key] for batch in seen]).mean().item() for key in seen[0]}
            validation = evaluate(agent, env, split=judged_on)
            curve.epoch.append(epoch)
            curve.train_loss.append(means["loss"])
            curve.train_accuracy.append(means["accuracy"])
            curve.validation_accuracy.append(validation.accuracy)
            curve.seconds.append(seconds)
            for key, value in means.items():
                writer.add_scalar(f"train/{key}", value, epoch)
            writer.add_scalar(f"{judged_on}/accuracy_by_epoch", validation.accuracy, epoch)
            writer.add_scalar(f"{judged_on}/macs", validation.macs, epoch)
            agent.save(folder / "checkpoint.pt", curve=dataclasses.asdict(curve))
            if after_epoch is not None:
                after_epoch(epoch)
        test = evaluate(agent, env, split="test")
        writer.add_scalar("test/accuracy", test.accuracy, epochs)
    finally:
        writer.close()
    return Result(agent, curve, test, seconds, agent.episodes / seconds if seconds else 0.0)


def record_of(result: Result, env_id: str, seed: int, **more: Any) -> dict[str, Any]:
    """Return a run as plain values, the form of `results.json`; MACs are per instance, accuracies 0 to 1."""
    agent, test = result.agent, result.test
    return {
        "agent": agent.name,
        "env": env_id,
        "seed": seed,
        "test_accuracy": test.accuracy,
        "macs": test.macs,
        "blocks_used": test.blocks_used,
        "samples_per_second": result.samples_per_second,
        "seconds": result.seconds,
        "test_loss": test.loss,
        "task_accuracy": test.task_accuracy,
        "router_macs": test.router_macs,
        "paths": test.paths,
        "parameters": count_parameters(agent),
        "epochs": len(result.curve.epoch),
        "batch_size": agent.env.num_envs,
        "config": dataclasses.asdict(agent.config),
        "env_config": dataclasses.asdict(agent.env.config),
        "curve": dataclasses.asdict(result.curve),
        "routes": test.routes.tolist(),
        "device": _device_name(agent.env.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **more,
    }


def count_parameters(agent: Agent) -> int:
    """Return how many parameters network and agent have together."""
    return sum(p.numel() for module in (agent.env.network, agent) for p in module.parameters())


def _wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, so that it counts as training time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
