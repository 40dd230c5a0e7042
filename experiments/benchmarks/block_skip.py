"""Inference of ResNets whose blocks images run or skip, against the whole network: what is saved, and what arrives."""

from __future__ import annotations

from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from routing_gym.agents import Agent, make_agent, needs
from routing_gym.agents.trained.classify import classify, route_out
from routing_gym.blocks import first_weights
from routing_gym.envs import RoutingVectorEnv
from routing_gym.experiments.benchmarks.early_exit import prescribe
from routing_gym.experiments.benchmarks.steps import stand_in_images
from routing_gym.experiments.benchmarks.timing import Step, arrived, in_turns
from routing_gym.experiments.engine.records import Record
from routing_gym.networks import Deployable, make_network

NETWORKS = ("resnet32-skip", "resnet110-skip")
SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of the images that run each block."""


def measure_block_skip(name: str, batch: int, rounds: int, device: torch.device) -> list[Record]:
    """Time `classify` with CoDiNet's linear routers in turns with the plain network of all blocks, on the same images.

    The routers' last layers have drawn weights and such a bias that the share of images that shall run a block does:
    they cost what trained ones do, and images take many different paths.

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
    steps: dict[float | None, Step] = {None: torch.no_grad()(partial(plain, images))}
    macs = {}
    for share, agent in agents.items():
        steps[share] = partial(classify, agent, images)
        (state,) = route_out(agent, images)
        macs[share] = float(state.macs.double().mean()) + sum(map(agent.macs, range(len(network.decisions))))
    seconds = {case: median(times) for case, times in in_turns(steps, rounds, device).items()}
    whole, all_blocks = seconds[None], SHARES[0]
    return [
        {
            "case": f"{name}, {100 * share:.0f} % run each block",
            "network": name,
            "share": share,
            "batch": batch,
            "macs_ratio": macs[share] / whole_macs,
            "time_ratio": seconds[share] / whole,
            "microseconds": 1e6 * seconds[share] / batch,
            "static_microseconds": 1e6 * whole / batch,
            "saving_arrived": arrived(seconds[share] / whole, macs[share] / whole_macs),
            "of_routed": arrived(seconds[share] / seconds[all_blocks], macs[share] / macs[all_blocks]),
        }
        for share in SHARES
    ]


def _prescribed(name: str, data: dict, batch: int, images: Tensor, share: float) -> Agent:
    """Return an agent by which a share of the images runs each block."""
    with first_weights(0):
        network = make_network(name, num_tasks=1, num_classes=10)
    options = {**needs("codinet"), "augmentations": 1, "train": False, "device": str(images.device)}
    agent = make_agent("codinet", RoutingVectorEnv(network, data, batch, **options), alpha=0.0).eval()
    prescribe(agent, images, [share] * len(network.decisions), choice=1)
    return agent
