"""Inference of networks that instances leave early, against the whole network and against the parts each one runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean, median

import torch
from torch import Tensor, nn

from routing_gym.agents import Agent, make_agent, needs
from routing_gym.agents.parts.bases import RouterAgent
from routing_gym.agents.parts.scores import ModuleScores
from routing_gym.agents.trained.classify import classify, route_out
from routing_gym.blocks import first_weights
from routing_gym.envs import RoutingVectorEnv, Seen, drive
from routing_gym.experiments.benchmarks.steps import stand_in_images
from routing_gym.experiments.benchmarks.timing import Step, arrived, in_turns
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.records import Record
from routing_gym.networks import RoutedPyramid, RoutingState, make_network, ways_out

LEAST = 64
"""Images of a timed step at least: a smaller batch is followed by others until it has had as many."""

SETS = 2
"""Sets of images that are timed: group sizes differ between them."""

BEYOND = 1e6
"""From the last score to a threshold that all are above, or below."""

Way = tuple[int, int]
"""Decision and choice by which a row leaves."""


@dataclasses.dataclass(frozen=True)
class Routed:
    """An agent whose inference is timed.

    Attributes:
        case: What is said of it in the table.
        agent: It, with its network.
        images: `(n, C, H, W)` normalised images, `SETS` times as many as a timed step takes.
        k_cpt: What it is told a multiply-accumulate costs, where it sees that.
        checkpoint: Where it comes from; None where exits are prescribed.
    """

    case: str
    agent: Agent
    images: Tensor
    k_cpt: float | None = None
    checkpoint: str | None = None

    @property
    def network(self) -> RoutedPyramid:
        """The network, of the kind whose ways out are known as plain networks."""
        assert isinstance(self.agent.env.network, RoutedPyramid)
        return self.agent.env.network

    def classify(self, images: Tensor) -> Tensor:
        """Return the logits of some images."""
        return classify(self.agent, images, k_cpt=self.k_cpt)


def prescribed(device: torch.device, batch: int) -> list[Routed]:
    """Return agents on the pyramid chain of 8 columns, 16 wide, by which images leave as often as is prescribed.

    Their routers are those of multipath early exit.
    """
    count = SETS * _step_size(batch)
    data = {"train": stand_in_images(1, 10, per_class=-(-count // 10)).to(device)}
    images = data["train"].pixels(torch.arange(count, device=device))
    with first_weights(0):
        network = make_network("pyramid-chain", num_tasks=1, num_classes=10).to(device).eval()
    ends = len(network.decisions)
    shares = {"nobody leaves early": [0.0] * ends}
    for number in range(ends):
        shares[f"all leave after column {number + 1}"] = [float(number == n) for n in range(ends)]
    shares["30 % leave at every exit"] = [0.3] * ends
    env = RoutingVectorEnv(network, data, batch, train=False, device=str(device), **needs("actor"))
    routed = []
    for case, leaving in shares.items():
        agent = make_agent("actor", env).eval()
        prescribe(agent, images, leaving, choice=0)
        routed.append(Routed(case, agent, images))
    return routed


def trained(checkpoint: str, agent: Agent, batch: int) -> list[Routed]:
    """Return a trained agent on images of its test split, repeated where these are too few; once per price it knows."""
    env = agent.env
    test = env.datasets["test"].to(env.device)
    images = test.pixels(torch.arange(SETS * _step_size(batch), device=env.device) % len(test))
    agent.eval()
    env.network.eval()
    if not env.config.price:
        return [Routed(checkpoint, agent, images, checkpoint=checkpoint)]
    return [Routed(f"{checkpoint}, k_cpt={price:g}", agent, images, price, checkpoint) for price in env.config.prices]


def check_pyramid(checkpoint: str, agent: Agent) -> None:
    """Refuse an agent for whose network it is not known what each way out runs.

    Raises:
        UsageError: Its network is no pyramid.
    """
    network = agent.env.network
    if not isinstance(network, RoutedPyramid):
        kind = type(network).__name__
        raise UsageError(f"{checkpoint}: the part early-exit is for pyramid-chain and pyramid-tree, got a {kind}")


@torch.no_grad()
def prescribe(agent: Agent, images: Tensor, shares: Sequence[float], choice: int) -> None:
    """Set routers' last layers so that at each decision a share of the images that are there takes one of two choices.

    The layers have drawn weights and such a bias that the threshold lies halfway between the last image that takes the
    choice and the first that does not: they cost what trained ones do, and nothing is decided beside them.

    Args:
        agent: One with a router for every decision.
        images: `(n, C, H, W)`, normalised.
        shares: One for each decision.
        choice: The choice.
    """
    assert isinstance(agent, RouterAgent) and isinstance(agent.scores, ModuleScores)
    network, routers = agent.env.network.eval(), agent.scores.of
    numbers = torch.Generator().manual_seed(0)
    state = network.start(images, torch.zeros(len(images), dtype=torch.int64, device=images.device))

    def decide(seen: Seen) -> Tensor:
        ((number, group, _),) = seen.state.acting()
        router = routers[number]
        last = router[-1]  # type: ignore[index]
        assert isinstance(last, nn.Linear)
        last.weight.copy_(torch.randn(last.weight.shape, generator=numbers))
        scores = router(network.describe(number, group.activation))
        margins = scores[:, choice] - scores[:, 1 - choice]
        ordered = margins.sort(descending=True).values
        count = round(shares[number] * len(margins))
        last_in = ordered[count - 1] if count else ordered[0] + BEYOND
        first_out = ordered[count] if count < len(ordered) else ordered[-1] - BEYOND
        threshold = (last_in + first_out) / 2
        last.bias[choice] -= threshold
        action = torch.zeros_like(seen.task)
        action[slice(None) if group.rows is None else group.rows] = torch.where(margins > threshold, choice, 1 - choice)
        return action

    for _ in drive(network, state, decide):
        pass


def measure_early_exit(cases: Callable[[], Sequence[Routed]], batch: int, rounds: int) -> list[Record]:
    """Time `classify` in turns with the whole network on the same images, and with the parts that these images need.

    Whatever runs is warmed up on every set of images before it is timed: a library of convolutions prepares itself
    once for every size of a batch.

    Args:
        cases: Builds what is measured in turns: one network, or one checkpoint at several prices.
        batch: Images routed together.
        rounds: Steps timed of each, on every set of images.

    Returns:
        A record per case. Ratios are over the whole network: `time_ratio`; `macs_ratio` of the images really routed,
        routers included; `floor_ratio`, the time that plain networks of the ways out take on the images that leave
        there, each in one batch. `saving_arrived` and `possible_saving_arrived` are `1 - time_ratio` over
        `1 - macs_ratio` and over `1 - floor_ratio`, None where nothing is saved; the floor is None where images are
        shared out among ways out.
    """
    routed = cases()
    network = routed[0].network
    plain = {way: network.static_prefix(*way).eval() for way in ways_out(network.decisions)}
    whole = plain[ways_out(network.decisions)[-1]]
    size = _step_size(batch)
    steps: dict[tuple[str, str, int], Step] = {}
    spent: dict[str, list[tuple[float, float, list[float]]]] = {one.case: [] for one in routed}
    for one in routed:
        for number, images in enumerate(one.images.split(size)):
            batches = images.split(batch)
            steps["whole", "", number] = partial(_run, [(whole, part) for part in batches])
            steps["routed", one.case, number] = partial(_run, [(one.classify, part) for part in batches])
            states = [route_out(one.agent, part, k_cpt=one.k_cpt) for part in batches]
            spent[one.case].append(_costs(one, states, size))
            if (ways := _ways(states)) is not None:
                floor = [(plain[way], part[rows]) for part, own in zip(batches, ways, strict=True) for way, rows in own]
                steps["floor", one.case, number] = partial(_run, floor)
    times = in_turns(steps, rounds, routed[0].images.device)

    def seconds(kind: str, case: str) -> float:
        """Return the mean over the sets of the median over the rounds."""
        return fmean(median(times[kind, case, number]) for number in range(SETS))

    whole_macs = network.stem_macs + max(
        sum(network.decisions[d].macs[c] for d, c in taken) for taken in _on_the_way(network).values()
    )
    static = seconds("whole", "")
    records = []
    for one in routed:
        macs, own_macs, leaving = zip(*spent[one.case], strict=True)
        time = seconds("routed", one.case)
        known = all(("floor", one.case, number) in steps for number in range(SETS))
        floor_ratio = seconds("floor", one.case) / static if known else None
        ratio = (fmean(macs) + fmean(own_macs)) / whole_macs
        records.append(
            {
                "case": one.case,
                "agent": one.agent.name,
                "k_cpt": one.k_cpt,
                "checkpoint": one.checkpoint,
                "batch": batch,
                "leaving": [fmean(shares) for shares in zip(*leaving, strict=True)],
                "macs_ratio": ratio,
                "router_macs_ratio": fmean(own_macs) / whole_macs,
                "time_ratio": time / static,
                "floor_ratio": floor_ratio,
                "microseconds": 1e6 * time / size,
                "static_microseconds": 1e6 * static / size,
                "saving_arrived": arrived(time / static, ratio),
                "possible_saving_arrived": None if floor_ratio is None else arrived(time / static, floor_ratio),
            }
        )
    return records


def _step_size(batch: int) -> int:
    return batch * -(-LEAST // batch)


@torch.no_grad()
def _run(pairs: Sequence[tuple[Callable[[Tensor], Tensor], Tensor]]) -> None:
    for run, images in pairs:
        run(images)


def _exits(states: Sequence[RoutingState]) -> Iterator[tuple[Way, Tensor, Tensor, Tensor]]:
    """Yield ways out, the places of the rows in the batch, their weights and what each has cost so far."""
    for state in states:
        for exit in state.exits:
            rows = torch.arange(len(state), device=state.task.device) if exit.rows is None else exit.rows
            yield (exit.decision, exit.choice), state.instance[rows], exit.weight, state.macs[rows]


def _ways(batches: Sequence[Sequence[RoutingState]]) -> list[list[tuple[Way, Tensor]]] | None:
    """Return the rows `(r,)` of each batch by their way out; None where a row takes several."""
    found: list[list[tuple[Way, Tensor]]] = []
    for states in batches:
        ways: dict[Way, list[Tensor]] = {}
        for way, rows, weight, _ in _exits(states):
            if not bool((weight == 1).all()):
                return None
            ways.setdefault(way, []).append(rows)
        found.append([(way, torch.cat(parts)) for way, parts in ways.items()])
    return found


def _on_the_way(network: RoutedPyramid) -> dict[Way, list[Way]]:
    """Return for each way out the decisions a row comes to that leaves there, and what it chooses."""
    before = {onto: (d, c) for d, decision in enumerate(network.decisions) for c, onto in enumerate(decision.next)}
    taken = {way: [way] for way in ways_out(network.decisions)}
    for choices in taken.values():
        while (first := choices[0][0]) in before:
            choices.insert(0, before[first])
    return taken


def _costs(routed: Routed, batches: Sequence[Sequence[RoutingState]], count: int) -> tuple[float, float, list[float]]:
    """Return means per image: multiply-accumulates of the network, of the router, and the share of each way out."""
    taken, decisions = _on_the_way(routed.network), range(len(routed.network.decisions))
    own = torch.tensor([routed.agent.macs(number) for number in decisions], dtype=torch.float64)
    macs = router = 0.0
    shares = dict.fromkeys(taken, 0.0)
    for states in batches:
        spent = torch.zeros(count, dtype=torch.float64)
        passed = torch.zeros(count, len(own), dtype=torch.float64)
        for way, rows, weight, cost in _exits(states):
            rows = rows.cpu()
            spent[rows] = torch.maximum(spent[rows], cost.cpu().double())
            for number, _ in taken[way]:
                passed[rows, number] = 1
            shares[way] += float(weight.double().sum())
        macs += float(spent.sum())
        router += float((passed @ own).sum())
    return macs / count, router / count, [share / count for share in shares.values()]
