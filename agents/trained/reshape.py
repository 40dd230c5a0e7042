"""What a trained agent is made into: one task's plain network, an agent with fewer blocks, or with more tasks."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import Agent
from routing_gym.agents.fixed import FixedRoutes, FixedRoutesConfig
from routing_gym.agents.parts.bases import LearningConfig
from routing_gym.agents.trained.dense import CHECKED_ROWS, TOLERANCE, Dense, dense_form
from routing_gym.blocks import construction, probe
from routing_gym.envs import RoutingVectorEnv, evaluate
from routing_gym.envs.accept import Splits, accept_splits
from routing_gym.networks import Deployable, Normalize, RoutedNetwork
from routing_gym.options import plain_value


@construction()
def extract(
    agent: Agent, task: int | str | None = None, *, normalize: bool = True, k_cpt: float | None = None
) -> nn.Sequential | Dense:
    """Plain network of one task's deterministic route; or, without a task, network and agent as one plain computation.

    It maps images `(B, C, H, W)` to logits `(B, num_classes)`, in eval mode, on the environment's device, with
    parameters of its own. With `normalize` it begins with the data set's normalisation, so that it takes pixels from 0
    to 255, uint8 or floating point; without, what `MultiTaskDataset.pixels` gives. `torch.export.export` and
    `torch.onnx.export` take it, with a batch of any size.

    Without a task agents that decide by the instance and that mix are taken, too. All that could run is run, and
    decisions weigh it, so that the logits are those of `agent.classify` at the cost of everything. Where there are
    several tasks it takes that of every image as a second input, `(B,)` int64.

    Args:
        agent: The agent, whose environment holds the network.
        task: The task, its number or its name; None for all.
        normalize: Whether images are normalised here.
        k_cpt: What a multiply-accumulate costs, for good; for agents that see the price, without a task.

    Raises:
        ValueError: No such task, or it has no single route on the data: the agent mixes blocks or decides by the
            instance; a network of which no plain form is known; without a task, an agent or a network that looks at
            values on the host, draws when deterministic, or remembers; an agent that sees the price, and none given.
    """
    _check_agent(agent)
    if task is None:
        return dense_form(agent, normalize=normalize, k_cpt=k_cpt)
    if k_cpt is not None:
        raise ValueError(f"k_cpt={k_cpt!r} is for extract(agent) without a task: a single route has its price in it")
    dataset, task = agent.env.dataset, number_of(agent, task)
    try:
        network, (route,) = _deployable(agent), single_routes(agent, [task])
    except ValueError as error:
        raise ValueError(f"{error}; without a task extract() takes network and agent together") from error
    static = nn.Sequential(*network.static_route(route, task))
    _check_logits(agent, task, route, lambda images: probe(static, lambda: static(images)))
    return nn.Sequential(*([Normalize(dataset.mean, dataset.std)] if normalize else []), *static).eval()


def number_of(agent: Agent, task: int | str) -> int:
    """Number of a task that is given by its number or its name; a `ValueError` if there is none."""
    dataset = agent.env.dataset
    names = list(dataset.task_names)
    if isinstance(task, str) and task in names:
        return names.index(task)
    if isinstance(task, int | np.integer) and not isinstance(task, bool) and 0 <= task < dataset.num_tasks:
        return int(task)
    named = f" or one of {names}" if names else ", its tasks have no names"
    raise ValueError(f"task must be an integer in [0, {dataset.num_tasks}){named}, got {task!r}")


@construction()
def prune(agent: Agent) -> FixedRoutes:
    """Agent that takes an agent's deterministic routes for ever, in a network without the blocks that no task takes.

    Its `env` is one like the agent's, with a smaller network, copies of the blocks that are left and a fresh optimiser.
    It can be judged, saved, and trained further; agent and network given stay as they are.

    Raises:
        ValueError: A task has no single route on the data: the agent mixes blocks or decides by the instance; or a
            network that cannot be pruned.
    """
    network, core = _deployable(agent), agent.env
    routes = single_routes(agent, range(agent.num_tasks))
    smaller, renumbered = network.pruned(torch.tensor(routes))
    config = dataclasses.replace(core.config, action_type="discrete", merge_blocks=False)
    env = type(core)(smaller, core.datasets, core.num_envs, **dataclasses.asdict(config))
    if core.spec is not None and isinstance(core.spec.kwargs.get("network"), str):
        env.spec = copy.deepcopy(core.spec)
        env.spec.kwargs.update(smaller.form_options(), action_type="discrete", merge_blocks=False)
    for task, (before, after) in enumerate(zip(routes, renumbered.tolist(), strict=True)):
        _check_logits(agent, task, before, partial(_logits, smaller, task=task, route=after))
    return FixedRoutes(env, FixedRoutesConfig(routes=renumbered.tolist())).to(env.device)


def single_routes(agent: Agent, tasks: Sequence[int]) -> list[list[int]]:
    """Deterministic routes of some tasks, once every split is routed to see that there is one each, without mixing."""
    env = agent.env
    if agent.num_tensors > 1:
        raise ValueError(f"up to {agent.num_tensors} tensors choose at a decision, so that no task has a single route")
    judged = [evaluate(agent, env, split=split) for split in env.datasets]
    counts, weights = sum(part.routes for part in judged), sum(part.weights for part in judged)
    assert isinstance(counts, Tensor) and isinstance(weights, Tensor)
    for task in tasks:
        for number, taken in enumerate(counts[task]):
            if not torch.equal(weights[task, number], taken.to(weights.dtype)):
                raise ValueError(
                    f"agent {agent.name!r} mixes blocks by weights, so that task {task} has no single route: decision "
                    f"{number} ({env.network.decisions[number].name!r})"
                )
            if len(choices := taken.nonzero().flatten().tolist()) > 1:
                raise ValueError(
                    f"task {task} has no single route: at decision {number} ({env.network.decisions[number].name!r}) "
                    f"agent {agent.name!r} takes the choices {choices}, depending on the instance"
                )
    return [counts[task].argmax(-1).tolist() for task in tasks]


def _check_agent(agent: Agent) -> None:
    if not isinstance(agent, Agent):
        raise ValueError(f"expected an agent of routing_gym, got {type(agent).__name__}")


def _deployable(agent: Agent) -> Deployable:
    _check_agent(agent)
    network = agent.env.network
    if not isinstance(network, Deployable):
        raise ValueError(
            f"{type(network).__name__} can be neither pruned nor extracted: derive it from "
            "routing_gym.networks.Deployable and implement static_route() and pruned()"
        )
    return network


def _logits(network: RoutedNetwork, images: Tensor, task: int, route: Sequence[int]) -> Tensor:
    """Logits of images that all take one route through a routed network."""

    def run() -> Tensor:
        plan = torch.tensor(route, device=images.device).expand(len(images), -1)
        return network.follow(network.start(images, torch.full_like(plan[:, 0], task)), plan).exits[0].logits

    return probe(network, run)


def _check_logits(agent: Agent, task: int, route: Sequence[int], smaller: Callable[[Tensor], Tensor]) -> None:
    """Refuse other logits than the routed network's: those of a subclass that only inherits `static_route`."""
    network, dataset = agent.env.network, agent.env.dataset
    images = dataset.pixels((dataset.task == task).nonzero().flatten()[:CHECKED_ROWS])
    got, expected = smaller(images), _logits(network, images, task, route)
    if got.shape != expected.shape or bool((got - expected).abs().max() > TOLERANCE * expected.abs().max()):
        raise ValueError(
            f"what is left of the {type(network).__name__} gives other logits than the network itself: its "
            "static_route() and pruned() do not fit what it computes"
        )


@construction()
def add_task(agent: Agent, data: Splits, *, block_rate: float = 0.1) -> Agent:
    """Add tasks to a trained agent: new agents for them, blocks that go on learning slowly.

    Source: Rosenbaum et al. 2018, section 6. The blocks are those of the old agent, not a copy. Its environment stays
    as it is; the new agent has one of its own, which holds all tasks, but draws instances of the new ones only.
    `evaluate` judges all, so that forgetting is seen.

    Args:
        agent: The trained agent.
        data: The new tasks, one split or splits by name: at least the splits of the agent's own environment, with
            images of the same shape and no more classes than the network has logits for. They are normalised as the old
            ones are.
        block_rate: What the blocks' learning rate is multiplied by, above 0; their schedule ends. Whatever it is, batch
            norm that all tasks share goes on averaging, over the new tasks now.

    Where tasks weigh differently, new ones weigh 1.

    Returns:
        A new agent of the same class and options, which knows what the old one did. Its schedules stand where they
        stood, those in passes to the nearest instance, and so does the time of the data; its optimisers begin anew.

    Raises:
        ValueError: A split is missing, the data do not fit the network, the network is told the task as input or
            reads each out by itself, or the agent cannot route so many tasks.
    """
    block_rate = plain_value(block_rate)
    if not (isinstance(block_rate, int | float) and block_rate is not True and 0 < block_rate < float("inf")):
        raise ValueError(f"block_rate must be positive and finite, got {block_rate}")
    old, data = agent.env, accept_splits(data, "the new tasks")
    if missing := sorted(set(old.datasets) - set(data)):
        raise ValueError(f"the new tasks have no split {missing[0]!r}; they need {', '.join(old.datasets)}")
    if any(getattr(old.network, told, False) for told in ("task_input", "readout_per_task")):
        raise ValueError(
            "this network is told the task as input, or reads each out by itself: it has no place for another one"
        )
    if getattr(agent.config, "routes", None) is not None:
        raise ValueError(
            f"agent {agent.name!r} was given a route for each of its tasks, and has none for others: add them to the "
            "agent that it was pruned from"
        )
    datasets = {name: split.with_tasks(data[name]) for name, split in old.datasets.items()}
    before, after = old.dataset.num_tasks, datasets[old.config.split].num_tasks
    rate, drawn = old.config.learning_rate * block_rate, tuple(range(before, after))
    weights = old.config.task_weights
    changed = dataclasses.replace(
        old.config,
        draw_tasks=drawn,
        learning_rate=rate,
        schedule="constant",
        schedule_epochs=type(old.config).schedule_epochs,
        task_weights=None if weights is None else (*weights, *[1.0] * len(drawn)),
    )
    env = RoutingVectorEnv(old.network, datasets, old.num_envs, **dataclasses.asdict(changed))
    config = agent.config
    if isinstance(config, LearningConfig) and config.arrangement == "dispatched":
        config = dataclasses.replace(config, num_agents=config.num_agents or before)
    grown = type(agent)(env, config).to(env.device)
    grown.name, grown.episodes = agent.name, agent.episodes
    grown.carried = round(agent.passes * env.trainer.optimization.epoch) - agent.episodes
    env.trainer.carried = round(old.trainer.passes * env.trainer.optimization.epoch)
    known = agent.state_dict()
    state = {key: _extended(known[key], fresh) if key in known else fresh for key, fresh in grown.state_dict().items()}
    grown.load_state_dict(state)
    env.rewards.share.total = _extended(old.rewards.share.total, env.rewards.share.total)
    return grown


def _extended(known: Any, fresh: Any) -> Any:
    """Fresh tensor, or dictionary of some, whose first entries along every axis, of old tasks, are the known ones."""
    if isinstance(known, Mapping):
        return {key: _extended(known[key], fresh[key]) for key in fresh}
    if isinstance(known, bytes):  # of a form that the agent alone knows, who checks it
        return known
    if known.ndim != fresh.ndim or any(old > new for old, new in zip(known.shape, fresh.shape, strict=True)):
        raise ValueError(f"an agent's state of shape {tuple(known.shape)} does not grow into {tuple(fresh.shape)}")
    grown = fresh.clone()
    grown[tuple(slice(size) for size in known.shape)] = known
    return grown
