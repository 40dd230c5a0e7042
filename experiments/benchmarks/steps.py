"""The full training step and inference: of agents against static networks, of unlike blocks, of rows that skip."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents import Agent, agent_class, needs, train_batch
from routing_gym.agents.fixed import RandomAgent
from routing_gym.blocks import ModuleBlocks, OwnedParameter, count_macs, first_weights, plain, probe
from routing_gym.envs import EnvConfig, Manner, RoutingVectorEnv, rollout
from routing_gym.envs.training import OPTIMIZERS
from routing_gym.experiments.benchmarks.timing import (
    Case,
    Steps,
    against,
    in_turns,
    left_of,
    mean_of,
    measure,
    steps_of,
)
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.engine.settings import build_agent
from routing_gym.networks import EXIT, Decision, RoutedMLP, RoutedNetwork, make_network
from routing_gym.networks.state import Activation
from routing_gym.tasks import MultiTaskDataset, ShuffledStream, pixel_statistics, synthetic_mtl

WIDTH, LAYERS = 128, 3
PASS_BLOCKS, PASS_WIDTH, PASS_LAYERS = 10, 512, 6
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the rows that skip what can be skipped."""
TASKS, CLASSES, BATCH, EPOCH = 20, 5, 128, 50_000
"""Of the convolutional network."""

Agents = Mapping[str, tuple[str, ...]]
"""Options of each agent to measure, as NAME=VALUE."""


def one_route(network: Any, choice: int = 0) -> nn.Module:
    """Return one route of a `Deployable` network as plain modules: the same layers, each once."""
    return nn.Sequential(*network.static_route([choice] * len(network.decisions), 0))


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

    def fresh(self, seed: int = 0) -> RoutedNetwork:
        """Return the network with the first weights of a seed, on the device."""
        with first_weights(seed):
            return self.network().to(self.device)

    def make_env(self, batch: int, agent: str, seed: int = 0, **options: Any) -> RoutingVectorEnv:
        """Return an environment over a network of its own, in the form an agent needs as far as it is up to that."""
        known = {field.name for field in dataclasses.fields(EnvConfig)}
        options |= {name: value for name, value in needs(agent).items() if name in known}
        options |= {name: getattr(self, name) for name in ("optimizer", "learning_rate", "precision")}
        return RoutingVectorEnv(self.fresh(seed), self.data, batch, device=str(self.device), seed=seed, **options)


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
        build_agent(name, subject.make_env(1, name), 0, options)


def measure_agents(subject: Subject, batch: int, agents: Agents, rounds: int) -> list[Record]:
    """Measure every agent and the static network in turns.

    Returns:
        A record per agent: `agent`, `agent_options`, `blocks`, `dtype`, and what `against` says, multiply-accumulates
        being those of the deterministic policy, its own included; `router_macs_ratio`, the policy's own part of them;
        `transitions_per_second`, of the environment alone with random actions.
    """
    image = torch.zeros(1, *subject.data["train"].input_shape, device=subject.device)
    static_macs = count_macs(subject.static(subject.fresh()), image)
    cases = {"": Case(partial(static_steps, subject, batch), static_macs)}
    for name, options in agents.items():
        macs, own = macs_of(subject, name, options)
        record = {"agent": name, "agent_options": list(options), "blocks": subject.blocks, "dtype": subject.precision}
        record["router_macs_ratio"] = own / static_macs
        cases[name] = Case(partial(agent_steps, subject, batch, name, options), macs + own, record)
    static, *routed = measure(cases, rounds, subject.device).values()
    transitions = transitions_per_second(subject, batch, rounds)
    return [{**against(own, static, batch), "transitions_per_second": transitions} for own in routed]


def measure_convnet(subject: Subject, agents: Agents, rounds: int) -> list[Record]:
    """Return a record per agent, with the seconds 50 000 instances take in training; `static_...` are the route's."""
    records = measure_agents(subject, BATCH, agents, rounds)
    for record in records:
        for prefix in ("", "static_"):
            record[f"{prefix}seconds_per_50000"] = EPOCH / record[f"{prefix}train_samples_per_second"]
    return records


def agent_steps(
    subject: Subject, batch: int, name: str, options: tuple[str, ...] = (), chances: Tensor | None = None
) -> Steps:
    """Return steps: route, forward, backward, the optimisers, the agent's update; or route only.

    With `(N, A)` chances of each choice the agent is "random", and draws by them.
    """
    agent = build_agent(name, subject.make_env(batch, name), 0, options).train()
    if chances is not None:
        assert isinstance(agent, RandomAgent)
        agent.table[0, :-1, 0] = chances
    judged = agent.env.sibling(batch, train=False, autoreset_mode="disabled")
    infer = torch.no_grad()(partial(rollout, agent, judged, deterministic=chances is None))
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
    env = subject.make_env(batch, "random", train=False)
    numbers = torch.Generator(env.device).manual_seed(0)

    def episode() -> None:
        env.reset()
        while env.state.waiting:
            env.step(torch.randint(env.network.num_choices, (batch,), generator=numbers, device=env.device))

    (seconds,) = in_turns({"env": episode}, rounds, subject.device).values()
    return batch * len(env.network.decisions) / median(seconds)


def macs_of(subject: Subject, name: str, options: tuple[str, ...]) -> tuple[float, float]:
    """Return multiply-accumulates per instance of the deterministic policy: the network's, and the agent's own."""
    env = subject.make_env(64, name, train=False)
    agent = build_agent(name, env, 0, options).eval()
    with torch.no_grad():
        network = float(rollout(agent, env, deterministic=True).macs.mean())
    return network, sum(map(agent.macs, range(len(env.network.decisions))))


def experts(channels: int) -> dict[str, nn.Module]:
    """Return the seven blocks of the Diverse-experts networks, all of which leave the shape of an image as it is."""

    def conv(height: int, width: int) -> nn.Conv2d:
        return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2))

    return {
        **{f"conv {size}x{size}": conv(size, size) for size in (3, 5, 7)},
        "conv 1x7, 7x1": nn.Sequential(conv(1, 7), conv(7, 1)),
        "max-pool 3": nn.MaxPool2d(3, stride=1, padding=1),
        "average-pool 3": nn.AvgPool2d(3, stride=1, padding=1),
        "identity": nn.Identity(),
    }


def measure_experts(
    rounds: int, device: torch.device, batch: int = 256, channels: int = 48, size: int = 26
) -> list[Record]:
    """Time seven unlike blocks, every row sent to one of them at random, in turns with each of them on all rows.

    Training is forward and backward, to the blocks' parameters and to what came in.

    Returns:
        Two records, against the 3x3 convolution on all rows, and against the mean over the seven, each on all rows:
        what routing would cost if bringing rows together were free.
    """
    form = channels, size, size
    macs = dict(zip(experts(channels), ModuleBlocks(experts(channels).values(), form).macs, strict=True))

    def steps(only: str | None) -> Steps:
        modules = experts(channels)
        network = (ModuleBlocks(modules.values(), form) if only is None else modules[only]).to(device)
        numbers = torch.Generator(device).manual_seed(0)
        x = torch.randn(batch, *form, generator=numbers, device=device, requires_grad=True)
        grad = torch.randn(batch, *form, generator=numbers, device=device)

        def forward() -> Tensor:
            if only is not None:
                return network(x)
            return network(x, torch.randint(len(modules), (batch,), generator=numbers, device=device))

        return steps_of(network, forward, lambda: forward().backward(grad), leaves=[x])

    cases: dict[str | None, Case] = {kind: Case(partial(steps, kind), cost) for kind, cost in macs.items()}
    record = {"case": "seven unlike blocks", "blocks": len(macs)}
    cases[None] = Case(partial(steps, None), fmean(macs.values()), record)
    *alone, routed = measure(cases, rounds, device).values()
    references = {"conv 3x3": alone[0], "mean": mean_of(alone)}
    return [{**against(routed, reference, batch), "against": name} for name, reference in references.items()]


class EarlyExit(RoutedNetwork):
    """A convolution for all, then one decision: go on (0) through two more convolutions, or leave (1) without them."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, width: int = 32) -> None:
        trunk = nn.Sequential(nn.Conv2d(input_shape[0], width, 3, stride=2, padding=1), nn.ReLU())
        stage = [layer for _ in range(2) for layer in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
        ways = nn.ModuleList(
            nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
            for layers in (stage, [])
        )
        image = torch.zeros(1, *input_shape)
        seen = probe(trunk, lambda: trunk(image))
        costs = tuple(count_macs(way, seen) for way in ways)
        decision = Decision("go on or leave", costs, (EXIT, EXIT), mixing="outcome", width=width)
        fixed = count_macs(trunk, image)
        super().__init__([decision], num_classes=num_classes, input_shape=input_shape, stem_macs=fixed)
        self.trunk, self.ways = trunk, ways

    def without_exit(self) -> nn.Module:
        """Return the network in which all go on."""
        return nn.Sequential(self.trunk, self.ways[0])

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Run what all rows run."""
        return (self.trunk(images),)

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Classify, after the stage or without it."""
        return self.ways[choice](plain(activation[0]))

    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Return the mean of each channel."""
        return plain(activation[0]).mean((2, 3))

    def parameters_of(self, decision: int, choice: int) -> list[OwnedParameter]:
        """Return what only one way runs."""
        return [OwnedParameter(parameter) for parameter in self.ways[choice].parameters()]


def early_exit(device: torch.device) -> tuple[Subject, Tensor, Tensor]:
    """Return the network with an exit, on 32x32 images, and `(N, A)` chances of each choice if none leaves, or all."""
    data = {"train": stand_in_images(1, 10, per_class=100).to(device)}
    build = partial(EarlyExit, data["train"].input_shape, 10)
    never, always = torch.eye(2).unsqueeze(1)
    return Subject(build, data, 1, EarlyExit.without_exit), never, always


def with_pass(device: torch.device) -> tuple[Subject, Tensor, Tensor]:
    """Return six fully connected layers, 512 wide, the middle four of which offer the same ten blocks and PASS.

    With it `(N, A)` chances of each choice, if no row passes, and if every row does wherever it can.
    """
    data = mlp(1, device).data
    shape = data["train"].input_shape
    never = torch.zeros(PASS_LAYERS, PASS_BLOCKS + 1)
    never[[0, -1], 0] = 1
    always = never.clone()
    never[1:-1, :PASS_BLOCKS] = 1 / PASS_BLOCKS
    always[1:-1, PASS_BLOCKS] = 1
    form: dict[str, Any] = {"width": PASS_WIDTH, "layers": PASS_LAYERS, "recurrent": True}
    build = partial(RoutedMLP, shape, shape[1] * shape[2], (1, PASS_BLOCKS, 1), **form)
    return Subject(build, data, PASS_BLOCKS), never, always


def measure_skipping(rounds: int, device: torch.device, batch: int = 1024) -> list[Record]:
    """Time networks in which a share of the rows skips what can be skipped, drawn at random for every row.

    Returns:
        A record for each network and share: against the static network of the same layers, all of which all rows run,
        and what is saved against nobody skipping: `macs_saved`, `train_time_saved`, `inference_time_saved`, 0 to 1.
    """
    records = []
    for name, (subject, never, always) in {"PASS": with_pass(device), "early exit": early_exit(device)}.items():
        network = subject.fresh()
        record = {"case": name, "against": "all layers", "blocks": subject.blocks}
        cases = {-1.0: Case(partial(static_steps, subject, batch), expected_macs(network, never))}
        for share in SHARES:
            chances = (1 - share) * never + share * always
            make = partial(agent_steps, subject, batch, "random", chances=chances)
            cases[share] = Case(make, expected_macs(network, chances), {**record, "share": share})
        static, *routed = measure(cases, rounds, device).values()
        for own in routed:
            saved = {f"{what}_saved": 1 - left for what, left in left_of(routed[0], own).items()}
            records.append({**against(own, static, batch), **saved})
    return records


def expected_macs(network: RoutedNetwork, chances: Tensor) -> float:
    """Return the mean multiply-accumulates per instance, `chances` being `(N, A)` and every decision on every way."""
    return network.stem_macs + float((chances.double() * network.costs.cpu()).sum())
