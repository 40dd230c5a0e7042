"""What is saved by rows that skip blocks or leave early: multiply-accumulates, and time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from routing_gym.agents import make_agent
from routing_gym.agents.fixed import RandomAgent
from routing_gym.blocks import OwnedParameter, count_macs, plain, probe
from routing_gym.experiments.benchmarks.steps import Subject, mlp, routed_steps, stand_in_images, static_steps
from routing_gym.experiments.benchmarks.timing import Steps, against, measure, median_ratio
from routing_gym.experiments.engine.records import Record
from routing_gym.networks import EXIT, Decision, RoutedMLP, RoutedNetwork
from routing_gym.networks.state import Activation

BATCH = 1024
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
BLOCKS, PASS_WIDTH, PASS_LAYERS = 10, 512, 6


class EarlyExit(RoutedNetwork):
    """A convolution for all, then one decision: go on (0) through two more convolutions, or leave (1) without them."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, width: int = 32) -> None:
        image = torch.zeros(1, *input_shape)
        trunk = nn.Sequential(nn.Conv2d(input_shape[0], width, 3, stride=2, padding=1), nn.ReLU())
        stage = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        )
        late, early = (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)) for _ in range(2)
        )
        seen = probe(trunk, lambda: trunk(image))
        costs = count_macs(nn.Sequential(stage, late), seen), count_macs(early, seen)
        super().__init__(
            [Decision("go on or leave", costs, (EXIT, EXIT), mixing="outcome", width=width)],
            num_classes=num_classes,
            input_shape=input_shape,
            stem_macs=count_macs(trunk, image),
        )
        self.trunk, self.stage, self.late, self.early = trunk, stage, late, early

    def without_exit(self) -> nn.Module:
        """Return the network in which all go on."""
        return nn.Sequential(self.trunk, self.stage, self.late)

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Run what all rows run."""
        return (self.trunk(images),)

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Classify, after the stage or without it."""
        x = plain(activation[0])
        return self.early(x) if choice else self.late(self.stage(x))

    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Return the mean of each channel."""
        return plain(activation[0]).mean((2, 3))

    def parameters_of(self, decision: int, choice: int) -> list[OwnedParameter]:
        """Return what only one way runs."""
        parts = [self.early] if choice else [self.stage, self.late]
        return [OwnedParameter(parameter) for part in parts for parameter in part.parameters()]


def early_exit(device: torch.device) -> tuple[Subject, Tensor, Tensor]:
    """Return the network with an exit, on 32x32 images, and how often a row takes each choice if none leaves, or all.

    Returns:
        The network, and twice `(N, A)` probabilities.
    """
    data = {"train": stand_in_images(1, 10, per_class=100).to(device)}
    shape = data["train"].input_shape
    return Subject(lambda: EarlyExit(shape, 10), data, 1, EarlyExit.without_exit), torch.eye(2)[:1], torch.eye(2)[1:]


def with_pass(device: torch.device) -> tuple[Subject, Tensor, Tensor]:
    """Return six fully connected layers, 512 wide, the middle four of which offer the same ten blocks and PASS.

    Returns:
        The network, and twice `(N, A)` probabilities of each choice: if no row passes, or every row everywhere.
    """
    data = mlp(1, device).data
    shape = data["train"].input_shape
    blocks = (1, BLOCKS, 1)
    never = torch.zeros(PASS_LAYERS, BLOCKS + 1)
    never[0, 0] = never[-1, 0] = 1
    always = never.clone()
    never[1:-1, :BLOCKS] = 1 / BLOCKS
    always[1:-1, BLOCKS] = 1
    build = partial(RoutedMLP, shape, shape[1] * shape[2], blocks, width=PASS_WIDTH, layers=PASS_LAYERS, recurrent=True)
    return Subject(build, data, BLOCKS), never, always


def measure_skipping(rounds: int, device: torch.device, batch: int = BATCH) -> list[Record]:
    """Time networks in which a share of the rows skips what can be skipped, drawn at random for every row.

    Returns:
        A record for each network and share: against the static network of the same layers, all of which all rows run,
        and what is saved against nobody skipping: `macs_saved`, `train_time_saved`, `inference_time_saved`, 0 to 1.
    """
    records = []
    for case, (subject, never, always) in {"PASS": with_pass(device), "early exit": early_exit(device)}.items():
        makers: dict[float | None, Callable[[], Steps]] = {None: partial(static_steps, subject, batch)}
        macs, network = {}, subject.fresh()
        for share in SHARES:
            chances = (1 - share) * never + share * always
            makers[share] = partial(_steps, subject, batch, chances)
            macs[share] = expected_macs(network, chances)
        measured = measure(makers, rounds, device)
        nobody = measured[SHARES[0]]
        for share in SHARES:
            own, ratio = measured[share], macs[share] / macs[SHARES[0]]
            records.append(
                {
                    "case": case,
                    "against": "all layers",
                    "share": share,
                    "blocks": subject.blocks,
                    "batch": batch,
                    **against(own, measured[None], batch),
                    "macs_ratio": ratio,
                    "macs_saved": 1 - ratio,
                    "train_time_saved": 1 - median_ratio(own.train, nobody.train),
                    "inference_time_saved": 1 - median_ratio(own.infer, nobody.infer),
                }
            )
    return records


def expected_macs(network: RoutedNetwork, chances: Tensor) -> float:
    """Return the mean multiply-accumulates per instance, `chances` being `(N, A)` and every decision on every way."""
    mean = network.stem_macs
    for decision, own in zip(network.decisions, chances.tolist(), strict=True):
        mean += sum(chance * cost for chance, cost in zip(own, decision.macs, strict=False))
    return mean


def _steps(subject: Subject, batch: int, chances: Tensor) -> Steps:
    """Return the steps of random choices of given probabilities, `(N, A)`."""
    agent = make_agent("random", subject.make_env(batch))
    assert isinstance(agent, RandomAgent)
    agent.table[0, :-1, 0] = chances
    return routed_steps(agent, deterministic=False)
