"""Sparse gates beside layers of other libraries that mix two experts for every row, where those are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks import LinearBlocks, count_macs
from routing_gym.envs.training import OPTIMIZERS
from routing_gym.experiments.benchmarks.steps import LAYERS, WIDTH, Subject, agent_steps, macs_of, static_steps
from routing_gym.experiments.benchmarks.timing import Case, Steps, against, measure, steps_of
from routing_gym.experiments.engine.records import Record
from routing_gym.tasks import ShuffledStream

CHOSEN = 2
"""Experts that a row is mixed from, which two of the layers are made for."""
GATES = ("top-k", "expert-choice", "loss-free")
"""Agents whose rows are mixed from two blocks by default."""


class Rectified(nn.Sequential):
    """An expert that does what ours do: one linear layer, rectified."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, WIDTH), nn.ReLU())


class TwoBlocks(nn.Module):
    """What two blocks of every row cost that nobody has to choose: the floor."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Rectified() for _ in range(CHOSEN))

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        """Mean `(B, WIDTH)`, and no loss of its own."""
        return sum(block(x) for block in self.blocks) / CHOSEN, 0.0


class OneSequence(nn.Module):
    """Hands a batch to a layer that wants sequences `(1, B, WIDTH)`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output `(B, WIDTH)`, and the layer's losses."""
        y, loss, *_ = self.layer(x.unsqueeze(0))
        return y[0], loss


class EachItsOwn(LinearBlocks):
    """Experts `(k, WIDTH, WIDTH)` for inputs `(k, r, WIDTH)` of their own, as `mixture_of_experts` wants them."""

    def forward(self, x: Tensor, action: Any = None) -> Tensor:
        """Outputs `(k, r, WIDTH)`."""
        return self.run_each(x.transpose(0, 1)).transpose(0, 1)


def _davidmrau(blocks: int) -> nn.Module:
    layer = importlib.import_module("moe").MoE(WIDTH, WIDTH, blocks, WIDTH, noisy_gating=True, k=CHOSEN)
    layer.experts = nn.ModuleList(Rectified() for _ in range(blocks))
    return layer


def _lucidrains(blocks: int) -> nn.Module:
    made = importlib.import_module("mixture_of_experts").MoE
    return OneSequence(made(WIDTH, num_experts=blocks, experts=EachItsOwn(blocks, WIDTH, WIDTH, relu=True)))


def _st_moe(blocks: int) -> nn.Module:
    experts = nn.ModuleList(Rectified() for _ in range(blocks))
    made = importlib.import_module("st_moe_pytorch").MoE
    return OneSequence(made(WIDTH, num_experts=blocks, gating_top_n=CHOSEN, experts=experts))


LAYERS_OF: dict[str, Callable[[int], nn.Module]] = {
    "two static blocks": lambda blocks: TwoBlocks(),
    "davidmrau/mixture-of-experts": _davidmrau,
    "mixture-of-experts": _lucidrains,
    "st-moe-pytorch": _st_moe,
}
"""Layers by the repository, or the package, they come from; they return outputs and losses of their own."""


def measure_public_layers(subject: Subject, batch: int, rounds: int) -> list[Record]:
    """Return a record of each of `GATES`, of two static blocks, and of every layer that is installed.

    All have three layers, 128 wide, in which every row is mixed from two of k rectified linear experts, noise and
    balancing losses included; layers with a capacity drop rows that are too many for an expert. Ratios are to the
    static network.
    """
    static = subject.static(subject.fresh())
    macs = count_macs(static, torch.zeros(1, *subject.data["train"].input_shape, device=subject.device))
    of_all: Record = {"blocks": subject.blocks, "dtype": subject.precision}
    cases = {"": Case(partial(static_steps, subject, batch), macs)}
    for name in GATES:
        ours = partial(agent_steps, subject, batch, name)
        cases[name] = Case(ours, sum(macs_of(subject, name, ())), {"layer": name, **of_all})
    for name, make in LAYERS_OF.items():
        with suppress(ImportError):
            make(subject.blocks)
            cases[name] = Case(partial(_steps, subject, batch, make), CHOSEN * macs, {"layer": name, **of_all})
    first, *others = measure(cases, rounds, subject.device).values()
    return [against(own, first, batch) for own in others]


def _steps(subject: Subject, batch: int, make: Callable[[int], nn.Module]) -> Steps:
    network = nn.ModuleList(make(subject.blocks) for _ in range(LAYERS)).to(subject.device)
    dataset, stream = subject.data["train"], ShuffledStream(len(subject.data["train"]))

    def loss() -> Tensor:
        rows = stream.draw(batch).to(dataset.device)
        x, losses = dataset.pixels(rows).flatten(1), []
        for layer in network:
            x, own = layer(x)
            losses.append(own)
        return functional.cross_entropy(x, dataset.label[rows]) + sum(losses)

    return steps_of(network, loss, lambda: loss().backward(), OPTIMIZERS[subject.optimizer](network, lr=1e-2))
