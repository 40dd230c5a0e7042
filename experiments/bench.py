"""How fast routing is, as a ratio to the static network of the same shape in the same run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from routing_gym.envs import EnvConfig
from routing_gym.experiments.benchmarks.block_skip import NETWORKS, measure_block_skip
from routing_gym.experiments.benchmarks.early_exit import Routed, check_pyramid, measure_early_exit, prescribed, trained
from routing_gym.experiments.benchmarks.experts import measure_experts
from routing_gym.experiments.benchmarks.faces import measure_faces
from routing_gym.experiments.benchmarks.parallel_paths import NETWORKS as PARALLEL
from routing_gym.experiments.benchmarks.parallel_paths import measure_parallel_paths
from routing_gym.experiments.benchmarks.report import ratios_against_blocks, tables
from routing_gym.experiments.benchmarks.skipping import measure_skipping
from routing_gym.experiments.benchmarks.steps import check, convnet, measure_agents, measure_convnet, mlp
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import Display, say
from routing_gym.experiments.engine.machine import commit, device_name, processor_name
from routing_gym.experiments.engine.plugins import Pluggable
from routing_gym.experiments.engine.records import Record, write_results
from routing_gym.experiments.engine.settings import (
    at_least_one,
    check_agents,
    known_names,
    options_of_agents,
    writable_file,
)
from routing_gym.experiments.train import load_with_env

PARTS = ("steps", "faces", "experts", "convnet", "early-exit", "block-skip", "parallel-paths")


@dataclasses.dataclass(frozen=True)
class Bench(Pluggable):
    """Measure what routing costs, against static networks of the same shape, in turns in one process.

    steps: the full training step and inference. Three layers, 128 wide throughout (inputs, hidden layers and logits),
    SGD. Routed: draw a batch, route, forward, backward, SGD, the agent's update. Static: a torch.nn.Sequential; draw a
    batch, forward, backward, SGD. Also transitions per second of the environment alone.

    faces: transitions per second of the core and of every face over it, on the CPU.

    experts: seven unlike convolution blocks, 256 rows, against running one; and what rows save that skip blocks by PASS
    or leave early, of 1024.

    convnet: SimpleConvNet on images as CIFAR-MTL's, batches of 128, Adam: seconds per 50 000 instances.

    early-exit: inference of the pyramid chain, routers included, against the whole network, for images that leave
    where they are told to; or of checkpoints, on their test split.

    block-skip: inference of ResNets of 32 and 110 layers, routers included, against the whole network, for images of
    which a share runs each block.

    parallel-paths: 2 to 4 paths of BaseCNN under soft gates, as grouped convolutions, against a loop over the paths and
    against the single network; and what is left of it where tensors have merged, so that fewer paths run.

    Writes records, and a picture of the ratios against blocks beside them.

    Attributes:
        parts: What to measure: steps, faces, experts, convnet, early-exit, block-skip, parallel-paths; all if none
            is named.
        blocks: Numbers of blocks per layer of the part steps, with as many tasks.
        batch: Batch sizes of the parts steps, early-exit, block-skip and parallel-paths.
        checkpoints: Trained agents on a pyramid, which the part early-exit then measures and nothing else.
        agents: Agents to measure in the parts steps and convnet.
        agent_options: Options of one agent as AGENT.NAME=VALUE, e.g. reinforce.representation=mlp.
        device: "cpu" or "cuda"; "auto" takes CUDA where present.
        dtype: What networks compute in, routed and static ones, in the parts steps and convnet: float32, bfloat16; both
            if none is named. Everything else is measured in float32.
        threads: CPU threads of PyTorch; all is measured with each of these numbers, one after the other.
        rounds: Steps timed of each, in turns; medians are reported.
        out: JSON file for the records; the picture has the same name, and ends in .png.
    """

    parts: tuple[str, ...] = ("steps",)
    blocks: tuple[int, ...] = (10,)
    batch: tuple[int, ...] = (1024,)
    checkpoints: tuple[Path, ...] = ()
    agents: tuple[str, ...] = ("wpl", "task-specific-all", "shared")
    agent_options: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: tuple[str, ...] = ("float32",)
    threads: tuple[int, ...] = (1,)
    rounds: int = 60
    out: Path = Path("results/bench.json")

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        parts = known_names("parts", self.parts, PARTS)
        check_agents(self.agents)
        precisions = known_names("dtype", self.dtype, ("float32", "bfloat16"))
        at_least_one("rounds", self.rounds)
        for option in ("blocks", "batch", "threads"):
            if not getattr(self, option):
                raise UsageError(f"--{option} needs at least one number")
            for value in getattr(self, option):
                at_least_one(option, value)
        try:
            device = EnvConfig(device=self.device).torch_device
        except ValueError as error:
            raise UsageError(str(error)) from error
        jobs = [(part, job) for part in parts for job in self._jobs(part, device, precisions)]
        out = writable_file(self.out)

        records: list[Record] = []
        with Display(console, len(jobs) * len(self.threads), "bench") as display:
            for threads in self.threads:
                with torch_threads(threads):
                    for part, job in jobs:
                        display.begin(part)
                        place = made_with(torch.device("cpu") if part == "faces" else device)
                        records += [{"part": part, **place, **record} for record in job()]
                        write_results(records, out)
                        display.end(part)
        for table in tables(records):
            console.print(table)
        written = [out]
        if any(record["part"] == "steps" for record in records):
            written.append(out.with_suffix(".png"))
            ratios_against_blocks([record for record in records if record["part"] == "steps"], written[-1])
        say(console, f"Written to {', '.join(map(str, written))}")
        return 0

    def _jobs(self, part: str, device: torch.device, precisions: Sequence[str]) -> list[Callable[[], list[Record]]]:
        """Return what is measured one after the other; refuse what cannot be before anything is."""
        rounds, agents = self.rounds, options_of_agents(self.agents, self.agent_options)
        if part == "faces":
            return [partial(measure_faces, train, rounds) for train in (False, True)]
        if part == "experts":
            return [partial(measure, rounds, device) for measure in (measure_experts, measure_skipping)]
        if part == "early-exit":
            return [
                partial(measure_early_exit, partial(make, batch), batch, rounds)
                for make in self._early_exits(device)
                for batch in self.batch
            ]
        if part in ("block-skip", "parallel-paths"):
            skip = part == "block-skip"
            measure, names = (measure_block_skip, NETWORKS) if skip else (measure_parallel_paths, PARALLEL)
            return [partial(measure, name, batch, rounds, device) for name in names for batch in self.batch]
        made = [convnet(device)] if part == "convnet" else [mlp(blocks, device) for blocks in self.blocks]
        subjects = [dataclasses.replace(subject, precision=precision) for subject in made for precision in precisions]
        for subject in subjects:
            check(subject, agents)
        if part == "convnet":
            return [partial(measure_convnet, subject, agents, rounds) for subject in subjects]
        return [partial(measure_agents, one, batch, agents, rounds) for one in subjects for batch in self.batch]

    def _early_exits(self, device: torch.device) -> list[Callable[[int], list[Routed]]]:
        """Return what makes, for a batch size, the agents whose inference is timed in turns."""
        if not self.checkpoints:
            return [partial(prescribed, device)]
        agents = {str(path): load_with_env(path, (f"device={str(device)!r}",)) for path in self.checkpoints}
        for path, agent in agents.items():
            check_pyramid(path, agent)
        return [partial(trained, path, agent) for path, agent in agents.items()]


def made_with(device: torch.device) -> Record:
    """Return what a record says of the machine and the code; `dtype` where it does not say so itself."""
    return {
        "threads": torch.get_num_threads(),
        "device": device.type,
        "dtype": "float32",
        "torch": torch.__version__,
        "commit": commit(),
        "processor": processor_name(),
        "accelerator": None if device.type == "cpu" else device_name(device),
    }


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch have so many CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
