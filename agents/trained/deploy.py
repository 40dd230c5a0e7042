"""What is left of routing after training: the blocks in use, or one task's route as a plain network."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import Agent
from routing_gym.agents.fixed import FixedRoutes, FixedRoutesConfig
from routing_gym.blocks import probe
from routing_gym.envs import evaluate
from routing_gym.networks import Deployable, Normalize, RoutedNetwork

CHECKED_ROWS = 8
"""Instances of a task on which the smaller network must give the logits of the routed one."""

TOLERANCE = 1e-3
"""How far the two may differ, as a share of the largest logit."""


def extract(agent: Agent, task: int, *, normalize: bool = True) -> nn.Sequential:
    """Plain network of one task's deterministic route.

    Args:
        agent: Decides the route; its environment holds the blocks.
        task: Its number.
        normalize: Begin with the data set's normalisation, so that the network takes pixels from 0 to 255, uint8 or
            floating point; without it the network takes what `MultiTaskDataset.pixels` gives.

    Returns:
        `(B, C, H, W)` images to `(B, num_classes)` logits, in eval mode, on the environment's device, with parameters
        of its own. `torch.export.export` takes it, with a batch of any size.

    Raises:
        ValueError: No such task, or it has no single route on the data: the agent mixes blocks or decides by the
            instance; or a network of which no plain form is known.
    """
    network, dataset = _deployable(agent), agent.env.dataset
    if isinstance(task, bool) or not isinstance(task, int | np.integer) or not 0 <= task < dataset.num_tasks:
        raise ValueError(f"task must be an integer in [0, {dataset.num_tasks}), got {task!r}")
    (route,) = single_routes(agent, [task])
    static, images = nn.Sequential(*network.static_route(route, task)), _images(agent, task)
    _check_logits(network, probe(static, lambda: static(images)), _logits(network, images, task, route))
    return nn.Sequential(*([Normalize(dataset.mean, dataset.std)] if normalize else []), *static).eval()


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
    config = dataclasses.replace(core.config, action_type="discrete")
    env = type(core)(smaller, core.datasets, core.num_envs, **dataclasses.asdict(config))
    if core.spec is not None and isinstance(core.spec.kwargs.get("network"), str):
        env.spec = copy.deepcopy(core.spec)
        env.spec.kwargs.update(smaller.form_options(), action_type=config.action_type)
    for task, (before, after) in enumerate(zip(routes, renumbered.tolist(), strict=True)):
        images = _images(agent, task)
        _check_logits(network, _logits(smaller, images, task, after), _logits(network, images, task, before))
    return FixedRoutes(env, FixedRoutesConfig(routes=renumbered.tolist())).to(env.device)


def single_routes(agent: Agent, tasks: Sequence[int]) -> list[list[int]]:
    """Deterministic route of each of some tasks: its choice at each decision.

    Every instance of every split is routed to see that there is only one, and that blocks are not mixed.
    """
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


def _deployable(agent: Agent) -> Deployable:
    if not isinstance(agent, Agent):
        raise ValueError(f"expected an agent of routing_gym, got {type(agent).__name__}")
    network = agent.env.network
    if not isinstance(network, Deployable):
        raise ValueError(
            f"{type(network).__name__} can be neither pruned nor extracted: derive it from "
            "routing_gym.networks.Deployable and implement static_route() and pruned()"
        )
    return network


def _images(agent: Agent, task: int) -> Tensor:
    """A few normalised images of a task."""
    dataset = agent.env.dataset
    return dataset.pixels((dataset.task == task).nonzero().flatten()[:CHECKED_ROWS])


def _logits(network: RoutedNetwork, images: Tensor, task: int, route: Sequence[int]) -> Tensor:
    """Logits of images that all take one route through a routed network."""

    def run() -> Tensor:
        plan = torch.tensor(route, device=images.device).expand(len(images), -1)
        return network.follow(network.start(images, torch.full_like(plan[:, 0], task)), plan).exits[0].logits

    return probe(network, run)


def _check_logits(network: RoutedNetwork, got: Tensor, expected: Tensor) -> None:
    """Refuse other logits: those of a subclass that computes something of its own, but inherits `static_route`."""
    if got.shape != expected.shape or bool((got - expected).abs().max() > TOLERANCE * expected.abs().max()):
        raise ValueError(
            f"what is left of the {type(network).__name__} gives other logits than the network itself: its "
            "static_route() and pruned() do not fit what it computes"
        )
