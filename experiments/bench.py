"""How fast routing is, as a ratio to the static network of the same shape in the same run."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents import make_agent, train_batch
from routing_gym.agents.checkpoint import write_atomically
from routing_gym.envs import RoutingVectorEnv, rollout
from routing_gym.experiments.settings import at_least_one, check_agents, writable_folder
from routing_gym.networks import RoutedMLP
from routing_gym.tasks import MultiTaskDataset, synthetic_mtl

WIDTH = 128
LAYERS = 3
WARM_UP = 5


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure the full training step and inference, routed against static, in turns in one process.

    Three layers, 128 wide throughout (inputs, hidden layers and logits), SGD. Routed: draw a batch, route, forward,
    backward, SGD, the agent's update. Static: a torch.nn.Sequential; draw a batch, forward, backward, SGD.

    Attributes:
        blocks: Numbers of blocks per layer, with as many tasks.
        batch: Batch sizes.
        agents: Agents to measure.
        threads: CPU threads of PyTorch.
        rounds: Steps measured of each, in turns; medians are reported.
        out: JSON file for the records.
    """

    blocks: tuple[int, ...] = (10,)
    batch: tuple[int, ...] = (1024,)
    agents: tuple[str, ...] = ("wpl", "task-specific-all", "shared")
    threads: int = 1
    rounds: int = 60
    out: Path = Path("results/bench.json")

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        check_agents(self.agents)
        for option in ("threads", "rounds"):
            at_least_one(option, getattr(self, option))
        for value in (*self.blocks, *self.batch):
            at_least_one("blocks and --batch", value)
        writable_folder(self.out.parent)
        torch.set_num_threads(self.threads)
        records = [
            record
            for blocks in self.blocks
            for batch in self.batch
            for record in measure(blocks, batch, self.agents, self.rounds)
        ]
        write_atomically(self.out, lambda temporary: Path(temporary).write_text(json.dumps(records, indent=1)))
        console.print(bench_table(records))
        console.print(f"Written to {self.out}")
        return 0


def bench_data(num_tasks: int) -> dict[str, MultiTaskDataset]:
    """Return SYNTHETIC-MTL with images of as many pixels, and as many classes, as the layers are wide."""
    splits = synthetic_mtl(num_tasks=num_tasks, num_classes=WIDTH, image_size=8, images_per_class=4)
    return {
        name: dataclasses.replace(split, images=torch.cat([split.images, split.images.flip(3)], 3))
        for name, split in splits.items()
    }


def measure(blocks: int, batch: int, agents: tuple[str, ...], rounds: int) -> list[dict]:
    """Time every agent and the static network in turns; return one record per agent."""
    data = bench_data(blocks)
    shape = data["train"].input_shape

    def make_env() -> RoutingVectorEnv:
        torch.manual_seed(0)
        network = RoutedMLP(shape, WIDTH, blocks, width=WIDTH, layers=LAYERS)
        return RoutingVectorEnv(
            network, data, batch, autoreset_mode="disabled", optimizer="sgd", learning_rate=1e-2, device="cpu"
        )

    training: dict[str, Callable[[], object]] = {}
    inference: dict[str, Callable[[], object]] = {}
    training["static"], inference["static"] = static_steps(make_env())
    for name in agents:
        env = make_env()
        agent = make_agent(name, env).train()
        judged = env.sibling(batch, train=False, autoreset_mode="disabled")
        training[name] = partial(train_batch, agent, env)
        inference[name] = partial(rollout, agent, judged, deterministic=True)
    train_times, inference_times = in_turns(training, rounds), in_turns(inference, rounds)
    return [
        {
            "agent": name,
            "blocks": blocks,
            "batch": batch,
            "threads": torch.get_num_threads(),
            "device": "cpu",
            "dtype": "float32",
            "train_ratio": median_ratio(train_times["static"], train_times[name]),
            "inference_ratio": median_ratio(inference_times["static"], inference_times[name]),
            "train_samples_per_second": batch / statistics.median(train_times[name]),
            "static_train_samples_per_second": batch / statistics.median(train_times["static"]),
            "torch": torch.__version__,
        }
        for name in agents
    ]


def static_steps(env: RoutingVectorEnv) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the training step and the inference step of the static network, on the data of an environment."""
    parts: list[nn.Module] = []
    for _ in range(LAYERS):
        parts += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    network = nn.Sequential(*parts[:-1])
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2, fused=True)

    def draw() -> tuple[Tensor, Tensor]:
        rows = env.stream.draw(env.num_envs)
        return env.dataset.pixels(rows).flatten(1), env.dataset.label[rows]

    def train() -> None:
        x, label = draw()
        optimizer.zero_grad()
        functional.cross_entropy(network(x), label).backward()
        optimizer.step()

    @torch.no_grad()
    def infer() -> None:
        x, label = draw()
        functional.cross_entropy(network(x), label)

    return train, infer


def in_turns(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time every step once per round, so that a change in the machine's speed meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= WARM_UP:
                times[name].append(time.perf_counter() - start)
    return times


def median_ratio(static: list[float], routed: list[float]) -> float:
    """Return the median over rounds of static time / routed time: routed samples per second over static ones."""
    return statistics.median(a / b for a, b in zip(static, routed, strict=True))


def bench_table(records: list[dict]) -> Table:
    """Return one row per record."""
    table = Table(title=f"{LAYERS} layers, {WIDTH} wide; ratio: routed / static samples per second")
    for column in ("agent", "blocks", "batch", "threads", "train ratio", "inference ratio", "train samples/s"):
        table.add_column(column, justify="left" if column == "agent" else "right")
    for r in records:
        table.add_row(
            r["agent"], str(r["blocks"]), str(r["batch"]), str(r["threads"]), f"{r['train_ratio']:.3f}",
            f"{r['inference_ratio']:.3f}", f"{r['train_samples_per_second']:,.0f}",
        )  # fmt: skip
    return table
