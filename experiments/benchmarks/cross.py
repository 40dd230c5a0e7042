"""Every agent on every kind of network: accuracy, multiply-accumulates and time, or why it does not route it.

`python -m routing_gym.experiments.benchmarks.cross --out FOLDER` writes records and a page.
It says what runs and what it costs; with a few seeds and every agent at its defaults it does not say who is better.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import gymnasium
import torch

from routing_gym.agents import AGENTS, make_agent, needs
from routing_gym.envs import evaluate
from routing_gym.experiments.engine.machine import processor_name
from routing_gym.experiments.engine.records import Record, write_text

ROWS, BATCHES, WARM_UP = 96, 60, 3
DATA = {"num_tasks": 3, "num_classes": 4, "image_size": 16, "images_per_class": 60, "noise": 70.0}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"num_blocks": 4, "width": 32},
    "simple-convnet": {"num_blocks": 4, "width": 32},
    "mnist-experts": {},
    "pyramid-chain": {"columns": 3, "width": 8},
    "resnet32-skip": {"stages": [1, 1, 1], "width": 8},
    "basecnn-2-cc": {"width": 4},
    "vit": {"num_blocks": 4},
    "vit-skip": {},
}
"""Networks by name, with options."""
PARTICULARS = {
    r"decision (\d+ \()?'[^']*'\)?": "a decision",
    r"offers \d+": "offers fewer",
    r"; \w+ is none": "",
    r" \([\w.]+ and \d+ more\)": "",
    r" \(did you mean .*\)": "",
}
"""What a reason says of one network alone, and what stands for it."""
TOLD = """Accuracy in %, million multiply-accumulates per instance, and milliseconds of a training batch of {rows}
on one thread, to be compared within a column only: three synthetic tasks of four classes whose labels conflict,
{batches} batches, {seeds} seeds, every agent at its defaults, {device}. It says what runs and what it costs, not
who is better: that is what [the suite](suite/leaderboard.md) is for. Who compares augmentations of an image sees it
shifted by up to a pixel. A number in brackets says why an agent does not route a network."""


def measure(name: str, network: str, seed: int) -> Record:
    """Record of an agent, at its defaults, on a network; or with `refused`, why it does not route it."""
    torch.manual_seed(seed)
    try:
        given = {**DATA, "network": network, **NETWORKS[network], **needs(name)}
        given |= {"shift": 1} if "augmentations" in given else {}
        env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=ROWS, seed=seed, **given)
        agent = make_agent(name, env, seed=seed)
    except ValueError as error:
        return {"refused": str(error)}
    except TypeError as error:  # an option that the network does not have
        missing = str(error).partition("argument ")[2].partition(";")[0]
        return {"refused": f"agent {name!r} needs a network with the option {missing}"}
    agent.learn(agent.env, WARM_UP * ROWS)
    begun = time.perf_counter()
    agent.learn(agent.env, BATCHES * ROWS)
    seconds = time.perf_counter() - begun
    judged = evaluate(agent, agent.env)
    return {"accuracy": judged.accuracy, "macs": judged.macs, "batch_ms": 1000 * seconds / BATCHES}


def page(records: Sequence[Record], seeds: int) -> str:
    """The table, and below it why there are holes."""
    names = list(dict.fromkeys(record["agent"] for record in records))
    networks = list(dict.fromkeys(record["network"] for record in records))
    by_place: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_place.setdefault((record["agent"], record["network"]), []).append(record)
    reasons: list[str] = []

    def cell(name: str, network: str) -> str:
        own = by_place[name, network]
        if "refused" in own[0]:
            why = own[0]["refused"].replace(f"agent {name!r}", "the agent")
            for detail, put in PARTICULARS.items():
                why = re.sub(detail, put, why)
            if why not in reasons:
                reasons.append(why)
            return f"[{reasons.index(why) + 1}]"
        accuracy, macs, pace = (mean(record[key] for record in own) for key in ("accuracy", "macs", "batch_ms"))
        return f"{100 * accuracy:.0f} · {macs / 1e6:.2g} · {pace:.3g}"

    rows = [[f"`{name}`", *(cell(name, network) for network in networks)] for name in names]
    told = [["agent", *networks], ["---"] * (len(networks) + 1), *rows]
    head = "<!-- Generated: python -m routing_gym.experiments.benchmarks.cross --out FOLDER -->"
    about = TOLD.format(rows=ROWS, batches=BATCHES + WARM_UP, seeds=seeds, device=processor_name())
    lines = ["| " + " | ".join(row) + " |" for row in told]
    numbered = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([head, "", "# Every agent on every network", "", about, "", *lines, "", *numbered, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write `cross.json` and `cross.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--agents", nargs="+", default=[*AGENTS], choices=[*AGENTS])
    chosen = parser.parse_args(arguments)
    if chosen.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {chosen.seeds}")
    torch.set_num_threads(1)
    records: list[Record] = []
    for name in chosen.agents:
        for network in NETWORKS:
            for seed in range(chosen.seeds):
                record = measure(name, network, seed)
                records.append({"agent": name, "network": network, "seed": seed, **record})
                if "refused" in record:
                    break
        print(name, flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for file, text in (("cross.json", json.dumps(records, indent=1)), ("cross.md", page(records, chosen.seeds))):
        write_text(chosen.out / file, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
