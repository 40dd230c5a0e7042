"""Sparsely gated routing: every row is mixed from the k blocks its gate likes best, and only these run."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch.nn import functional

from routing_gym.agents.arrangement import Arrangement
from routing_gym.agents.gates import Gate
from routing_gym.agents.options import AgentConfig, count, positive
from routing_gym.agents.scores import make_scores
from routing_gym.blocks import Sparse
from routing_gym.envs import Context, Observation


@dataclasses.dataclass(frozen=True)
class TopKConfig(AgentConfig):
    """Options of sparse gates.

    Attributes:
        k: How many blocks each row is mixed from; where fewer are legal, all that are. With 1 the weight is always 1
            and the gate learns nothing.
        noise: Add noise to the scores while training, whose size is learned; without it a block that is never among
            the best k is never tried.
        arrangement: `"single"`, one gate per decision for all tasks; or `"per_task"`, one for each of them.
        learning_rate: Step size of Adam on the gates.
    """

    k: int = count(2)
    noise: bool = True
    arrangement: Literal["single", "per_task"] = "single"
    learning_rate: float = positive(0.003)


class TopK(Gate):
    """Noisy top-k gates (Shazeer et al. 2017), a linear one per decision.

    H(x)_i = (x·W_g)_i + ε·softplus((x·W_noise)_i) with ε from N(0, 1), of which the highest k are kept: the weights are
    their softmax, y = Σ_i G(x)_i E_i(x). Only these k blocks run and have a gradient. The noise is off when
    deterministic. W_noise is 0 at first.

    Raises:
        ValueError: k is larger than the number of choices of any decision.
    """

    Config = TopKConfig
    config: TopKConfig

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        options = self.config
        if options.k > self.num_choices:
            raise ValueError(
                f"agent {self.name!r} mixes k={options.k} blocks, no decision of this network offers more than "
                f"{self.num_choices}"
            )
        self.arrangement = Arrangement(self.env, options.arrangement)
        inputs = self.env.network.observation_size
        self.scores = make_scores("linear", self.arrangement, inputs, options.seed)
        self.spread = None
        if options.noise:
            self.spread = make_scores("linear", self.arrangement, inputs, options.seed, outputs=self.num_choices)
            for parameter in self.spread.parameters():
                torch.nn.init.zeros_(parameter)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=options.learning_rate, fused=True)

    def act(self, observation: Observation, context: Context) -> Sparse:
        """Return `(indices (B, k), weights (B, k))`, the best first; what is not legal weighs 0."""
        agent = self.arrangement.agent_of(observation["task"])
        scores = self.scores(observation, agent)
        if self.spread is not None and not context.deterministic:
            noise = torch.empty_like(scores, requires_grad=False).normal_(generator=self.generator)
            scores = scores + noise * functional.softplus(self.spread(observation, agent))
        best, indices = scores.topk(self.config.k, -1)
        weights = best.softmax(-1)
        if self.shares_wanted:
            context.record["probabilities"] = torch.zeros_like(scores).scatter(1, indices, weights).detach()
        return indices, weights

    def macs(self, decision: int) -> float:
        """Return what the gate costs; the noise is not counted, it is off when a route is judged."""
        return self.scores.macs()
