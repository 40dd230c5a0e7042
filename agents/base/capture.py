"""A batch of training as CUDA graphs: hundreds of launches become two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from routing_gym.envs import RoutingVectorEnv, TrainingDivergedError, Trajectory, rollout

if TYPE_CHECKING:
    from routing_gym.agents.base.agent import Agent

WARM_UP = 3
"""Batches that are trained on as usual before one is captured: optimisers have their averages then."""


def check_capturable(agent: Agent, env: RoutingVectorEnv) -> None:
    """Refuse, by a `ValueError`, whatever would wait for the host, or be another batch the next time."""
    config, wrong = env.config, ""
    if env.device.type != "cuda":
        wrong = f"a CUDA device, got {env.device}"
    elif not vars(type(agent)).get("capturable") or getattr(agent.config, "representation", "table") != "table":
        wrong = "an agent that decides by a table, or not at all, and has no schedule (Agent.capturable)"
    elif not env.network.in_order:
        wrong = "a network whose rows all pass every decision (in_order)"
    elif config.schedule != "constant" or env.trainer.throughput is not None or config.dense_backward:
        wrong = "schedule='constant' without talr, block_gradient='rows' and dense_backward"
    elif env.trainer.balance is not None:
        wrong = f"task_balance=None, got {config.task_balance!r}"
    elif env.trainer.optimization.spares:
        wrong = "class_weights and task_weights above 0"
    elif len(config.prices) > 1 or env.dataset.augmentation is not None or len(env.dataset.phases) > 1:
        wrong = "images and prices that are the same every time"
    elif env.ranks.count > 1 or config.replays or env.watchers or agent.needs_gradients:
        wrong = "one process, without replay, render_mode or watchers"
    if wrong:
        raise ValueError(f"agent {agent.name!r}: capture=True needs {wrong}")


class _Held:
    """The order of instances while one batch is captured: always the same tensor, into which others are copied."""

    def __init__(self, instances: Tensor, generator: torch.Generator) -> None:
        self.instances, self.generator = instances, generator

    def draw(self, count: int, passes: float = 0.0) -> Tensor:
        """Instances `(count,)`."""
        return self.instances


class CapturedBatch:
    """One batch of training, captured in two parts, between which the host reads whether all is finite.

    The first routes, runs the blocks forth and back; the second takes the step and lets the agent learn. Replayed they
    do what `train_batch` does, with the instances and random numbers of their turn.
    """

    def __init__(self, agent: Agent, env: RoutingVectorEnv) -> None:
        check_capturable(agent, env)
        self.agent, self.env, stream = agent, env, env.stream
        self.instances = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
        self.parts: list[Any] = [torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()]
        for part in self.parts:
            part.register_generator_state(agent.generator)
        env.stream = _Held(self.instances, stream.generator)
        try:
            with torch.cuda.graph(self.parts[0]):
                self.trajectory = rollout(agent, env)
                batch, trainer = env.batch, env.trainer
                strange = ~self.trajectory.reward().isfinite().all()
                loss = trainer.loss(batch.exits, batch.label, batch.state.task)
                doubtful = strange if batch.doubtful is None else strange | batch.doubtful
                self.noted, self.found = batch.statistics, trainer.backward(loss, None, doubtful)
            with torch.cuda.graph(self.parts[1], pool=self.parts[0].pool()):
                trainer.apply(self.noted)
                self.reported = agent.receive(self.trajectory)
        finally:
            env.stream = stream
        batch.exits = []

    def run(self) -> tuple[Trajectory, Tensor, dict[str, Tensor]]:
        """Train on the next batch; gives and raises what `train_batch` does; the next call writes to the episodes."""
        agent, env, trainer = self.agent, self.env, self.env.trainer
        self.instances.copy_(env.stream.draw(env.num_envs, trainer.passes))
        self.parts[0].replay()
        try:
            trainer.check(self.found, self.noted)
        except TrainingDivergedError as error:
            where = f"agent {agent.name!r}, batch {agent.episodes // env.batch_size + 1}"
            raise TrainingDivergedError(f"{where}: {error}") from error
        self.parts[1].replay()
        trainer.instances += env.num_envs
        agent.episodes += env.num_envs
        return self.trajectory, self.found.loss.clone(), {name: value.clone() for name, value in self.reported.items()}
