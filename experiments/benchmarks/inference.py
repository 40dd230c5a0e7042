"""Inference that leaves work out, by early exit or by blocks that are skipped, against the whole network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents import Agent, make_agent, needs
from routing_gym.agents.parts.bases import RouterAgent
from routing_gym.agents.parts.scores import ModuleScores
from routing_gym.agents.trained.classify import classify
from routing_gym.blocks import count_macs, first_weights
from routing_gym.envs import RoutingVectorEnv, Trajectory, rollout
from routing_gym.experiments.benchmarks.steps import one_route, stand_in_images
from routing_gym.experiments.benchmarks.timing import Step, arrived, in_turns
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.train import load_with_env
from routing_gym.networks import RoutedPyramid, make_network, ways_out

EXITS, SKIPS = ("pyramid-chain",), ("resnet32-skip", "resnet110-skip")
"""Networks that images leave early, and those whose blocks they skip."""
SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of the images that run each block."""
LEAST = 64
"""Images of a timed step at least: a smaller batch is followed by others until it has had as many."""
SETS = 2
"""Sets of images that are timed where images leave: group sizes differ between them."""
BEYOND = 1e6
"""From the last score to a threshold that all are above, or below."""
WHOLE, FLOOR = "the whole network", "floor of "

Routed = tuple[Agent, Record]
"""An agent whose inference is timed on its test split, and what its record says beside that: `case`, `k_cpt`, ..."""


def prescribed(name: str, device: torch.device, batch: int) -> list[Routed]:
    """Return agents on a network by which images save as much work as is prescribed.

    The routers are those of multipath early exit, by which images leave the pyramid chain; and CoDiNet's linear ones,
    by which a share of the images runs each block of a ResNet, another one at each.
    """
    leaves = name in EXITS
    router, config = ("actor", {}) if leaves else ("codinet", {"alpha": 0.0})
    dataset = stand_in_images(1, 10, per_class=-(-SETS * step_size(batch) // 10)).to(device)
    with first_weights(0):
        network = make_network(name, num_tasks=1, num_classes=10)
    options: dict[str, Any] = {**needs(router), "augmentations": 1, "train": False, "device": str(device)}
    env = RoutingVectorEnv(network, {"train": dataset, "test": dataset}, batch, **options)
    ends = range(len(network.decisions))
    if leaves:
        shares = {"nobody leaves early": [0.0 for _ in ends]}
        shares |= {f"all leave after column {end + 1}": [float(end == other) for other in ends] for end in ends}
        shares["30 % leave at every exit"] = [0.3 for _ in ends]
    else:
        shares = {f"{name}, {100 * share:.0f} % run each block": [share for _ in ends] for share in SHARES}
    routed = []
    for case, own in shares.items():
        agent = make_agent(router, env, **config).eval()
        prescribe(agent, images_of(env, batch)[1], own, choice=0 if leaves else 1)
        record = {"case": case, "agent": router, "network": name, "k_cpt": None, "checkpoint": None}
        routed.append((agent, record if leaves else {**record, "share": own[0]}))
    return routed


def trained(checkpoint: Path, device: torch.device) -> Callable[[int], list[Routed]]:
    """Load an agent trained on a pyramid; return what returns it, whatever the batch size, once per price it knows.

    Raises:
        UsageError: No such checkpoint, or a network of which it is not known what each way out runs.
    """
    agent, name = load_with_env(checkpoint, (f"device={str(device)!r}",)).eval(), str(checkpoint)
    if not isinstance(agent.env.network.eval(), RoutedPyramid):
        kind = type(agent.env.network).__name__
        raise UsageError(f"{name}: the part early-exit is for pyramid-chain and pyramid-tree, got a {kind}")
    prices = agent.env.config.prices if agent.env.config.price else (None,)
    routed = []
    for price in prices:
        case = name if price is None else f"{name}, k_cpt={price:g}"
        routed.append((agent, {"case": case, "agent": agent.name, "k_cpt": price, "checkpoint": name}))
    return lambda batch: routed


def step_size(batch: int) -> int:
    """Return how many images a timed step has."""
    return batch * -(-LEAST // batch)


def images_of(env: RoutingVectorEnv, batch: int) -> tuple[Tensor, Tensor]:
    """Return rows of the test split `(n,)`, repeated where these are too few, and their images: one set, or `SETS`."""
    test = env.datasets["test"].to(env.device)
    sets = SETS if isinstance(env.network, RoutedPyramid) else 1
    rows = torch.arange(sets * step_size(batch), device=env.device) % len(test)
    return rows, test.pixels(rows)


@torch.no_grad()
def prescribe(agent: Agent, images: Tensor, shares: Sequence[float], choice: int) -> None:
    """Set routers' last layers so that at each decision a share of the images that are there takes one of two choices.

    The layers have drawn weights and such a bias that the threshold lies halfway between the last image that takes the
    choice and the first that does not: they cost what trained ones do, images take many different routes, and nothing
    is decided beside them.
    """
    assert isinstance(agent, RouterAgent) and isinstance(agent.scores, ModuleScores)
    numbers = torch.Generator().manual_seed(0)

    def draw(share: float, last: nn.Linear, inputs: tuple[Tensor]) -> None:
        last.weight.copy_(torch.randn(last.weight.shape, generator=numbers))
        scores = functional.linear(*inputs, last.weight, last.bias)
        ordered = (scores[:, choice] - scores[:, 1 - choice]).sort(descending=True).values
        beside = torch.cat([ordered[:1] + BEYOND, ordered, ordered[-1:] - BEYOND])
        count = round(share * len(ordered))
        last.bias[choice] -= beside[count : count + 2].mean()

    routers: Any = agent.scores.of
    hooks = [
        router[-1].register_forward_pre_hook(partial(draw, share))
        for router, share in zip(routers, shares, strict=True)
    ]
    classify(agent, images)
    for hook in hooks:
        hook.remove()


def measure_inference(make: Callable[[int], Sequence[Routed]], batch: int, rounds: int) -> list[Record]:
    """Time `classify` in turns with the whole network on the same images, and with the parts that these images need.

    Whatever runs is warmed up on every set of images before it is timed: a library of convolutions prepares itself
    once for every size of a batch. `make` builds, for a batch size, agents on one network.

    Returns:
        A record per agent. Ratios are over the plain network of all blocks: `time_ratio`; `macs_ratio` of the images
        really routed, routers included (`router_macs_ratio` alone); `floor_ratio`, the time that plain networks of the
        ways out of a pyramid take on the images that leave there, each in one batch, None where images are shared out.
        `saving_arrived` and `possible_saving_arrived` are `1 - time_ratio` over `1 - macs_ratio` and over
        `1 - floor_ratio`, `of_routed` the first of them over the first agent's network instead; None where nothing is
        saved. `leaving` has the share of each way out.
    """
    routed, size = make(batch), step_size(batch)
    network: Any = routed[0][0].env.network
    rows, images = images_of(routed[0][0].env, batch)
    pyramid, ways = isinstance(network, RoutedPyramid), ways_out(network.decisions)
    plain = {way: (network.static_prefix(*way) if pyramid else one_route(network, 1)).eval() for way in ways}
    whole = plain[ways[-1]]
    steps: dict[tuple[str, int], Step] = {}
    costs = defaultdict(list)
    for place, (own_rows, own) in enumerate(zip(rows.split(size), images.split(size), strict=True)):
        parts = own.split(batch)
        steps[WHOLE, place] = partial(_run, [(whole, part) for part in parts])
        for agent, record in routed:
            case, run = record["case"], partial(classify, agent, k_cpt=record["k_cpt"])
            routes = routes_of(agent, own_rows.split(batch), record["k_cpt"])
            costs[case].append(means_of(agent, routes))
            pairs = list(zip(parts, routes, strict=True))
            steps[case, place] = partial(_run, [(run, part, route.task) for part, route in pairs])
            left = [(part, exit) for part, route in pairs for exit in route.exits]
            if pyramid and all(bool((exit.weight == 1).all()) for _, exit in left):
                apart = [(plain[e.decision, e.choice], x if e.rows is None else x[e.rows]) for x, e in left]
                steps[FLOOR + case, place] = partial(_run, apart)
    seconds: dict[str, list[float]] = defaultdict(list)
    for (what, _), times in in_turns(steps, rounds, rows.device).items():
        seconds[what].append(median(times))
    static, whole_macs = fmean(seconds[WHOLE]), count_macs(whole, images[:1])
    ratios = {what: fmean(times) / static for what, times in seconds.items()}
    records: list[Record] = []
    for _, record in routed:
        case = record["case"]
        macs, own_macs, *leaving = torch.stack(costs[case]).mean(0).tolist()
        time, ratio = ratios[case], (macs + own_macs) / whole_macs
        first = records[0] if records else {"time_ratio": time, "macs_ratio": ratio}
        record = {**record, "batch": batch, "macs_ratio": ratio, "router_macs_ratio": own_macs / whole_macs}
        record |= {"time_ratio": time, "saving_arrived": arrived(time, ratio), "leaving": leaving}
        record |= {"microseconds": 1e6 * time * static / size, "static_microseconds": 1e6 * static / size}
        record["of_routed"] = arrived(time / first["time_ratio"], ratio / first["macs_ratio"])
        if pyramid:
            known = len(seconds[FLOOR + case]) == len(seconds[WHOLE])  # of all sets
            floor = record["floor_ratio"] = ratios[FLOOR + case] if known else None
            record["possible_saving_arrived"] = None if floor is None else arrived(time, floor)
        records.append(record)
    return records


def routes_of(agent: Agent, batches: Sequence[Tensor], k_cpt: float | None) -> list[Trajectory]:
    """Return the routes of rows of the test split, `(batch,)` each, at a price."""
    options: dict[str, Any] = {"split": "test", "train": False, "autoreset_mode": "disabled", "k_cpt": k_cpt or 0.0}
    env = agent.env.sibling(len(batches[0]), **options)
    return [rollout(agent, env, instances=rows, deterministic=True) for rows in batches]


def means_of(agent: Agent, routes: Sequence[Trajectory]) -> Tensor:
    """Return means per image, on the CPU: MACs of the network, of the agent, and the share of each way out."""
    decisions = agent.env.network.decisions
    own = torch.tensor([*map(agent.macs, range(len(decisions))), 0.0], dtype=torch.float64)
    macs = sum(float(route.macs.double().sum()) for route in routes)
    spent = sum(float(own[step.decision.cpu()].sum()) for route in routes for step in route.steps)
    left = dict.fromkeys(ways_out(decisions), 0.0)
    for exit in (exit for route in routes for exit in route.exits):
        left[exit.decision, exit.choice] += float(exit.weight.sum())
    return torch.tensor([macs, spent, *left.values()], dtype=torch.float64) / sum(map(len, routes))


@torch.no_grad()
def _run(calls: Sequence[tuple]) -> None:
    for run, *inputs in calls:
        run(*inputs)
