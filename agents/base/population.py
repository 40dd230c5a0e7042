"""Agents of one kind and their blocks, trained side by side as one program: a batch is one of each of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from routing_gym.agents.base.agent import Agent
from routing_gym.agents.base.learning import train_batch
from routing_gym.agents.parts.draws import Generators, shared_draws
from routing_gym.blocks import UsedOnly, construction, with_gradients
from routing_gym.envs import EnvConfig, RoutingVectorEnv
from routing_gym.envs.rewards import REWARDS
from routing_gym.networks import RoutedMLP, SideBySide
from routing_gym.tasks import MultiTaskDataset
from routing_gym.tasks.checking import whole_number
from routing_gym.tasks.sampling import Stream

Told = Callable[[list[dict[str, Tensor]]], None]
"""What is called after every batch, with the metrics of each agent."""

OF_WHOLE_BATCHES = (
    "rewards", "rho", "price", "augmentations", "dense_backward", "replay", "max_grad_norm", "label_smoothing",
    "class_weights", "task_weights", "task_balance", "talr", "block_gradient", "render_mode", "distributed", "capture",
)  # fmt: skip
"""Options of an environment that stay at their defaults: what they do to a row may depend on the others of a batch."""


class Population:
    """Agents of one kind, each with an environment of its own, that learn at the same time as they would alone.

    Their networks become one with the blocks of all (`SideBySide`), their tasks the tasks of one data set, their tables
    one table, and a batch one batch of each: as many calls as for one agent do the work of all. Every agent draws the
    instances and random numbers it would draw alone, and what it learns differs by rounding only.

    Between two calls of `learn` agents and environments are as if each had learned alone. After an error their blocks
    and all they have learned are as before the call, but their random numbers have gone on.

    Attributes:
        episodes: Instances that each has routed while learning.

    Raises:
        ValueError: Agents, networks or options for which that cannot be done, or which are not alike but for seeds.
    """

    @construction()
    def __init__(self, agents: Sequence[Agent]) -> None:
        self.agents = list(agents)
        if not self.agents or not all(isinstance(agent, Agent) for agent in self.agents):
            raise ValueError(f"a population is of at least one agent, got {agents!r:.60}")
        first, env = self.agents[0], self.agents[0].env
        given, usual, where = env.config, EnvConfig(), f"agent {first.name!r} cannot learn side by side with others"
        if len({id(agent.env.network) for agent in self.agents}) < len(self.agents):
            raise ValueError(f"{where} that share its blocks: every agent has an environment of its own")
        if not vars(type(first)).get("by_task"):
            raise ValueError(f"{where}: what it does with a task may depend on others")
        self._check_alike()
        if wrong := [name for name in OF_WHOLE_BATCHES if getattr(given, name) != getattr(usual, name)]:
            raise ValueError(f"{where} with {wrong[0]}={getattr(given, wrong[0])!r}, which is about whole batches")
        if not REWARDS[given.final_reward].ours:
            raise ValueError(f"{where} with a final_reward of one's own, which may look at whole batches")
        if given.autoreset_mode != "disabled" or not given.train:
            raise ValueError(f"{where}: make environments with autoreset_mode='disabled' (needs(NAME)) and train=True")
        if len(given.prices) > 1 or env.dataset.augmentation is not None:
            raise ValueError(f"{where} where instances draw their prices (several k_cpt), or images are augmented")
        self.network = SideBySide([cast(RoutedMLP, agent.env.network) for agent in self.agents], first.num_tasks)
        data = side_by_side([agent.env.dataset for agent in self.agents])
        size = env.num_envs * len(self.agents)
        self.env = RoutingVectorEnv(self.network, data, size, **vars(given) | {"split": data.split})
        trainer = self.env.trainer
        trainer.runs, trainer.optimization = len(self.agents), env.trainer.optimization  # its epoch, too
        self.env.stream = cast(Stream, _Streams([agent.env for agent in self.agents]))
        self.joint = joint = first.for_many(self.env).to(env.device)
        self.episodes = first.episodes
        joint.name, joint.generator = first.name, Generators([agent.generator for agent in self.agents])
        parts = [agent.state_dict() for agent in self.agents]
        for name, whole in joint.state_dict().items():
            if any(not part[name].ndim or whole.shape != _times(part[name], len(parts)) for part in parts):
                raise ValueError(f"{where}: {name} is not by task (arrangement='per_task' has a part for each)")
        self._optimizers = [(trainer.optimizer, [agent.env.trainer.optimizer for agent in self.agents])]
        if joint.optimizer is not None:
            self._optimizers.append((joint.optimizer, [cast(Optimizer, agent.optimizer) for agent in self.agents]))
        for optimizer, _ in self._optimizers:
            if not isinstance(optimizer, UsedOnly):
                raise ValueError(f"{where}: its optimizer must be one of routing_gym.blocks, got {type(optimizer)}")

    def _check_alike(self) -> None:
        first = self.agents[0]
        if any(_form(agent) != _form(first) for agent in self.agents):
            raise ValueError(
                f"agent {first.name!r} cannot learn side by side with others: all need the same options but for seeds, "
                "as much data, and as many episodes behind them"
            )

    @with_gradients()
    def learn(self, episodes: int, told: Told | None = None) -> None:
        """Train every agent for at least so many instances of its own, in whole batches; see `learn` of one agent.

        `told` is given the loss, accuracy, reward and multiply-accumulates of each agent's batch.
        """
        whole_number("episodes", episodes)
        self._check_alike()
        joint, env, own = self.joint, self.env, self.agents[0].env
        self._take_in()
        joint.train()
        before = self.agents[0].episodes
        for done in range(0, episodes, own.num_envs):  # as of one: schedules go by these
            joint.episodes, env.trainer.instances = before + done, own.trainer.instances + done
            env.trainer.carried = own.trainer.carried
            with shared_draws(joint.generator):  # what updates draw, too
                trajectory, _, _ = train_batch(joint, env)
            self.episodes = before + done + own.num_envs
            if told is not None:
                rows = {"loss": trajectory.loss, "accuracy": trajectory.correct, "reward": trajectory.reward()}
                rows["macs"] = trajectory.macs
                means = {name: value.view(len(self.agents), -1).mean(1) for name, value in rows.items()}
                told([{name: value[number] for name, value in means.items()} for number in range(len(self.agents))])
        self._hand_back(self.episodes - before)

    def policy(self, number: int) -> Tensor | None:
        """Probabilities `(T, N, A)` of the choices of one of the agents, see `Agent.policy`; those of now."""
        policy = self.joint.policy()
        return None if policy is None else policy.chunk(len(self.agents))[number]

    def _parts(self) -> list[tuple[dict[str, Tensor], list[dict[str, Tensor]]]]:
        """What is learned, of all together and of each: blocks, and what agents have learned."""
        networks = [{name: p.data for name, p in agent.env.network.named_parameters()} for agent in self.agents]
        blocks = {name: p.data for name, p in self.network.wide.named_parameters()}
        return [(blocks, networks), (self.joint.state_dict(), [agent.state_dict() for agent in self.agents])]

    def _take_in(self) -> None:
        """Take what every agent, network and optimiser has learned."""
        for whole, parts in self._parts():
            for name, value in whole.items():
                value.copy_(torch.cat([part[name] for part in parts]))
        for optimizer, own in self._optimizers:
            _join(optimizer, own)

    def _hand_back(self, episodes: int) -> None:
        """Give every agent, network and optimiser its part of what has been learned meanwhile."""
        for agent in self.agents:
            agent.episodes += episodes
            agent.env.trainer.instances += episodes
        for whole, parts in self._parts():
            for name, value in whole.items():
                for part, piece in zip(parts, value.chunk(len(parts)), strict=True):
                    part[name].copy_(piece)
        for optimizer, own in self._optimizers:
            _part(optimizer, own)


def _times(part: Tensor, count: int) -> tuple[int, ...]:
    """Shape of so many of a tensor, one after the other along the first axis."""
    return (count * len(part), *part.shape[1:])


class _Streams:
    """The order of instances of several environments, whose rows stand one after the other; `generator` is not used."""

    def __init__(self, envs: Sequence[RoutingVectorEnv]) -> None:
        self.envs, self.generator = envs, envs[0].stream.generator

    def draw(self, count: int, passes: float = 0.0) -> Tensor:
        """Rows `(count,)`, as many of each."""
        drawn = [env.stream.draw(count // len(self.envs), passes) for env in self.envs]
        return torch.cat([rows + number * len(self.envs[0].dataset) for number, rows in enumerate(drawn)])


def side_by_side(data: Sequence[MultiTaskDataset]) -> MultiTaskDataset:
    """One split with the tasks and rows of several, of as many each; images they have in common are stored once."""
    first, tasks, rows = data[0], data[0].num_tasks, range(len(data))
    shared = all(torch.equal(own.images, first.images) for own in data[1:])
    images, mean, std, starts = first.images, first.mean, first.std, [0] * len(data)
    if not shared:  # and so perhaps normalised by other means
        images = torch.cat([own.normalized(own.images) for own in data])
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
        starts = [0, *itertools.accumulate(len(own.images) for own in data[:-1])]
    return dataclasses.replace(
        first,
        images=images,
        image=torch.cat([data[number].image + starts[number] for number in rows]),
        task=torch.cat([data[number].task + number * tasks for number in rows]),
        label=torch.cat([own.label for own in data]),
        num_tasks=len(data) * tasks,
        mean=mean,
        std=std,
        drawings=0,
        shades=None,
        task_names=(),
        planted=None,
        during=None if first.during is None else torch.cat([cast(Tensor, own.during) for own in data]),
        late_task=None,
    )


def _form(agent: Agent) -> list[Any]:
    """All that agents must have in common."""
    data, trainer = agent.env.dataset, agent.env.trainer
    sizes = len(data), data.num_tasks, data.num_classes, [begin for begin, _ in data.phases]
    counts = agent.env.num_envs, agent.episodes, agent.carried, trainer.instances, trainer.carried
    configs = [dataclasses.replace(config, seed=0) for config in (agent.config, agent.env.config)]
    return [type(agent), *configs, *sizes, *counts]


def _parameters(joint: Optimizer, own: Sequence[Optimizer]) -> list[tuple[nn.Parameter, list[nn.Parameter]]]:
    """Every parameter of an optimiser with those of the others that make it up."""
    lists = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in (joint, *own)]
    return [(whole, list(parts)) for whole, *parts in zip(*lists, strict=True)]


def _join(joint: Optimizer, own: Sequence[Optimizer]) -> None:
    """Give an optimiser the options of others, and what they have averaged and counted, one after the other."""
    joint.state.clear()
    for group, theirs in zip(joint.param_groups, own[0].param_groups, strict=True):
        group.update({name: option for name, option in theirs.items() if name != "params"})
    for whole, parts in _parameters(joint, own):
        states = [optimizer.state.get(part, {}) for optimizer, part in zip(own, parts, strict=True)]
        for name in states[0]:
            values = [state[name] for state in states]
            if values[0].ndim == 0 or any(value.shape != values[0].shape for value in values):  # counted alike so far
                alike = all(value.ndim == 0 and value == values[0] for value in values)
                values = values[:1] if alike else [v.expand(len(part)) for v, part in zip(values, parts, strict=True)]
            joint.state[whole][name] = values[0].clone() if values[0].ndim == 0 else torch.cat(values)


def _part(joint: Optimizer, own: Sequence[Optimizer]) -> None:
    """Give every optimiser its part of what the joint one has averaged and counted."""
    for optimizer in own:
        for group, theirs in zip(optimizer.param_groups, joint.param_groups, strict=True):
            group.update({name: option for name, option in theirs.items() if name != "params"})
    for whole, parts in _parameters(joint, own):
        for name, value in joint.state.get(whole, {}).items():
            pieces = [value] * len(parts) if value.ndim == 0 else value.chunk(len(parts))
            for optimizer, part, piece in zip(own, parts, pieces, strict=True):
                optimizer.state[part][name] = piece.clone()
