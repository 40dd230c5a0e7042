"""The router of multipath early exit: a small network behind every decision (McGill and Perona 2017, Fig. 3)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from routing_gym.blocks import allow_small_groups
from routing_gym.envs import Observation
from routing_gym.networks import RoutedNetwork
from routing_gym.networks.pyramid_columns import DECAY, EPSILON

HIDDEN = 16


class Routers(nn.Module):
    """Scores of every choice: for each decision two linear layers of 16 with batch norm and ReLU, and a linear one.

    The last layer begins at zero, the others are drawn from Xavier's uniform distribution.

    Args:
        network: Says how wide a decision's observation is, and how many choices it has.
        price: Whether the price of computation joins what is seen (section 4.6).
        seed: Of the first weights.

    Attributes:
        of: The router of each decision.
    """

    def __init__(self, network: RoutedNetwork, price: bool, seed: int) -> None:
        super().__init__()
        self.num_choices, self.price = network.num_choices, price
        self.widths = [decision.width for decision in network.decisions]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.of = nn.ModuleList(_router(d.width + price, d.n) for d in network.decisions)
        allow_small_groups(self)

    def forward(self, observation: Observation, active: Tensor) -> Tensor:
        """Return `(B, A)` scores; 0 for choices that a decision does not have, and for rows that have left.

        Args:
            observation: `activation`, `depth` and, where it is seen, `price`.
            active: `(B,)` bool: rows that decide. No other row is looked at.
        """
        seen, depth = observation["activation"], observation["depth"]
        if self.price:
            seen = torch.cat([observation["price"].to(seen.dtype), seen], 1)
        scores = seen.new_zeros(len(seen), self.num_choices)
        here = depth[active]
        if not len(here):
            return scores
        first, last = (int(number) for number in here.aminmax())
        if first == last and len(here) == len(depth):
            return self._scores(first, seen)
        for number in range(first, last + 1):
            rows = (active & (depth == number)).nonzero().flatten()
            if len(rows):
                scores = scores.index_copy(0, rows, self._scores(number, seen.index_select(0, rows)))
        return scores

    def _scores(self, number: int, seen: Tensor) -> Tensor:
        scores = self.of[number](seen[:, : self.widths[number] + self.price])
        return nn.functional.pad(scores, (0, self.num_choices - scores.shape[1]))

    def macs(self, number: int) -> float:
        """Return the multiply-accumulates of the router of a decision."""
        layers = [part for part in cast(nn.Sequential, self.of[number]) if isinstance(part, nn.Linear)]
        return float(sum(layer.in_features * layer.out_features for layer in layers))


def _router(inputs: int, outputs: int) -> nn.Sequential:
    router = nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.BatchNorm1d(HIDDEN, eps=EPSILON, momentum=1 - DECAY),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.BatchNorm1d(HIDDEN, eps=EPSILON, momentum=1 - DECAY),
        nn.ReLU(),
        nn.Linear(HIDDEN, outputs),
    )
    for part in router:
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    nn.init.zeros_(cast(nn.Linear, router[-1]).weight)
    return router
