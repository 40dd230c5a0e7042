"""Inference of networks that instances leave early, against the whole network and against the parts each one runs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from routing_gym.agents import Agent, make_agent, needs
from routing_gym.agents.parts.multipath import Multipath
from routing_gym.agents.trained.classify import classify, route_out
from routing_gym.blocks import first_weights
from routing_gym.envs import RoutingVectorEnv, Seen, drive
from routing_gym.experiments.benchmarks.convnet import stand_in_images
from routing_gym.experiments.benchmarks.timing import Step, in_turns
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.records import Record
from routing_gym.networks import RoutedPyramid, RoutingState, make_network, ways_out

LEAST = 64
"""Images of a timed step at least: a smaller batch is followed by others until it has had as many."""

SETS = 2
"""Sets of images that are timed: group sizes differ between them."""

Ways = dict[tuple[int, int], Tensor]
"""The rows, `(r,)` int64, that leave by each `(decision, choice)`."""


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


def images_for(batch: int) -> int:
    """Return how many images batches of a size are timed on."""
    return SETS * _step_size(batch)


def prescribed(device: torch.device, batch: int) -> list[Routed]:
    """Return agents on the pyramid chain of 8 columns, 16 wide, by which images leave as often as is prescribed.

    Their routers are those of multipath early exit, whose last layer has drawn weights and a bias that so many of the
    images leave as shall: they cost what trained ones do, and nothing is decided beside them.

    Args:
        device: Where.
        batch: Images routed together.
    """
    data = {"train": stand_in_images(1, 10, per_class=-(-images_for(batch) // 10)).to(device)}
    images = data["train"].pixels(torch.arange(images_for(batch), device=device))
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
        agent = make_agent("actor", env)
        assert isinstance(agent, Multipath)
        let_leave(agent.eval(), images, leaving)
        routed.append(Routed(case, agent, images))
    return routed


def trained(checkpoint: str, agent: Agent, batch: int) -> list[Routed]:
    """Return a trained agent on images of its test split, repeated where these are too few; once per price it knows.

    Args:
        checkpoint: Where it comes from.
        agent: The agent.
        batch: Images routed together.
    """
    env = agent.env
    test = env.datasets["test"].to(env.device)
    images = test.pixels(torch.arange(images_for(batch), device=env.device) % len(test))
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
    if not isinstance(agent.env.network, RoutedPyramid):
        raise UsageError(
            f"{checkpoint}: the part early-exit is for pyramid-chain and pyramid-tree, got a "
            f"{type(agent.env.network).__name__}"
        )


@torch.no_grad()
def let_leave(agent: Multipath, images: Tensor, shares: Sequence[float]) -> None:
    """Set the routers' last layers so that at each decision a share of the images that are still there leaves.

    Args:
        agent: The agent; the network's choice 0 is to leave, 1 to go on.
        images: `(n, C, H, W)`, normalised.
        shares: One for each decision.
    """
    network = agent.env.network
    numbers = torch.Generator().manual_seed(0)
    state = network.start(images, torch.zeros(len(images), dtype=torch.int64, device=images.device))

    def decide(seen: Seen) -> Tensor:
        ((number, group, _),) = seen.state.acting()
        router = agent.scores.of[number]
        last = router[-1]  # type: ignore[index]
        assert isinstance(last, nn.Linear)
        last.weight.copy_(torch.randn(last.weight.shape, generator=numbers))
        scores = router(network.describe(number, group.activation))
        margins = (scores[:, 0] - scores[:, 1]).sort(descending=True).values
        count = round(shares[number] * len(margins))
        # Halfway between the last that leaves and the first that stays; far beyond all where nobody leaves, or all do.
        before = margins[count - 1] if count else margins[0] + 1e6
        after = margins[count] if count < len(margins) else margins[-1] - 1e6
        last.bias[0] -= (before + after) / 2
        leaves = scores[:, 0] - scores[:, 1] > (before + after) / 2
        action = torch.ones_like(seen.task)
        action[slice(None) if group.rows is None else group.rows] = 1 - leaves.long()
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
    device = routed[0].images.device
    plain = {way: network.static_prefix(*way).eval() for way in ways_out(network.decisions)}
    whole = plain[ways_out(network.decisions)[-1]]
    size = _step_size(batch)
    steps: dict[tuple[str, str, int], Step] = {}
    spent: dict[str, list[tuple[float, float, list[float]]]] = {}
    for one in routed:
        spent[one.case] = []
        for number, images in enumerate(one.images.split(size)):
            batches = images.split(batch)
            steps["whole", "", number] = partial(_run, whole, batches)
            steps["routed", one.case, number] = partial(_classify, one, batches)
            states = [route_out(one.agent, part, k_cpt=one.k_cpt) for part in batches]
            spent[one.case].append(_costs(one, states, size))
            if (ways := _ways(states)) is not None:
                steps["floor", one.case, number] = partial(_run_each, *_sorted_out(plain, batches, ways))
    times = in_turns({str(key): torch.no_grad()(step) for key, step in steps.items()}, rounds, device)

    def seconds(kind: str, case: str) -> float | None:
        """Return the mean over the sets of the median over the rounds."""
        own = [times[str((kind, case, number))] for number in range(SETS) if (kind, case, number) in steps]
        return statistics.fmean(map(statistics.median, own)) if len(own) == SETS else None

    whole_macs = max(_macs_of_ways(network).values())
    static = seconds("whole", "")
    assert static is not None
    records = []
    for one in routed:
        macs, own_macs = (statistics.fmean(costs) for costs in list(zip(*spent[one.case], strict=True))[:2])
        time, floor = seconds("routed", one.case), seconds("floor", one.case)
        assert time is not None
        saved = 1 - time / static
        ratio = (macs + own_macs) / whole_macs
        records.append(
            {
                "case": one.case,
                "agent": one.agent.name,
                "k_cpt": one.k_cpt,
                "checkpoint": one.checkpoint,
                "batch": batch,
                "leaving": [statistics.fmean(shares) for shares in zip(*(c[2] for c in spent[one.case]), strict=True)],
                "macs_ratio": ratio,
                "router_macs_ratio": own_macs / whole_macs,
                "time_ratio": time / static,
                "floor_ratio": None if floor is None else floor / static,
                "microseconds": 1e6 * time / size,
                "static_microseconds": 1e6 * static / size,
                "saving_arrived": _share(saved, 1 - ratio),
                "possible_saving_arrived": None if floor is None else _share(saved, 1 - floor / static),
            }
        )
    return records


def _step_size(batch: int) -> int:
    return batch * -(-LEAST // batch)


def _share(part: float, whole: float) -> float | None:
    """Return part / whole; None where the whole is too small to be measured."""
    return part / whole if whole > 0.02 else None


def _run(module: nn.Module, batches: Sequence[Tensor]) -> None:
    for images in batches:
        module(images)


def _classify(routed: Routed, batches: Sequence[Tensor]) -> None:
    for images in batches:
        classify(routed.agent, images, k_cpt=routed.k_cpt)


def _run_each(modules: Sequence[nn.Module], batches: Sequence[Tensor]) -> None:
    for module, images in zip(modules, batches, strict=True):
        module(images)


def _exits(states: Sequence[RoutingState]) -> Iterator[tuple[tuple[int, int], Tensor, Tensor, Tensor]]:
    """Yield `(decision, choice)`, the places of the rows in the batch, their weights and what each has cost so far."""
    for state in states:
        for exit in state.exits:
            rows = torch.arange(len(state), device=state.task.device) if exit.rows is None else exit.rows
            yield (exit.decision, exit.choice), state.instance[rows], exit.weight, state.macs[rows]


def _ways(batches: Sequence[Sequence[RoutingState]]) -> list[Ways] | None:
    """Return the rows of each batch by their way out; None where a row takes several."""
    found: list[Ways] = []
    for states in batches:
        ways: dict[tuple[int, int], list[Tensor]] = {}
        for way, rows, weight, _ in _exits(states):
            if not bool((weight == 1).all()):
                return None
            ways.setdefault(way, []).append(rows)
        found.append({way: torch.cat(parts) for way, parts in ways.items()})
    return found


def _sorted_out(
    plain: Mapping[tuple[int, int], nn.Module], batches: Sequence[Tensor], ways: Sequence[Ways]
) -> tuple[list[nn.Module], list[Tensor]]:
    """Return plain networks and the images each of them is to run, one beside the other."""
    pairs = [(plain[way], images[rows]) for images, own in zip(batches, ways, strict=True) for way, rows in own.items()]
    return [module for module, _ in pairs], [images for _, images in pairs]


def _before(network: RoutedPyramid, decision: int) -> list[tuple[int, int]]:
    """Return the decisions and choices by which a row comes to a decision."""
    for number, earlier in enumerate(network.decisions):
        for choice, target in enumerate(earlier.next):
            if target == decision:
                return [*_before(network, number), (number, choice)]
    return []


def _macs_of_ways(network: RoutedPyramid) -> dict[tuple[int, int], float]:
    """Return the multiply-accumulates of a row that takes one way out, routers left out."""
    return {
        (number, choice): network.stem_macs
        + sum(network.decisions[d].macs[c] for d, c in [*_before(network, number), (number, choice)])
        for number, choice in ways_out(network.decisions)
    }


def _costs(routed: Routed, batches: Sequence[Sequence[RoutingState]], count: int) -> tuple[float, float, list[float]]:
    """Return means per image: multiply-accumulates of the network, of the router, and the share of each way out."""
    network = routed.network
    own = torch.tensor([routed.agent.macs(number) for number in range(len(network.decisions))], dtype=torch.float64)
    macs = router = 0.0
    shares = dict.fromkeys(ways_out(network.decisions), 0.0)
    for states in batches:
        spent = torch.zeros(count, dtype=torch.float64)
        passed = torch.zeros(count, len(network.decisions), dtype=torch.float64)
        for (decision, choice), rows, weight, cost in _exits(states):
            rows = rows.cpu()
            spent[rows] = torch.maximum(spent[rows], cost.cpu().double())
            for number in [*(d for d, _ in _before(network, decision)), decision]:
                passed[rows, number] = 1
            shares[decision, choice] += float(weight.double().sum())
        macs += float(spent.sum())
        router += float((passed @ own).sum())
    return macs / count, router / count, [share / count for share in shares.values()]
