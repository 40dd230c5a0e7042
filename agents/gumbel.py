"""Gumbel-softmax gates (Jang et al. 2017; Maddison et al. 2017)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.draws import drawn
from routing_gym.agents.parts.gates import ScoredGate, ScoredGateConfig
from routing_gym.agents.parts.scores import TableScores
from routing_gym.envs import Context, Observation
from routing_gym.networks import Action
from routing_gym.options import count, divisor


@dataclasses.dataclass(frozen=True)
class GumbelConfig(ScoredGateConfig):
    """Options of Gumbel gates.

    Attributes:
        estimator: Of the gradient. `"straight-through"`: one block runs, the gradient is that of the soft weights.
            `"reinmax"`: the same, of second order at a temperature of 1 (Liu et al. 2023, Algorithm 2).
            `"sparsemixer"`: one block runs, its output times its probability, which is what is differentiated, by
            Heun's third-order method (Liu et al. 2024, section 2.1). `"soft"`: while training all blocks run and are
            mixed. `"dense"`: so without noise.
        temperature: Temperature of the softmax at first. It does not change by what chances blocks are drawn.
        temperature_final: Temperature in the end.
        temperature_episodes: Instances over which it falls, by the same factor each.
    """

    estimator: Literal["straight-through", "reinmax", "sparsemixer", "soft", "dense"] = "straight-through"
    temperature: float = divisor(1.0)
    temperature_final: float = divisor(0.5)
    temperature_episodes: int = count(100_000)


class Gumbel(ScoredGate):
    """Gumbel-softmax gates (Jang et al. 2017; Maddison et al. 2017), straight-through or soft.

    Weights softmax((s + g) / τ) of scores s with Gumbel noise g while training, the best choice alone when
    deterministic. Straight-through gates run only what was chosen; the gradient of the other weights is then missing
    unless the environment is made with `dense_backward=True`. Tensors that choose have scores and noise of their own.
    """

    by_task = True
    Config = GumbelConfig
    config: GumbelConfig
    max_tensors = None

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        if self.config.estimator == "sparsemixer":
            self.takes_no_outcomes("estimator='sparsemixer' weighs one choice by its probability: take another")

    @property
    def temperature(self) -> float:
        """The temperature now."""
        first, last = self.config.temperature, self.config.temperature_final
        return first * (last / first) ** min(1.0, self.episodes / self.config.temperature_episodes)

    def act(self, observation: Observation, context: Context) -> Action:
        """Weights `(B, M, A)`, drawn; the best choice alone when deterministic; on a GPU what is hard is a pair."""
        scores, estimator = self.scored(observation), self.config.estimator
        if self.shares_wanted:
            context.record["probabilities"] = scores.detach().softmax(-1)
        # On a GPU the host would wait to know which weights are 0.
        alone = not scores.is_cpu and self.num_tensors == 1 and not self.env.config.dense_backward
        if context.deterministic:
            best, weight = scores.argmax(-1), scores.new_ones(scores.shape[:-1])
            if estimator == "sparsemixer":
                weight = scores.softmax(-1).amax(-1)
        elif estimator == "dense":
            return (scores / self.temperature).softmax(-1)
        else:
            soft, best = self._drawn(scores)
            if estimator == "soft":
                return soft
            if estimator == "sparsemixer":
                self.pays_by(soft, context)
            elif not alone or self.env.rewards.priced:
                straight = functional.one_hot(best, self.num_choices).to(soft.dtype) - soft.detach() + soft
                if not alone:
                    return straight  # exactly 0 where nothing was chosen
                self.pays_by(straight, context)  # a pair has no gradient for what the others would have cost
            chosen = soft.gather(-1, best.unsqueeze(-1)).squeeze(-1)
            weight = (1 if estimator != "sparsemixer" else self._scaled(scores, best, chosen.detach())) + (
                chosen - chosen.detach()
            )
        if alone:
            return best, weight
        return functional.one_hot(best, self.num_choices).to(scores.dtype) * weight.unsqueeze(-1)

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | tuple[Tensor, Tensor] | None:
        """Routes `(B, N)`, and gates where a graph is kept, of straight-through gates from a table."""
        network, table = self.env.network, self.scores
        hard = self.config.estimator in ("straight-through", "reinmax")
        hard = hard and network.in_order and not self.env.config.dense_backward
        if not (isinstance(table, TableScores) and hard) or self.shares_wanted or self.env.rewards.priced:
            return None
        agent = self.arrangement.agent_of(task)
        if self.arrangement.num_agents <= len(task):
            table.note_use(agent)
            scores = table.of_all_rows()[:, : self.num_decisions, 0].index_select(0, agent)
        else:
            scores = table.of_all_rows(agent)[:, : self.num_decisions, 0]
        if deterministic:
            return scores.argmax(-1)
        pairs = [self._drawn(part) for part in scores.unbind(1)]
        soft, best = (torch.stack(parts, 1) for parts in zip(*pairs, strict=True))
        chosen = soft.gather(-1, best.unsqueeze(-1)).squeeze(-1)
        return (best, 1 + (chosen - chosen.detach())) if chosen.requires_grad else best

    def _drawn(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Soft weights `(..., A)` whose gradient is that of the gate, and choices `(...)` by Gumbel noise."""
        noise = drawn(torch.empty_like(scores, requires_grad=False), "exponential_", self.generator).log().neg()
        noisy, estimator = (scores + noise) / self.temperature, self.config.estimator
        if estimator in ("straight-through", "soft"):
            soft = noisy.softmax(-1)
            return soft, soft.argmax(-1)
        best, policy = noisy.argmax(-1), scores.softmax(-1)
        return (reinmax(scores, best, self.temperature) if estimator == "reinmax" else policy), best

    def _scaled(self, scores: Tensor, best: Tensor, probability: Tensor) -> Tensor:
        """Weights `(...)` at which SparseMixer looks: the probability, or a third of it three times out of four.

        The difference f(p) − f(0) is a quarter of f'(p) p and three quarters of f'(p / 3) p (Heun's third order). Where
        the likeliest choice has been drawn it is looked at as it will be when deterministic.
        """
        height = drawn(torch.empty_like(probability), "uniform_", self.generator)
        whole = (height < 0.25) | (best == scores.detach().argmax(-1))
        return torch.where(whole, probability, probability / 3)

    @torch.no_grad()
    def policy(self) -> Tensor | None:
        """Probabilities `(T, N, A)` of each task's gate, where they are in a table."""
        if not isinstance(self.scores, TableScores) or self.num_tensors > 1:
            return None
        agent = self.arrangement.agent_of(torch.arange(self.num_tasks, device=self.env.device))
        return self.scores.of_all_rows()[:, : self.num_decisions, 0].softmax(-1).index_select(0, agent)


def reinmax(scores: Tensor, chosen: Tensor, temperature: float) -> Tensor:
    """Weights `(..., A)` whose gradient is ReinMax's (Liu et al. 2023, Algorithm 2), of scores and what was drawn.

    2 π₁ − π₀ / 2 with π₀ the softmax of the scores and π₁ the mean of what was drawn and the softmax at a temperature,
    of which the gradient is that of a softmax with this value: the trapezoidal rule, where straight-through takes an
    end.
    """
    legal = scores.isfinite()
    hard = functional.one_hot(chosen, scores.shape[-1]).to(scores.dtype)
    middle = (hard + (scores.detach() / temperature).softmax(-1)) / 2
    # A softmax with the value `middle`, whose gradient goes to the scores.
    moved = torch.where(legal, scores - scores.detach(), 0.0)
    middle = (middle.log() + moved).softmax(-1)
    return 2 * middle - scores.softmax(-1) / 2
