"""Sparse gates beside layers of other libraries that mix two experts for every row, where those are installed."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents import train_batch
from routing_gym.blocks import LinearBlocks, count_macs, first_weights
from routing_gym.envs.training import OPTIMIZERS
from routing_gym.experiments.benchmarks.steps import LAYERS, WIDTH, Subject, agent_steps, macs_of, static_steps
from routing_gym.experiments.benchmarks.timing import Case, Steps, against, measure, steps_of
from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.engine.settings import build_agent
from routing_gym.tasks import ShuffledStream

CHOSEN = 2
"""Experts that a row is mixed from, which two of the layers are made for."""
GATES = ("top-k", "expert-choice", "loss-free")
"""Agents whose rows are mixed from two blocks by default."""
LEARNED, LAST, SEEDS = 600, 100, 5
"""Batches that are learned on; the last of them, of which the loss is the mean; seeds."""


def experts(number: int, relu: bool) -> nn.ModuleList:
    """Experts that do what ours do: one linear layer, rectified where that is not the last."""
    return nn.ModuleList(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU() if relu else nn.Identity()) for _ in range(number)
    )


class TwoBlocks(nn.Module):
    """What two blocks of every row cost that nobody has to choose: the floor."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.blocks = experts(CHOSEN, relu)

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


def _davidmrau(blocks: int, relu: bool) -> nn.Module:
    layer = importlib.import_module("moe").MoE(WIDTH, WIDTH, blocks, WIDTH, noisy_gating=True, k=CHOSEN)
    layer.experts = experts(blocks, relu)
    return layer


def _lucidrains(blocks: int, relu: bool) -> nn.Module:
    made = importlib.import_module("mixture_of_experts").MoE
    return OneSequence(made(WIDTH, num_experts=blocks, experts=EachItsOwn(blocks, WIDTH, WIDTH, relu=relu)))


def _st_moe(blocks: int, relu: bool) -> nn.Module:
    made = importlib.import_module("st_moe_pytorch").MoE
    return OneSequence(made(WIDTH, num_experts=blocks, gating_top_n=CHOSEN, experts=experts(blocks, relu)))


Maker = Callable[[int, bool], nn.Module]
"""Makes a layer of a number of experts, which are rectified or not."""
LAYERS_OF: dict[str, Maker] = {
    "two static blocks": lambda blocks, relu: TwoBlocks(relu),
    "davidmrau/mixture-of-experts": _davidmrau,
    "mixture-of-experts": _lucidrains,
    "st-moe-pytorch": _st_moe,
}
"""Layers by the repository, or the package, they come from; they return outputs and losses of their own."""


def measure_public_layers(subject: Subject, batch: int, rounds: int) -> list[Record]:
    """Return a record of each of `GATES`, of two static blocks, and of every layer that is installed.

    All have three layers, 128 wide, in which every row is mixed from two of k linear experts, rectified but for the
    last layer's, noise and balancing losses included; layers with a capacity drop rows that are too many for an expert.
    Ratios are to the static network.
    """
    static = subject.static(subject.fresh())
    macs = count_macs(static, torch.zeros(1, *subject.data["train"].input_shape, device=subject.device))
    of_all: Record = {"blocks": subject.blocks, "dtype": subject.precision}
    cases = {"": Case(partial(static_steps, subject, batch), macs)}
    for name in GATES:
        ours = partial(agent_steps, subject, batch, name)
        cases[name] = Case(ours, sum(macs_of(subject, name, ())), {"layer": name, **of_all})
    for name, make in _installed(subject.blocks):
        cases[name] = Case(partial(_steps, subject, batch, make), CHOSEN * macs, {"layer": name, **of_all})
    first, *others = measure(cases, rounds, subject.device).values()
    return [against(own, first, batch) for own in others]


def measure_public_losses(subject: Subject, batch: int) -> list[Record]:
    """Return what each of `GATES`, two static blocks and every layer installed have learned of the same work.

    Of each a record with `loss`, the cross-entropy of a batch, losses of the layer's own left out, and `loss_error`,
    its standard error over seeds, which draw first weights and the order of the data. Everything steps by Adam with
    the same size; gates of ours have an optimiser of their own.
    """
    subject = dataclasses.replace(subject, optimizer="adam", learning_rate=1e-3)
    learners: dict[str, Callable[[int], Callable[[], Tensor]]] = {
        name: partial(_agent_learning, subject, batch, name) for name in GATES
    }
    learners |= {name: partial(_learning, subject, batch, make) for name, make in _installed(subject.blocks)}
    records = []
    for name, learner in learners.items():
        losses = []
        for seed in range(SEEDS):
            step = learner(seed)
            losses.append(fmean([float(step()) for _ in range(LEARNED)][-LAST:]))
        error = stdev(losses) / sqrt(SEEDS)
        of_work = {"layer": name, "blocks": subject.blocks, "batch": batch}
        records.append({**of_work, "loss": fmean(losses), "loss_error": error})
    return records


def _installed(blocks: int) -> Iterator[tuple[str, Maker]]:
    for name, make in LAYERS_OF.items():
        with suppress(ImportError):
            make(blocks, True)
            yield name, make


def _losses(
    subject: Subject, batch: int, make: Maker, seed: int = 0
) -> tuple[nn.Module, Callable[[], tuple[Tensor, Tensor]]]:
    """A network of such layers, and what draws a batch and returns its cross-entropy and the layers' own losses."""
    with first_weights(seed):
        network = nn.ModuleList(make(subject.blocks, layer < LAYERS - 1) for layer in range(LAYERS)).to(subject.device)
    dataset, stream = subject.data["train"], ShuffledStream(len(subject.data["train"]), seed)

    def losses() -> tuple[Tensor, Tensor]:
        rows = stream.draw(batch).to(dataset.device)
        x, own = dataset.pixels(rows).flatten(1), []
        for layer in network:
            x, loss = layer(x)
            own.append(loss)
        return functional.cross_entropy(x, dataset.label[rows]), torch.as_tensor(sum(own))

    return network, losses


def _optimizer(subject: Subject, network: nn.Module) -> torch.optim.Optimizer:
    return OPTIMIZERS[subject.optimizer](network, lr=subject.learning_rate)


def _steps(subject: Subject, batch: int, make: Maker) -> Steps:
    network, losses = _losses(subject, batch, make)
    return steps_of(network, losses, lambda: torch.add(*losses()).backward(), _optimizer(subject, network))


def _learning(subject: Subject, batch: int, make: Maker, seed: int) -> Callable[[], Tensor]:
    """Steps that return the cross-entropy before them."""
    network, losses = _losses(subject, batch, make, seed)
    optimizer = _optimizer(subject, network.train())

    def step() -> Tensor:
        optimizer.zero_grad()
        loss, own = losses()
        (loss + own).backward()
        optimizer.step()
        return loss.detach()

    return step


def _agent_learning(subject: Subject, batch: int, name: str, seed: int) -> Callable[[], Tensor]:
    agent = build_agent(name, subject.make_env(batch, name, seed), seed, ()).train()
    return lambda: train_batch(agent, agent.env)[0].loss.mean()
