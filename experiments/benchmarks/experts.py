"""Unlike convolution blocks behind one call, against running one of them on all rows."""

from __future__ import annotations

from functools import partial
from statistics import fmean

import torch
from torch import Tensor, nn

from routing_gym.blocks import ModuleBlocks
from routing_gym.experiments.benchmarks.timing import Measured, Steps, against, measure, steps_of
from routing_gym.experiments.engine.records import Record

BATCH, CHANNELS, SIZE = 256, 48, 26
CONV3, ROUTED = "conv 3x3", "routed"


def experts(channels: int) -> dict[str, nn.Module]:
    """Return the seven blocks of the Diverse-experts networks, all of which leave the shape of an image as it is."""
    return {
        CONV3: nn.Conv2d(channels, channels, 3, padding=1),
        "conv 5x5": nn.Conv2d(channels, channels, 5, padding=2),
        "conv 7x7": nn.Conv2d(channels, channels, 7, padding=3),
        "conv 1x7, 7x1": nn.Sequential(
            nn.Conv2d(channels, channels, (1, 7), padding=(0, 3)), nn.Conv2d(channels, channels, (7, 1), padding=(3, 0))
        ),
        "max-pool 3": nn.MaxPool2d(3, stride=1, padding=1),
        "average-pool 3": nn.AvgPool2d(3, stride=1, padding=1),
        "identity": nn.Identity(),
    }


def measure_experts(
    rounds: int, device: torch.device, batch: int = BATCH, channels: int = CHANNELS, size: int = SIZE
) -> list[Record]:
    """Time seven unlike blocks, every row sent to one of them at random, in turns with each of them on all rows.

    Training is forward and backward, to the blocks' parameters and to what came in.

    Returns:
        Two records, against the 3x3 convolution on all rows, and against the mean over the seven, each on all rows:
        what routing would cost if bringing rows together were free.
    """
    kinds = list(experts(channels))
    measured = measure(
        {kind: partial(_steps, only, device, batch, channels, size) for only, kind in enumerate([*kinds, ROUTED])},
        rounds,
        device,
    )
    alone = [measured[kind] for kind in kinds]
    mean = Measured(
        train=[fmean(times) for times in zip(*(own.train for own in alone), strict=True)],
        infer=[fmean(times) for times in zip(*(own.infer for own in alone), strict=True)],
        peak_memory=fmean(own.peak_memory for own in alone),
    )
    macs = ModuleBlocks(experts(channels).values(), (channels, size, size)).macs
    return [
        {
            "case": "seven unlike blocks",
            "against": name,
            "blocks": len(kinds),
            "batch": batch,
            **against(measured[ROUTED], static, batch),
            "macs_ratio": fmean(macs) / cost,
        }
        for name, static, cost in ((CONV3, measured[CONV3], macs[kinds.index(CONV3)]), ("mean", mean, fmean(macs)))
    ]


def _steps(only: int, device: torch.device, batch: int, channels: int, size: int) -> Steps:
    """Return forward and backward, and forward alone, of one block on all rows, or of all at random behind the last."""
    modules = list(experts(channels).values())
    routed = only == len(modules)
    network = (ModuleBlocks(modules, (channels, size, size)) if routed else modules[only]).to(device)
    numbers = torch.Generator(device).manual_seed(0)
    x = torch.randn(batch, channels, size, size, generator=numbers, device=device, requires_grad=True)
    grad = torch.randn(batch, channels, size, size, generator=numbers, device=device)

    def forward() -> Tensor:
        if not routed:
            return network(x)
        return network(x, torch.randint(len(modules), (batch,), generator=numbers, device=device))

    return steps_of(network, forward, lambda: forward().backward(grad), leaves=[x])
