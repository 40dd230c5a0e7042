"""The full training step and inference of agents, against the static network of the same shape."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents import Agent, agent_class, train_batch
from routing_gym.blocks import count_macs, first_weights
from routing_gym.envs import EnvConfig, Manner, RoutingVectorEnv, rollout
from routing_gym.envs.training import OPTIMIZERS
from routing_gym.experiments.benchmarks.timing import Steps, against, in_turns, measure, steps_of
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.engine.settings import build_agent
from routing_gym.networks import RoutedMLP, RoutedNetwork, make_network
from routing_gym.tasks import MultiTaskDataset, ShuffledStream, pixel_statistics, synthetic_mtl

WIDTH = 128
LAYERS = 3
STATIC = "static"
TASKS, CLASSES, BATCH, EPOCH = 20, 5, 128, 50_000
"""Of the convolutional network."""

Agents = Mapping[str, tuple[str, ...]]
"""Options of each agent to measure, as NAME=VALUE."""


def one_route(network: Any) -> nn.Module:
    """Return one route of a `Deployable` network as plain modules: the same layers, each once."""
    return nn.Sequential(*network.static_route([0] * len(network.decisions), 0))


@dataclasses.dataclass(frozen=True)
class Subject:
    """A routed network, and what it is trained on and by.

    Attributes:
        network: Builds the network.
        data: Its data by split, on the device.
        blocks: Blocks per routed layer.
        static: Makes a plain network of the same shape of it.
        optimizer: Optimiser of the blocks, and of the static network.
        learning_rate: Its step size.
        precision: What both compute in: an option of the environment, see `EnvConfig`.
    """

    network: Callable[[], RoutedNetwork]
    data: dict[str, MultiTaskDataset]
    blocks: int
    static: Callable[[Any], nn.Module] = one_route
    optimizer: str = "sgd"
    learning_rate: float = 1e-2
    precision: str = "float32"

    @property
    def device(self) -> torch.device:
        """Where it is measured."""
        return self.data["train"].device

    def fresh(self) -> RoutedNetwork:
        """Return the network with the same first weights each time, on the device."""
        with first_weights(0):
            return self.network().to(self.device)

    def make_env(self, batch: int, agent: type[Agent] | None = None, **options: Any) -> RoutingVectorEnv:
        """Return an environment over a network of its own, in the form an agent needs."""
        if agent is not None:
            known = {field.name for field in dataclasses.fields(EnvConfig)}
            options |= {key: value for key, value in agent.env_kwargs.items() if key in known}
            options["action_type"] = agent.action_type
        return RoutingVectorEnv(
            self.fresh(),
            self.data,
            batch,
            autoreset_mode="disabled",
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            precision=self.precision,
            device=str(self.device),
            **options,
        )


def mlp(blocks: int, device: torch.device) -> Subject:
    """Return three routed layers, 128 wide throughout (pixels, hidden layers and logits), as many tasks as blocks."""
    splits = synthetic_mtl(num_tasks=blocks, num_classes=WIDTH, image_size=8, images_per_class=4)
    data = {
        name: dataclasses.replace(split, images=torch.cat([split.images, split.images.flip(3)], 3)).to(device)
        for name, split in splits.items()
    }
    shape = data["train"].input_shape
    return Subject(lambda: RoutedMLP(shape, WIDTH, blocks, width=WIDTH, layers=LAYERS), data, blocks)


def convnet(device: torch.device) -> Subject:
    """Return SimpleConvNet with a block per task in each of three routed layers, on images as CIFAR-MTL's, by Adam."""
    data = {"train": stand_in_images(TASKS, CLASSES).to(device)}
    shape = data["train"].input_shape
    build = partial(make_network, "simple-convnet", num_tasks=TASKS, num_classes=CLASSES, input_shape=shape)
    return Subject(build, data, TASKS, optimizer="adam", learning_rate=1e-3)


def stand_in_images(num_tasks: int, num_classes: int, per_class: int = 20) -> MultiTaskDataset:
    """Return colour noise of 32x32 pixels, `(N, 3, 32, 32)` uint8, `per_class` of each class of each task."""
    rows = torch.arange(num_tasks * num_classes * per_class)
    numbers = torch.Generator().manual_seed(0)
    images = torch.randint(256, (len(rows), 3, 32, 32), generator=numbers, dtype=torch.uint8)
    mean, std = pixel_statistics(images)
    task, label = rows // per_class // num_classes, rows // per_class % num_classes
    return MultiTaskDataset("stand-in images", "train", images, rows, task, label, num_tasks, num_classes, mean, std)


def check(subject: Subject, agents: Agents) -> None:
    """Refuse agents that cannot be measured, before the first minute is spent.

    Raises:
        UsageError: Options an agent does not take, a network it cannot route, or training by a loop of its own.
    """
    for name, options in agents.items():
        if agent_class(name).learn is not Agent.learn:
            raise UsageError(f"agent {name!r} is trained by a loop of its own: it has no training step to measure")
        build_agent(name, subject.make_env(1, agent_class(name)), 0, options)


def measure_agents(subject: Subject, batch: int, agents: Agents, rounds: int) -> list[Record]:
    """Measure every agent and the static network in turns.

    Returns:
        A record per agent: `agent`, `agent_options`, `blocks`, `batch`, `dtype`; what `against` says; `macs_ratio`, the
        multiply-accumulates per instance of the deterministic policy, its own included, over the static network's;
        `router_macs_ratio`, the policy's own part of it; `transitions_per_second`, of the environment alone with random
        actions.
    """
    makers: dict[str, Callable[[], Steps]] = {STATIC: partial(static_steps, subject, batch)}
    makers |= {name: partial(agent_steps, subject, batch, name, options) for name, options in agents.items()}
    measured = measure(makers, rounds, subject.device)
    transitions = transitions_per_second(subject, batch, rounds)
    image = torch.zeros(1, *subject.data["train"].input_shape, device=subject.device)
    static_macs = count_macs(subject.static(subject.fresh()), image)
    records = []
    for name, options in agents.items():
        macs, own = macs_of(subject, name, options)
        records.append(
            {
                "agent": name,
                "agent_options": list(options),
                "blocks": subject.blocks,
                "batch": batch,
                "dtype": subject.precision,
                **against(measured[name], measured[STATIC], batch),
                "macs_ratio": (macs + own) / static_macs,
                "router_macs_ratio": own / static_macs,
                "transitions_per_second": transitions,
            }
        )
    return records


def measure_convnet(subject: Subject, agents: Agents, rounds: int) -> list[Record]:
    """Return a record per agent, with the seconds 50 000 instances take in training; `static_...` are the route's."""
    return [
        {
            **record,
            "seconds_per_50000": EPOCH / record["train_samples_per_second"],
            "static_seconds_per_50000": EPOCH / record["static_train_samples_per_second"],
        }
        for record in measure_agents(subject, BATCH, agents, rounds)
    ]


def agent_steps(subject: Subject, batch: int, name: str, options: tuple[str, ...]) -> Steps:
    """Return the steps of an agent, see `routed_steps`."""
    env = subject.make_env(batch, agent_class(name))
    return routed_steps(build_agent(name, env, 0, options).train())


def routed_steps(agent: Agent, *, deterministic: bool = True) -> Steps:
    """Return steps: route, forward, backward, the optimisers, the agent's update; or route only."""
    judged = agent.env.sibling(agent.env.num_envs, train=False, autoreset_mode="disabled")
    infer = torch.no_grad()(partial(rollout, agent, judged, deterministic=deterministic))
    return Steps(partial(train_batch, agent, agent.env), infer)


def static_steps(subject: Subject, batch: int) -> Steps:
    """Return the steps of the static network: draw a batch, forward, loss; backward and optimiser when training."""
    network, dataset = subject.static(subject.fresh()), subject.data["train"]
    stream = ShuffledStream(len(dataset))

    def loss() -> Tensor:
        rows = stream.draw(batch).to(dataset.device)
        pixels = dataset.pixels(rows)
        with Manner(precision=subject.precision).forward_pass(dataset.device, graph=torch.is_grad_enabled()):
            logits = network(pixels)
        return functional.cross_entropy(logits.to(pixels.dtype), dataset.label[rows])

    optimizer = OPTIMIZERS[subject.optimizer](network, lr=subject.learning_rate)
    return steps_of(network, loss, lambda: loss().backward(), optimizer)


def transitions_per_second(subject: Subject, batch: int, rounds: int) -> float:
    """Return how many decisions per second the environment alone carries out, resets between episodes included."""
    env = subject.make_env(batch, train=False)
    numbers = torch.Generator(env.device).manual_seed(0)

    def episode() -> None:
        env.reset()
        while env.state.waiting:
            env.step(torch.randint(env.network.num_choices, (batch,), generator=numbers, device=env.device))

    seconds = statistics.median(in_turns({"env": episode}, rounds, subject.device)["env"])
    return batch * len(env.network.decisions) / seconds


def macs_of(subject: Subject, name: str, options: tuple[str, ...]) -> tuple[float, float]:
    """Return multiply-accumulates per instance of the deterministic policy: the network's, and the agent's own."""
    env = subject.make_env(64, agent_class(name), train=False)
    agent = build_agent(name, env, 0, options).eval()
    with torch.no_grad():
        network = float(rollout(agent, env, deterministic=True).macs.mean())
    return network, sum(agent.macs(number) for number in range(len(env.network.decisions)))
