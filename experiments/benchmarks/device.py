"""All that wants a GPU, for the day there is one: `python -m routing_gym.experiments.benchmarks.device`.

In one go, each part as far as it gets: the tests marked `cuda`, training steps and inference from 1 024 to 65 536 rows
in float32 and bfloat16, how often the host waits in a batch and how many kernels it launches, SimpleConvNet's epoch.
Written are one JSON and one picture; on an H100 or later it should take less than eight minutes.
"""

from __future__ import annotations

import collections
import dataclasses
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from matplotlib.figure import Figure
from torch.profiler import ProfilerActivity, profile

from routing_gym.agents import train_batch
from routing_gym.experiments.bench import made_with
from routing_gym.experiments.benchmarks import steps
from routing_gym.experiments.engine.console import one_line
from routing_gym.experiments.engine.figures import save
from routing_gym.experiments.engine.records import Record, write_results
from routing_gym.experiments.engine.settings import build_agent, writable_file

WAITS = ("Synchronize", "DtoH")
"""Parts of the names of what the host waits at."""
COUNTED = 5  # batches


@dataclasses.dataclass(frozen=True)
class Device:
    """Measure all that wants a GPU.

    Attributes:
        device: Where it is measured.
        batch: Batch sizes of three layers, 128 wide.
        blocks: Blocks per layer.
        agents: Whom to measure.
        rounds: Steps timed of each.
        out: JSON file for the records; the picture has the same name, and ends in .png.
    """

    device: str = "cuda"
    batch: tuple[int, ...] = (1024, 4096, 16384, 65536)
    blocks: int = 10
    agents: tuple[str, ...] = ("task-specific-all", "wpl", "reinforce", "gumbel", "top-k")
    rounds: int = 20
    out: Annotated[Path, tyro.conf.arg(name="out")] = Path("results/device.json")

    def run(self) -> list[Record]:
        """Do it; return the records, which have been written after every part."""
        device, out = torch.device(self.device), writable_file(self.out)
        subjects = [
            dataclasses.replace(steps.mlp(self.blocks, device), precision=precision)
            for precision in ("float32", "bfloat16")
        ]
        agents = dict.fromkeys(self.agents, ())
        parts: list[tuple[str, Callable[[], list[Record]]]] = [("tests", _tests)] if device.type == "cuda" else []
        parts += [("waits", partial(waits_of, subjects[0], name, self.batch[0])) for name in self.agents]
        parts += [
            ("steps", partial(steps.measure_agents, subject, batch, agents, self.rounds))
            for batch in self.batch
            for subject in subjects
        ]
        parts.append(("convnet", partial(steps.measure_convnet, steps.convnet(device), {"wpl": ()}, self.rounds)))
        records: list[Record] = []
        for name, part in parts:
            begun = time.perf_counter()
            try:
                found = part()
            except Exception as error:  # the next part may work all the same
                traceback.print_exc()
                found = [{"error": one_line(error)}]
            took = {"part": name, "part_seconds": round(time.perf_counter() - begun, 1)}
            records += [{**took, **made_with(device), **record} for record in found]
            print(f"{name}: {took['part_seconds']} s", *(record.get("error", "") for record in found), flush=True)
            write_results(records, out)
        _draw([record for record in records if "train_ratio" in record and "agent" in record], out.with_suffix(".png"))
        return records


def waits_of(subject: steps.Subject, name: str, batch: int) -> list[Record]:
    """Return how often the host waits in a batch of training, by what, and how many kernels it launches."""
    env = subject.make_env(batch, name)
    agent = build_agent(name, env, 0, ())
    for _ in range(3):
        train_batch(agent, env)
    cuda = [ProfilerActivity.CUDA] if env.device.type == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *cuda]) as profiled:
        for _ in range(COUNTED):
            train_batch(agent, env)
    names = collections.Counter(event.name for event in profiled.events())
    waits = {key: count / COUNTED for key, count in names.items() if any(part in key for part in WAITS)}
    launches = sum(count for key, count in names.items() if "LaunchKernel" in key) / COUNTED
    return [{"agent": name, "batch": batch, "waits": waits, "launches": launches}]


def _tests() -> list[Record]:
    """Return what the tests marked `cuda` say in the end, where they are at hand."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-n0"], capture_output=True, text=True)
    return [{"status": done.returncode, "said": done.stdout.strip().splitlines()[-15:]}]


def _draw(records: list[Mapping[str, Any]], path: Path) -> None:
    """Draw ratios to the static network against the size of a batch."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, phase in zip(figure.subplots(1, 2, sharey=True), ("train", "inference"), strict=True):
        lines: dict[tuple[str, str], list[tuple[int, float]]] = collections.defaultdict(list)
        for record in records:
            if record["part"] == "steps":
                lines[record["agent"], record["dtype"]].append((record["batch"], record[f"{phase}_ratio"]))
        for (agent, dtype), points in lines.items():
            dashed = "-" if dtype == "float32" else "--"
            axes.plot(*zip(*points, strict=True), marker="o", linestyle=dashed, label=f"{agent}, {dtype}")
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set(title=phase, xlabel="rows", ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.supylabel("routed / static samples per second")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7, frameon=False)
    save(figure, path)


if __name__ == "__main__":
    tyro.cli(Device).run()
