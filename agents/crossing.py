"""Data-dependent gates between parallel paths: where each tensor goes depends on what it holds.

Source: Tissera et al., "End-to-End Data-Dependent Routing in Multi-Path Neural Networks".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents.parts.bases import RouterAgent, RouterConfig
from routing_gym.agents.parts.scores import ModuleScores
from routing_gym.blocks import LinearBlocks
from routing_gym.envs import Context, Observation
from routing_gym.networks import Decision
from routing_gym.options import count


@dataclasses.dataclass(frozen=True)
class CrossingConfig(RouterConfig):
    """Options of gates between paths.

    Attributes:
        hidden: Width of the hidden layer.
    """

    hidden: int = count(16)


class CrossingGate(nn.Module):
    """The gates of one decision: A_i = W2_i ReLU(W1_i Z_i), a network of its own for each of m tensors (Eq. 2).

    What is seen is the price of computation, where `price` is set, for all gates, and Z_1 to Z_m one after the other.
    `shape` is `(M, A)`, tensors and choices of the whole network.
    """

    def __init__(self, decision: Decision, hidden: int, shape: tuple[int, int], *, price: bool = False) -> None:
        super().__init__()
        self.tensors, self.price = decision.m, price
        self.missing = (0, shape[1] - decision.n, 0, shape[0] - decision.m)
        self.hidden = LinearBlocks(decision.m, decision.width // decision.m + price, hidden, relu=True)
        self.scores = LinearBlocks(decision.m, hidden, decision.n)

    def forward(self, seen: Tensor) -> Tensor:
        """Scores `(r, M * A)`, 0 for tensors and choices that this decision does not have."""
        price, tensors = seen[:, : self.price], seen[:, self.price :].unflatten(1, (self.tensors, -1))
        if self.price:
            tensors = torch.cat([price.unsqueeze(1).expand(-1, self.tensors, -1), tensors], 2)
        return functional.pad(self.scores.run_each(self.hidden.run_each(tensors)), self.missing).flatten(1)


class CrossConnection(RouterAgent):
    """Data-dependent gates between cross-connected paths: every tensor computes how it is shared out.

    G_i = softmax(A_i), see `CrossingGate`, of each tensor averaged over the image (Algorithm 2). The gates are trained
    with the blocks, as one network. Nothing is drawn: training and evaluation are alike, and all paths run. `needs`
    gives the network gates and this agent's kind of crossing, whatever its name ends in.
    """

    Config = CrossingConfig
    config: CrossingConfig
    scores: ModuleScores
    action_type = "weights"
    max_tensors = None
    env_kwargs = {"differentiable": True, "form": "gated-columns", "cross": "connections"}

    def __init__(self, env: Any, config: RouterConfig | None = None) -> None:
        super().__init__(env, config)
        network, price, (m, n) = self.env.network, self.env.config.price, (self.num_tensors, self.num_choices)

        def make(number: int, _: int) -> nn.Module:
            return CrossingGate(network.decisions[number], self.config.hidden, (m, n), price=price)

        self.train_scores(ModuleScores(network, make, price=price, seed=self.config.seed, outputs=m * n))

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Gates `(B, M, A)`, 0 for what is not legal."""
        scores = self.scores(observation, context).view(context.mask.shape)
        return self.noted(scores.masked_fill(~context.mask, -torch.inf).softmax(-1), context)


class CrossPrediction(CrossConnection):
    """The same gates, where every tensor predicts the input of each path (Algorithm 1)."""

    env_kwargs = {**CrossConnection.env_kwargs, "cross": "predictions"}
