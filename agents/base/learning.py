"""The loop that trains an agent and the blocks together (Rosenbaum et al. 2018, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor, nn

from routing_gym.agents.base.capture import WARM_UP, CapturedBatch, check_capturable
from routing_gym.agents.parts.draws import shared_draws
from routing_gym.blocks import with_gradients
from routing_gym.envs import RoutingVectorEnv, TrainingDivergedError, Trajectory, core_of, finite_gradients, rollout
from routing_gym.envs.gradients import exchange_gradients
from routing_gym.networks import NotFiniteError
from routing_gym.tasks.checking import whole_number

if TYPE_CHECKING:
    from routing_gym.agents.base.agent import Agent

Report = Callable[[dict[str, Tensor]], None]
"""What is called after every batch, with its metrics."""
REPORTED = ("loss", "accuracy", "reward", "macs")
"""Metrics reported of every batch, besides the agent's own."""


@with_gradients()
def learn(agent: Agent, env: Any, episodes: int, callback: Report | None = None) -> None:
    """Train for at least `episodes` instances, in whole batches of `env.num_envs`.

    Args:
        agent: Whoever decides, and learns.
        env: The environment it was made for; its episodes under way are given up.
        episodes: How many instances to route, at least 1; of all processes that share batches.
        callback: Called after every batch with its metrics, 0-dimensional tensors: `REPORTED` and the agent's own.

    Raises:
        ValueError: A count below 1, or an environment the agent was not made for.
        TrainingDivergedError: A loss, a gradient or a reward is no longer a number; agent and blocks are as they were
            before the batch. Or a parameter or buffer of the agent is not: it has been updated, and is of no use.
    """
    core = check_learning(agent, env, episodes)
    if core.config.capture:
        check_capturable(agent, core)
    if agent.needs_gradients and agent.optimizer is None:
        raise ValueError(f"agent {agent.name!r} needs gradients, so it must set self.optimizer")
    agent.train()
    step: Callable[[], tuple[Trajectory, Tensor, dict[str, Tensor]]] = partial(train_batch, agent, core)
    for number in range(-(-episodes // core.batch_size)):
        if core.config.capture and number == WARM_UP:
            step = CapturedBatch(agent, core).run
        trajectory, loss, reported = step()
        if callback is not None:
            means = {"accuracy": trajectory.correct, "reward": trajectory.reward(), "macs": trajectory.macs}
            callback({"loss": loss, **{name: value.mean() for name, value in means.items()}, **reported})
    check_state(agent)


def check_learning(agent: Agent, env: Any, episodes: int) -> RoutingVectorEnv:
    """Vector environment that an agent is to learn in; refuses others than its own, and a count below 1."""
    whole_number("episodes", episodes)
    core = core_of(env)
    if "carried" not in vars(agent):  # which Agent.__init__ sets
        raise ValueError(f"{type(agent).__name__}: call super().__init__(env, config) first in its __init__")
    if core is not agent.env:
        raise ValueError("the agent was made for another environment: make_agent(name, env) first, or Agent.load")
    if not core.config.train:
        raise ValueError("this environment was made with train=False: its blocks cannot be trained")
    return core


@with_gradients()
def train_batch(agent: Agent, env: RoutingVectorEnv) -> tuple[Trajectory, Tensor, dict[str, Tensor]]:
    """Route one batch, train the blocks on it, then the agent; gives episodes, blocks' loss and the agent's metrics.

    Raises:
        TrainingDivergedError: A loss, gradient, reward, parameter or buffer is no number; names agent and batch.
        ValueError: The agent did something that is not allowed; names both.
    """
    joint = agent.optimizer if agent.needs_gradients else None

    def check_agent() -> Tensor:
        agent.before_step(trajectory)
        if env.ranks.count > 1 and joint is not None:
            exchange_gradients(agent, list(agent.parameters()), env.ranks, torch.tensor(True, device=env.device))
        return finite_gradients(agent.parameters())

    if joint is not None:
        joint.zero_grad(set_to_none=True)
    where = f"{_named(agent)}, batch {agent.episodes // env.batch_size + 1}"
    strange = None
    try:
        with shared_draws(agent.generator):
            trajectory = rollout(agent, env)
        strange = ~trajectory.reward().isfinite().all()
        extra = agent.auxiliary_loss(trajectory)
        if extra is not None and not (isinstance(extra, Tensor) and extra.ndim == 0):
            raise ValueError(f"auxiliary_loss must return a 0-dimensional tensor or None, got {extra!r:.60}")
        loss = env.train_blocks(extra, None if joint is None else check_agent, doubtful=strange)
    except (TrainingDivergedError, NotFiniteError) as error:
        check_state(agent)
        if strange is not None and bool(strange):
            names = ", ".join(name for name, value in trajectory.rewards.items() if not bool(value.isfinite().all()))
            raise TrainingDivergedError(f"{where}: a reward is not finite ({names}); no step was taken") from error
        raise TrainingDivergedError(f"{where}: {error}") from error
    except ValueError as error:
        check_state(agent)
        with suppress(ResetNeeded):  # before the first batch there is no observation
            if not bool(env.observe()["activation"].isfinite().all()):
                raise TrainingDivergedError(
                    f"{where}: activations are not finite; the blocks' learning rate may be too high"
                ) from error
        raise ValueError(f"{where}: {error}") from error
    if joint is not None:
        joint.step()
    trajectory = trajectory.of_all_ranks(env.ranks)
    reported = _metrics(agent, agent.receive(trajectory))
    agent.episodes += len(trajectory)
    if env.device.type == "cpu":  # elsewhere it would wait for the device, so that the next batch finds out, or `learn`
        check_state(agent)
    return trajectory, loss, reported


def _metrics(agent: Agent, reported: Any) -> dict[str, Tensor]:
    """Metrics that an agent's `update` has reported, as 0-dimensional tensors; refuses all but numbers by name."""
    if not isinstance(reported, Mapping):
        raise ValueError(f"{_named(agent)}: update must return numbers by name, or None, got {reported!r:.60}")
    metrics = {}
    for name, value in reported.items():
        if name in REPORTED or not isinstance(name, str):
            raise ValueError(
                f"{_named(agent)}: update reports {name!r}; names are texts other than {', '.join(REPORTED)}, which "
                "are reported anyway"
            )
        single = isinstance(value, int | float | np.number) or (isinstance(value, Tensor) and value.ndim == 0)
        if not single or (isinstance(value, Tensor) and value.is_complex()):
            raise ValueError(f"{_named(agent)}: update reports {name} as {value!r:.60}, expected one number")
        metrics[name] = torch.as_tensor(value).detach().float()
    return metrics


def check_state(agent: Agent) -> None:
    """Find numbers that are not finite in an agent's parameters and buffers.

    A parameter is refused as well where its square is infinite: products of such numbers are none. In a buffer infinity
    may stand. The error names the first such tensor.
    """
    kept = [(name, tensor.detach()) for name, tensor in agent.named_parameters()]
    numbers = [tensor for _, tensor in kept] + [buffer for buffer in agent.buffers() if buffer.is_floating_point()]
    if not numbers or bool(nn.utils.get_total_norm(numbers).isfinite()):
        return
    wrong = [(name, ~tensor.square().isfinite()) for name, tensor in kept]
    wrong += [(name, tensor.isnan()) for name, tensor in agent.named_buffers()]
    for name, where in wrong:
        if bool(where.any()):
            raise TrainingDivergedError(
                f"{_named(agent)}: after {agent.episodes} episodes {name} is not finite any more, or too large to "
                f"compute with ({int(where.sum())} of {where.numel()} numbers): its learning rate may be too high, "
                "or a reward too large"
            )


def _named(agent: Agent) -> str:
    return f"agent {agent.name or type(agent).__name__!r}"
