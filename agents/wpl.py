"""The Weighted Policy Learner (Abdallah and Lesser 2006; Rosenbaum et al. 2018, Algorithm 3), on a table."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from routing_gym.agents.base import ARRANGEMENTS, Agent, AgentConfig
from routing_gym.agents.tabular import agents_of, look_up, sample, uniform_policy
from routing_gym.envs import Context, Observation, Trajectory


@dataclasses.dataclass(frozen=True)
class WPLConfig(AgentConfig):
    """Options of WPL.

    Attributes:
        arrangement: `"per_task"`, one policy per task, or `"single"`, one for all.
        policy_rate: Step size of the policy. The default was best of 0.003 to 0.04 on DIGITS-MTL's validation split
            (mean of 10 seeds); at 0.01 and above two tasks now and then settle on one and the same path.
        average_rate: Rate of the running average of returns, in (0, 1]; None for `policy_rate` (as printed).
        gamma: Discount of later action rewards; the final reward is not discounted.
        scaling: `"algorithm3"`: a gain is scaled by the probability of the action, a loss by its complement.
            `"appendix"`: the other way round (section 7.4).
        baseline: What a return is compared with: the average of its own `"action"` (as printed), or of the `"policy"`,
            the averages of all actions weighted by their probabilities (Abdallah and Lesser).
        min_probability: Floor of every legal choice's probability.
    """

    arrangement: Literal["per_task", "single"] = "per_task"
    policy_rate: float = 0.005
    average_rate: float | None = None
    gamma: float = 1.0
    scaling: Literal["algorithm3", "appendix"] = "algorithm3"
    baseline: Literal["action", "policy"] = "action"
    min_probability: float = 0.0

    def __post_init__(self) -> None:
        for option, known in (
            ("arrangement", ARRANGEMENTS),
            ("scaling", ("algorithm3", "appendix")),
            ("baseline", ("action", "policy")),
        ):
            if getattr(self, option) not in known:
                raise ValueError(f"wpl: {option} must be one of {known}, got {getattr(self, option)!r}")
        if not 0 < self.policy_rate < float("inf"):
            raise ValueError(f"wpl: policy_rate must be positive and finite, got {self.policy_rate}")
        if self.average_rate is not None and not 0 < self.average_rate <= 1:
            raise ValueError(f"wpl: average_rate must lie in (0, 1], got {self.average_rate}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"wpl: gamma must lie in [0, 1], got {self.gamma}")
        if not 0 <= self.min_probability < 1:
            raise ValueError(f"wpl: min_probability must lie in [0, 1), got {self.min_probability}")


class WPL(Agent):
    """Weighted Policy Learner: a table of probabilities `[agent, decision, choice]`, updated once per batch.

    The batched form of Algorithm 3: for a cell with n visits of mean return R, first average ← (1−λ)^n average +
    (1−(1−λ)^n) R; then every visit adds its scaled difference Δ, all computed on the old policy; then clip to [0, 1]
    and divide by the sum.
    """

    Config = WPLConfig
    config: WPLConfig
    max_tensors = None
    _table: Tensor
    _average: Tensor

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        num_agents = self.num_tasks if self.config.arrangement == "per_task" else 1
        self.register_buffer("_table", uniform_policy(self.env.network, num_agents))
        self.register_buffer("_average", torch.zeros_like(self._table))
        self._legal = self._table > 0
        highest = float(self._legal.sum(-1).max()) * self.config.min_probability
        if highest > 1:
            raise ValueError(f"wpl: min_probability {self.config.min_probability} is too much for so many choices")

    @property
    def table(self) -> Tensor:
        """`(agents, N, A)`, `(agents, N, M, A)` where M > 1: the policy."""
        return self._table[:, :-1]

    @property
    def average(self) -> Tensor:
        """The average return of each cell of `table`."""
        return self._average[:, :-1]

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Sample from the table; take the likeliest choice when deterministic."""
        agent = agents_of(observation, self.config.arrangement)
        if self.shares_wanted:
            context.record["probabilities"] = look_up(self._table, agent, observation["depth"])
        if context.deterministic:
            return look_up(self._table.argmax(-1), agent, observation["depth"])
        return sample(look_up(self._table.cumsum(-1), agent, observation["depth"]), self.generator)

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Sample a whole route for every row."""
        if self.shares_wanted:
            return None
        agent = agents_of({"task": task}, self.config.arrangement)
        if deterministic:
            return self.table.argmax(-1).index_select(0, agent)
        return sample(self.table.cumsum(-1).index_select(0, agent), self.generator)

    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Apply Algorithm 3 to all visits of a batch at once."""
        config = self.config
        cells, values = self._visits(trajectory)
        table, average = self._table.flatten(), self._average.flatten()

        # index_put, because index_add is not the same twice on a GPU
        nothing = torch.zeros_like(table)
        visits = nothing.index_put((cells,), torch.ones_like(values), accumulate=True)
        mean = nothing.index_put((cells,), values, accumulate=True) / visits.clamp(min=1)
        rate = config.policy_rate if config.average_rate is None else config.average_rate
        kept = (1 - min(rate, 1.0)) ** visits  # 1 where there was no visit
        average = kept * average + (1 - kept) * mean

        if config.baseline == "action":
            baseline = average
        else:
            rows = (table * average).view(-1, self.num_choices)
            baseline = rows.sum(-1, keepdim=True).expand_as(rows).flatten()
        delta = values - baseline.index_select(0, cells)
        probability = table.index_select(0, cells)
        grows = probability if config.scaling == "algorithm3" else 1 - probability
        delta = delta * torch.where(delta < 0, 1 - grows, grows)
        moved = table.index_put((cells,), config.policy_rate * delta, accumulate=True)

        self._average.copy_(average.view_as(self._average))
        self._table.copy_(project(moved.view_as(self._table), self._table, self._legal, config.min_probability))
        return {"policy_entropy": torch.special.entr(self.table).sum(-1).mean()}

    def _visits(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Return of every choice its flat cell number and its return; a cell of the last row if it did not choose."""
        steps, returns = trajectory.steps, trajectory.returns(self.config.gamma)
        action = torch.stack([step.action for step in steps if isinstance(step.action, Tensor)])
        row = torch.stack([step.decision for step in steps])
        agent = agents_of({"task": trajectory.task}, self.config.arrangement)
        if action.ndim == 3:
            choosing = torch.stack([step.choosing for step in steps])
            row = torch.where(choosing, row.unsqueeze(-1), self.num_decisions)
            agent, returns = agent.unsqueeze(-1), returns.unsqueeze(-1).expand(action.shape)
        place = agent * (self.num_decisions + 1) + row
        if action.ndim == 3:
            place = place * self.num_tensors + torch.arange(self.num_tensors, device=place.device)
        return (place * self.num_choices + action).flatten(), returns.flatten()


def project(moved: Tensor, old: Tensor, legal: Tensor, floor: float) -> Tensor:
    """Bring rows back to probabilities: clip to [0, 1], divide by the sum (Algorithm 3); keep the old row at sum 0.

    Args:
        moved: `(..., A)`.
        old: `(..., A)` probabilities.
        legal: `(..., A)` bool; choices that are not legal stay at 0.
        floor: Least probability of a legal choice.
    """
    clipped = moved.clamp(0, 1) * legal
    total = clipped.sum(-1, keepdim=True)
    least = torch.finfo(total.dtype).tiny  # what is smaller cannot be divided by
    projected = torch.where(total > least, clipped / total.clamp(min=least), old)
    if floor:
        # What is above the floor shares what the floors leave.
        excess = (projected - floor).clamp(min=0) * legal
        free = 1 - floor * legal.sum(-1, keepdim=True)
        projected = floor * legal + free * excess / excess.sum(-1, keepdim=True).clamp(min=1e-12)
    return projected
