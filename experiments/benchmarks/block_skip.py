"""Inference of ResNets whose blocks images run or skip, against the whole network: what is saved, and what arrives."""

from __future__ import annotations

import statistics
from functools import partial

import torch
from torch import Tensor, nn

from routing_gym.agents import make_agent, needs
from routing_gym.agents.codinet import CoDiNet
from routing_gym.agents.parts.scores import ModuleScores
from routing_gym.agents.trained.classify import classify, route_out
from routing_gym.blocks import first_weights
from routing_gym.envs import RoutingVectorEnv, Seen, drive
from routing_gym.experiments.benchmarks.convnet import stand_in_images
from routing_gym.experiments.benchmarks.timing import Step, in_turns
from routing_gym.experiments.engine.records import Record
from routing_gym.networks import Deployable, make_network

NETWORKS = ("resnet32-skip", "resnet110-skip")
SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of the images that run each block."""


def measure_block_skip(name: str, batch: int, rounds: int, device: torch.device) -> list[Record]:
    """Time `classify` with CoDiNet's linear routers in turns with the plain network of all blocks, on the same images.

    The routers' last layers have drawn weights and such a bias that the share of images that shall run a block does:
    they cost what trained ones do, and images take many different paths.

    Args:
        name: One of `NETWORKS`.
        batch: Images routed together.
        rounds: Steps timed of each.
        device: Where.

    Returns:
        A record for each share. Ratios are over the plain network: `time_ratio`; `macs_ratio`, routers included;
        `saving_arrived`, `1 - time_ratio` over `1 - macs_ratio`; and `of_routed`, the same over the routed network of
        which every image runs all blocks. None where nothing is saved.
    """
    data = {"train": stand_in_images(1, 10, per_class=-(-batch // 10)).to(device)}
    images = data["train"].pixels(torch.arange(batch, device=device))
    agents = {share: _prescribed(name, data, batch, images, share) for share in SHARES}
    network = agents[SHARES[0]].env.network
    assert isinstance(network, Deployable)
    plain = nn.Sequential(*network.static_route([1] * len(network.decisions), 0)).eval()
    whole_macs = network.stem_macs + sum(decision.macs[1] for decision in network.decisions)
    steps: dict[str, Step] = {"plain": torch.no_grad()(partial(plain, images))}
    macs = {}
    for share, agent in agents.items():
        steps[str(share)] = partial(classify, agent, images)
        (state,) = route_out(agent, images)
        macs[share] = float(state.macs.double().mean()) + sum(map(agent.macs, range(len(network.decisions))))
    seconds = {case: statistics.median(times) for case, times in in_turns(steps, rounds, device).items()}
    records = []
    for share in SHARES:
        time, ratio = seconds[str(share)], macs[share] / whole_macs
        against_all = time / seconds[str(SHARES[0])], macs[share] / macs[SHARES[0]]
        records.append(
            {
                "case": f"{name}, {100 * share:.0f} % run each block",
                "network": name,
                "share": share,
                "batch": batch,
                "macs_ratio": ratio,
                "time_ratio": time / seconds["plain"],
                "microseconds": 1e6 * time / batch,
                "static_microseconds": 1e6 * seconds["plain"] / batch,
                "saving_arrived": _arrived(time / seconds["plain"], ratio),
                "of_routed": _arrived(*against_all),
            }
        )
    return records


def _arrived(time_ratio: float, macs_ratio: float) -> float | None:
    """Return how much of what is saved in operations is saved in time; None where that is too little to be measured."""
    return (1 - time_ratio) / (1 - macs_ratio) if macs_ratio < 0.98 else None


def _prescribed(name: str, data: dict, batch: int, images: Tensor, share: float) -> CoDiNet:
    """Return an agent by which a share of the images runs each block."""
    with first_weights(0):
        network = make_network(name, num_tasks=1, num_classes=10)
    options = {**needs("codinet"), "augmentations": 1, "train": False, "device": str(images.device)}
    env = RoutingVectorEnv(network, data, batch, **options)
    agent = make_agent("codinet", env, alpha=0.0)
    assert isinstance(agent, CoDiNet)
    let_run(agent.eval(), images, share)
    return agent


@torch.no_grad()
def let_run(agent: CoDiNet, images: Tensor, share: float) -> None:
    """Set the routers' last layers so that a share of the images runs each block.

    Args:
        agent: One with linear routers.
        images: `(n, C, H, W)`, normalised.
        share: Of the images, 0 to 1.
    """
    network, routers = agent.env.network.eval(), agent.scores
    assert isinstance(routers, ModuleScores)
    numbers = torch.Generator().manual_seed(0)
    state = network.start(images, torch.zeros(len(images), dtype=torch.int64, device=images.device))
    count = round(share * len(images))

    def decide(seen: Seen) -> Tensor:
        assert seen.sole is not None
        router = routers.of[seen.sole]
        last = router[-1]  # type: ignore[index]
        last.weight.copy_(torch.randn(last.weight.shape, generator=numbers))
        scores = router(seen["activation"][:, : router[0].in_features])  # type: ignore[index]
        margin = scores[:, 1] - scores[:, 0]
        ordered = margin.sort(descending=True).values
        # Halfway between the last that runs it and the first that does not.
        last_in = ordered[count - 1] if count else ordered[0] + 1
        first_out = ordered[count] if count < len(ordered) else ordered[-1] - 1
        last.bias[1] -= (last_in + first_out) / 2
        return (margin > (last_in + first_out) / 2).long()

    for _ in drive(network, state, decide):
        pass
