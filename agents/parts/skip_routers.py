"""Scores of whether a residual block is run: linear, recurrent, convolutional (CoDiNet, section 4.5.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from routing_gym.agents.parts.scores import ModuleScores, Scores
from routing_gym.blocks import first_weights
from routing_gym.envs import Context, Observation
from routing_gym.networks import RoutedNetwork

SCORES = 2
RECURRENT_WIDTH = 10
"""Width of the recurrent router, and of what it sees of a block (SkipNet, Wang et al. 2018)."""


def linear_routers(network: RoutedNetwork, hidden: int, *, price: bool, seed: int) -> ModuleScores:
    """Scores W₂ relu(W₁ z) of every block, z being the averaged channels (Eqs. 3 and 4).

    With 48 hidden units, biases and the batch norm of the blocks counted, the ResNets have the parameters printed in
    Table 6.
    """

    def make(decision: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, SCORES))

    return ModuleScores(network, make, price=price, seed=seed)


def convolutional_routers(network: RoutedNetwork, *, seed: int) -> ModuleScores:
    """Scores of every block by 2x2 max-pooling, a 3x3 convolution, batch norm, ReLU, averaging and a linear layer.

    After the feed-forward gates of SkipNet (Wang et al. 2018), which have one convolution more, or a stride; so it
    costs an eighth of a block, the 12.5 % of Table 10.

    Raises:
        ValueError: A network that does not show them.
    """
    if getattr(network, "observes", None) != "map":
        raise ValueError("router='cnn' convolves what comes into a block: make the environment with observes='map'")
    shapes: list[tuple[int, ...]] = network.observed_shapes  # type: ignore[assignment]

    def make(decision: int, width: int) -> nn.Module:
        channels = shapes[decision][0]
        return nn.Sequential(
            nn.Unflatten(1, shapes[decision]),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, SCORES),
        )

    return ModuleScores(network, make, price=False, seed=seed)


class RecurrentScores(Scores):
    """One LSTM that goes from block to block, each with a linear layer of its own in front (SkipNet)."""

    def __init__(self, network: RoutedNetwork, *, price: bool, seed: int) -> None:
        super().__init__(price)
        width = RECURRENT_WIDTH

        def make(decision: int, inputs: int) -> nn.Module:
            return nn.Linear(inputs, width)

        self.inputs = ModuleScores(network, make, price=price, seed=seed, outputs=width)
        with first_weights(seed + 1):
            self.cell, self.output = nn.LSTMCell(width, width), nn.Linear(width, SCORES)

    def forward(self, observation: Observation, context: Context) -> Tensor:
        """Scores `(B, 2)`; the LSTM's output and cell, `(B, 2 x 10)`, are carried to the next block."""
        seen, carry = self.inputs(observation, context), context.carry
        before = seen.new_zeros(len(seen), 2 * RECURRENT_WIDTH) if carry is None else carry
        output, cell = self.cell(seen, before.chunk(2, 1))
        context.carry = torch.cat([output, cell], 1)
        return self.output(output)

    def macs(self, decision: int) -> float:
        """Multiply-accumulates at a decision."""
        gates = self.cell.weight_ih.numel() + self.cell.weight_hh.numel()
        return self.inputs.macs(decision) + gates + self.output.weight.numel()
