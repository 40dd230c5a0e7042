"""Gumbel-softmax gates (Jang et al. 2017; Maddison et al. 2017)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import Gate, TrainedConfig
from routing_gym.agents.parts.draws import drawn
from routing_gym.agents.parts.scores import ArrangedScores, Arrangement, TableScores, make_scores
from routing_gym.envs import Context, Observation
from routing_gym.networks import Action
from routing_gym.options import count, positive


@dataclasses.dataclass(frozen=True)
class GumbelConfig(TrainedConfig):
    """Options of Gumbel gates; Adam's step size is 0.1 on a table and 0.003 on approximators.

    Attributes:
        arrangement: `"per_task"`, one gate per task, or `"single"`, one for all.
        representation: `"table"`, or `"mlp"`, two-layer approximators that see activation and task.
        estimator: `"straight-through"`: one block runs, the gradient is that of the soft weights; or `"soft"`: while
            training all blocks run and are mixed.
        temperature: Temperature of the softmax at first.
        temperature_final: Temperature in the end.
        temperature_episodes: Instances over which it falls, by the same factor each.
    """

    arrangement: Literal["per_task", "single"] = "per_task"
    representation: Literal["table", "mlp"] = "table"
    estimator: Literal["straight-through", "soft"] = "straight-through"
    temperature: float = positive(1.0)
    temperature_final: float = positive(0.5)
    temperature_episodes: int = count(100_000)


class Gumbel(Gate):
    """Gumbel-softmax gates (Jang et al. 2017; Maddison et al. 2017), straight-through or soft.

    Weights softmax((s + g) / τ) of scores s with Gumbel noise g while training, the best choice alone when
    deterministic. Straight-through gates run only what was chosen; the gradient of the other weights is then missing
    unless the environment is made with `dense_backward=True`. Tensors that choose have scores and noise of their own.
    """

    by_task = True
    Config = GumbelConfig
    config: GumbelConfig
    scores: ArrangedScores
    max_tensors = None
    DEFAULT_RATES = {"table": 0.1, "mlp": 0.003}

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        options = self.config
        self.arrangement = Arrangement(self.env, options.arrangement, options.representation, single=False)
        self.scores = make_scores(self.arrangement, options.seed)
        self.train_by(self.scores, self.DEFAULT_RATES[options.representation])

    @property
    def temperature(self) -> float:
        """The temperature now."""
        first, last = self.config.temperature, self.config.temperature_final
        return first * (last / first) ** min(1.0, self.episodes / self.config.temperature_episodes)

    def act(self, observation: Observation, context: Context) -> Action:
        """Weights `(B, M, A)`, drawn; the best choice alone when deterministic; on a GPU what is hard is a pair."""
        scores = self.scores(observation, self.arrangement.agent_of(observation["task"]))
        if self.shares_wanted:
            context.record["probabilities"] = scores.detach().softmax(-1)
        # On a GPU the host would wait to know which weights are 0.
        alone = not scores.is_cpu and self.num_tensors == 1 and not self.env.network.dense_backward
        if context.deterministic:
            best = scores.argmax(-1)
            if alone:
                return best, torch.ones_like(best, dtype=scores.dtype)
            return functional.one_hot(best, self.num_choices).to(scores.dtype)
        soft = self._drawn(scores)
        if self.config.estimator == "soft":
            return soft
        if alone:
            best = soft.argmax(-1)
            chosen = soft.gather(-1, best.unsqueeze(-1)).squeeze(-1)
            return best, 1 + (chosen - chosen.detach())
        hard = functional.one_hot(soft.argmax(-1), self.num_choices).to(soft.dtype)
        return hard - soft.detach() + soft  # exactly 0 where nothing was chosen

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | tuple[Tensor, Tensor] | None:
        """Routes `(B, N)`, and gates where a graph is kept, of straight-through gates from a table."""
        network, table = self.env.network, self.scores
        hard = self.config.estimator == "straight-through" and network.in_order and not network.dense_backward
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
        soft = torch.stack([self._drawn(part) for part in scores.unbind(1)], 1)
        best = soft.argmax(-1)
        chosen = soft.gather(-1, best.unsqueeze(-1)).squeeze(-1)
        return (best, 1 + (chosen - chosen.detach())) if chosen.requires_grad else best

    def _drawn(self, scores: Tensor) -> Tensor:
        """Soft weights of scores with Gumbel noise, `(..., A)`."""
        noise = drawn(torch.empty_like(scores, requires_grad=False), "exponential_", self.generator).log().neg()
        return ((scores + noise) / self.temperature).softmax(-1)

    @torch.no_grad()
    def policy(self) -> Tensor | None:
        """Probabilities `(T, N, A)` of each task's gate, where they are in a table."""
        if not isinstance(self.scores, TableScores) or self.num_tensors > 1:
            return None
        agent = self.arrangement.agent_of(torch.arange(self.num_tasks, device=self.env.device))
        return self.scores.of_all_rows()[:, : self.num_decisions, 0].softmax(-1).index_select(0, agent)
