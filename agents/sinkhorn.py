"""Balanced assignment by Sinkhorn's iterations (Clark et al. 2022, S-BASE; Cuturi 2013)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.assignments import by_decision
from routing_gym.agents.parts.draws import drawn
from routing_gym.agents.parts.gates import ScoredGate, ScoredGateConfig
from routing_gym.envs import Context, Observation
from routing_gym.networks import Action
from routing_gym.options import count, divisor

TIE = 1e-3
"""Shares of a plan that differ by a smaller factor than 1 + TIE are alike: chance decides."""


@dataclasses.dataclass(frozen=True)
class SinkhornConfig(ScoredGateConfig):
    """Options of balanced assignment.

    Attributes:
        iterations: How often rows and columns are normalised in turn.
        temperature: What scores are divided by before.
    """

    iterations: int = count(8)
    temperature: float = divisor(1.0)


class Sinkhorn(ScoredGate):
    """Balanced assignment: in training every choice of a decision gets about as many rows as any other.

    The rows of a batch that wait at a decision and its legal choices are matched by optimal transport with entropy:
    exp(scores / τ) is scaled until each row sums to 1 and each column to rows / choices, and a row takes its largest
    entry. When deterministic it takes its best score, so that no row's route depends on the others. The output is
    weighed by the choice's probability, the softmax of the scores (Clark et al. 2022, section 3.1), which is what the
    gate learns by. Rows whose scores are equal, those of a task in a table, stay together, but where the plan likes
    choices equally well, as all in a table at first, chance decides for every row.
    """

    Config = SinkhornConfig
    config: SinkhornConfig

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.takes_no_outcomes("a balanced assignment weighs one choice by its probability")
        self.in_one_process("assigns the rows of a whole batch")

    def act(self, observation: Observation, context: Context) -> Action:
        """Pair `(indices (B, 1), weights (B, 1))`."""
        scores = self.scored(observation)
        best = scores.argmax(-1)
        if not context.deterministic:
            tie = drawn(torch.empty_like(scores, requires_grad=False), "uniform_", self.generator) * TIE
            for here in by_decision(observation["depth"], context, self.num_decisions):
                plan = balanced(scores.detach() / self.config.temperature, here, self.config.iterations)
                best = torch.where(here, (plan + tie).argmax(-1), best)
        policy = self.noted(scores.softmax(-1), context)
        self.pays_by(policy, context)
        return best.unsqueeze(-1), policy.gather(-1, best.unsqueeze(-1))


def balanced(logits: Tensor, rows: Tensor, iterations: int) -> Tensor:
    """Logarithm of a transport plan `(B, A)` between some rows, `(B,)` bool, and legal choices.

    By Sinkhorn's iterations on `logits`, −inf where a choice is not legal, in logarithms; the others' rows are −inf.
    """
    plan = logits.masked_fill(~rows.unsqueeze(-1), -torch.inf)
    legal = plan.isfinite()
    share = (legal.any(-1).sum() / legal.any(0).sum().clamp(min=1)).log()
    for _ in range(iterations):
        plan = torch.where(legal, plan - plan.logsumexp(0, keepdim=True) + share, -torch.inf)
        plan = torch.where(legal, plan - plan.logsumexp(1, keepdim=True), -torch.inf)
    return plan
