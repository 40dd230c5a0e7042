"""How fast routing is, as a ratio to the static network of the same shape in the same run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter
from rich.console import Console
from rich.table import Table

from routing_gym.agents import Population
from routing_gym.envs import EnvConfig
from routing_gym.experiments.benchmarks import inference, parallel_paths, populations, public_layers, steps
from routing_gym.experiments.benchmarks.faces import measure_faces
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import Display, counted, plain_table, say, show
from routing_gym.experiments.engine.figures import save
from routing_gym.experiments.engine.machine import commit, device_name, processor_name
from routing_gym.experiments.engine.plugins import Pluggable
from routing_gym.experiments.engine.records import Record, write_results
from routing_gym.experiments.engine.settings import (
    TrainingSettings,
    at_least_one,
    build_agent,
    check_agents,
    known_names,
    options_of_agents,
    writable_file,
)

PARTS = {
    "steps": "Three layers, 128 wide; ratios: routed / static",
    "public-layers": "Two of k blocks mixed, three layers, 128 wide; ratios: mixed / static",
    "public-losses": "Two of k blocks mixed, three layers, 128 wide; cross-entropy after 600 batches, by 5 seeds",
    "population": "Ten seeds side by side, 48 wide, ms per batch of one; speedup: one after the other / together",
    "faces": "Core and faces, random actions",
    "experts": "Unlike convolution blocks; ratios: routed / static",
    "convnet": "SimpleConvNet; ratios: routed / static",
    "early-exit": "Early exit, inference; ratios to the whole network, and how much of the saving arrives",
    "block-skip": "Blocks that are skipped, inference; ratios to the whole network, how much of the saving arrives",
    "parallel-paths": "Parallel paths, soft gates; ratios to the single network, and to a loop over the paths",
}
"""Title of the table of each part."""
OTHERS = {
    "live_paths": "Parallel paths, hard choices; what is left of soft gates, which run all paths",
    "macs_saved": "Rows that skip; ratios: routed / static, and what is saved against nobody skipping",
}
"""Title of the second kind of records that two parts have, by a field that only these hold."""
HIDDEN = re.compile(
    "part|device|dtype|torch|commit|processor|accelerator|agent_options|k_cpt|checkpoint|leaving|"
    "static_.*|router_.*|inference_samples.*|.*_bytes"
)
"""What tables do not show of a record."""


@dataclasses.dataclass(frozen=True)
class Bench(Pluggable):
    """Measure what routing costs, against static networks of the same shape, in turns in one process.

    steps: the full training step and inference of three layers, 128 wide throughout (inputs, hidden layers and logits).
    Routed: draw a batch, route, forward, backward, SGD, the agent's update. Static: a torch.nn.Sequential; draw a
    batch, forward, backward, SGD. Also transitions per second of the environment alone.

    public-layers: top-k beside layers of other libraries, those that are installed, and beside two static blocks.

    public-losses: what the same have learned after as many batches.

    population: ten seeds of an agent as one program, against the same ten one after the other.

    faces: transitions per second of the core and of every face over it, on the CPU.

    experts: seven unlike convolution blocks, 256 rows, against running one; and what rows save that skip blocks by PASS
    or leave early, of 1024.

    convnet: SimpleConvNet on images as CIFAR-MTL's, batches of 128, Adam: seconds per 50 000 instances.

    early-exit: inference of the pyramid chain, routers included, against the whole network, for images that leave
    where they are told to; or of checkpoints, on their test split.

    block-skip: the same of ResNets of 32 and 110 layers, for images of which a share runs each block.

    parallel-paths: 2 to 4 paths of BaseCNN under soft gates, as grouped convolutions, against a loop over the paths and
    against the single network; and what is left of it where tensors have merged, so that fewer paths run.

    Writes records, and a picture of the ratios against blocks beside them.

    Attributes:
        parts: What to measure, of the above; all if none is named.
        blocks: Numbers of blocks per layer of the parts steps, public-layers and public-losses, with as many tasks.
        batch: Batch sizes of all parts but faces, experts and convnet.
        checkpoints: Trained agents on a pyramid, which the part early-exit then measures and nothing else.
        agents: Agents to measure in the parts steps, population and convnet.
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
        parts = known_names("parts", self.parts, tuple(PARTS))
        check_agents(self.agents)
        precisions = known_names("dtype", self.dtype, ("float32", "bfloat16"))
        at_least_one("rounds", self.rounds)
        if self.out.suffix == ".png":
            raise UsageError(f"--out {self.out}: that is where the picture goes, take an ending like .json for records")
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
        out, before = writable_file(self.out), torch.get_num_threads()

        records: list[Record] = []
        with Display(console, len(jobs) * len(self.threads), "bench") as display:
            try:
                for threads, (part, job) in product(self.threads, jobs):
                    torch.set_num_threads(threads)
                    display.begin(part)
                    place = made_with(torch.device("cpu") if part == "faces" else device)
                    records += [{"part": part, **place, **record} for record in job()]
                    write_results(records, out)
                    display.end(part)
            finally:
                torch.set_num_threads(before)
        for table in tables(records):
            show(console, table)
        written = [out]
        if of_steps := [record for record in records if record["part"] == "steps"]:
            written.append(out.with_suffix(".png"))
            ratios_against_blocks(of_steps, written[-1])
        say(console, f"Written to {', '.join(map(str, written))}")
        return 0

    def _jobs(self, part: str, device: torch.device, precisions: Sequence[str]) -> list[Callable[[], list[Record]]]:
        """Return what is measured one after the other; refuse what cannot be before anything is."""
        if part == "faces":
            return [partial(measure_faces, train, self.rounds) for train in (False, True)]
        if part == "experts":
            return [partial(of, self.rounds, device) for of in (steps.measure_experts, steps.measure_skipping)]
        if part == "parallel-paths":
            wide = product(parallel_paths.NETWORKS, self.batch)
            return [partial(parallel_paths.measure_parallel_paths, *case, self.rounds, device) for case in wide]
        if part in ("early-exit", "block-skip"):
            names = inference.EXITS if part == "early-exit" else inference.SKIPS
            makers: list[Callable] = [partial(inference.prescribed, name, device) for name in names]
            if part == "early-exit" and self.checkpoints:
                makers = [inference.trained(path, device) for path in self.checkpoints]
            cases = product(makers, self.batch)
            return [partial(inference.measure_inference, make, batch, self.rounds) for make, batch in cases]
        if part in ("public-layers", "public-losses"):
            timed = product([steps.mlp(blocks, device) for blocks in self.blocks], self.batch)
            if part == "public-losses":
                return [partial(public_layers.measure_public_losses, *case) for case in timed]
            return [partial(public_layers.measure_public_layers, *case, self.rounds) for case in timed]
        agents = options_of_agents(self.agents, self.agent_options)
        if part == "population":
            for name, options in agents.items():
                check_population(name, options)
            named = product(agents.items(), self.batch)
            return [partial(populations.measure_population, *of, batch, self.rounds) for of, batch in named]
        made = [steps.convnet(device)] if part == "convnet" else [steps.mlp(blocks, device) for blocks in self.blocks]
        subjects = [dataclasses.replace(subject, precision=precision) for subject in made for precision in precisions]
        for subject in subjects:
            steps.check(subject, agents)
        if part == "convnet":
            return [partial(steps.measure_convnet, subject, agents, self.rounds) for subject in subjects]
        return [partial(steps.measure_agents, *case, agents, self.rounds) for case in product(subjects, self.batch)]


def check_population(name: str, options: tuple[str, ...]) -> None:
    """Refuse, by a `UsageError`, an agent whose seeds cannot learn side by side."""
    training = TrainingSettings(device="cpu", threads=torch.get_num_threads())
    try:
        Population([build_agent(name, training.make_env(name, seed), seed, options) for seed in range(2)])
    except ValueError as error:
        raise UsageError(str(error)) from error


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


def name_of(record: Record) -> str:
    """Return an agent's name with the options it was given, and with the precision where that is not float32."""
    precision = [] if record["dtype"] == "float32" else [record["dtype"]]
    return " ".join([record["agent"], *record.get("agent_options", ()), *precision])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"
    return "-" if value is None else str(value)


def tables(records: Sequence[Record]) -> list[Table]:
    """Return a table of every part that was measured."""
    made: dict[str, Table] = {}
    for record in records:
        title = next((title for field, title in OTHERS.items() if field in record), PARTS[record["part"]])
        named = {**record, "agent": name_of(record)} if "agent" in record else record
        hidden = ("agent", "network") if "case" in record else ()  # the case tells them
        columns = [(key, value) for key, value in named.items() if not HIDDEN.fullmatch(key) and key not in hidden]
        columns.sort(key=lambda column: not isinstance(column[1], str))  # names first
        if title not in made:
            made[title] = plain_table(title=title)
            for key, value in columns:
                how: Any = {} if isinstance(value, str) else {"justify": "right", "no_wrap": True}
                made[title].add_column(key.replace("_", "\n"), **how)
        made[title].add_row(*(_text(value) for _, value in columns))
    return list(made.values())


def ratios_against_blocks(records: Sequence[Record], path: Path) -> None:
    """Draw routed / static samples per second of the part steps against blocks: a panel per batch, a line per agent."""
    batches, blocks, threads = (sorted({record[key] for record in records}) for key in ("batch", "blocks", "threads"))
    figure = Figure(figsize=(3.2 * len(batches) + 2.4, 5.6), layout="constrained")
    where = records[0]["accelerator"] or records[0]["processor"]
    figure.suptitle(f"Routed / static samples per second\n{where}, PyTorch {records[0]['torch']}", fontsize=10)
    grid = figure.subplots(2, len(batches), sharex=True, sharey="row", squeeze=False)
    for (row, batch), axes in zip(product(("train", "inference"), batches), grid.flat, strict=True):
        for number, name in enumerate(dict.fromkeys(map(name_of, records))):
            for dash, count in enumerate(threads):
                own = [r for r in records if (r["batch"], r["threads"], name_of(r)) == (batch, count, name)]
                label = name if len(threads) == 1 else f"{name}, {counted(count, 'thread')}"
                line = {"linestyle": ("-", "--", ":", "-.")[dash % 4], "color": f"C{number}", "label": label}
                axes.plot(
                    [r["blocks"] for r in own], [r[f"{row}_ratio"] for r in own], marker="o", markersize=4, **line
                )
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(blocks)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.set(title=f"batch {batch}", xlabel="blocks per layer", ylabel=row, ylim=(0, None))
        axes.label_outer()
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)
