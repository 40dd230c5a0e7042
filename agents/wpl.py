"""The Weighted Policy Learner (Abdallah and Lesser 2006; Rosenbaum et al. 2018, Algorithm 3)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import LearningAgent, LearningConfig, mean_of_steps, stacked
from routing_gym.agents.parts.losses import project, wpl_delta
from routing_gym.agents.parts.scores import (
    ArrangedScores,
    look_up,
    make_scores,
    uniform_policy,
    visited,
    visits_and_means,
)
from routing_gym.blocks import Adam
from routing_gym.envs import Observation, Trajectory
from routing_gym.options import fraction, not_negative, positive

DEFAULT_RATES = {"table": 0.005, "mlp": 0.003}
AVERAGE_RATE_OF_APPROXIMATORS = 0.05
"""Rate of the running averages of returns; a table's is its policy rate (as printed)."""


@dataclasses.dataclass(frozen=True)
class WPLConfig(LearningConfig):
    """Options of WPL.

    `gamma` discounts action rewards; the final reward is not discounted.

    Attributes:
        policy_rate: Step size of the policy; of a table the η of Algorithm 3, of approximators that of Adam. None for
            0.005 and 0.003. (0.005 was best of 0.003 to 0.04 on DIGITS-MTL's validation split, mean of 10 seeds; at
            0.01 and above two tasks now and then settle on one and the same path.)
        scaling: `"algorithm3"`: a gain is scaled by the probability of the action, a loss by its complement.
            `"appendix"`: the other way round (section 7.4).
        baseline: What a return is compared with: the average of its own `"action"` (as printed), or of the `"policy"`,
            the averages of all actions weighted by their probabilities (Abdallah and Lesser). None for "action" of
            tables and "policy" of approximators, which find the best of three arms in a noisy bandit in 10 of 10 seeds
            with it and in half of them without.
        entropy: Weight of the policy's entropy H: every visit of a table's row moves it up the gradient of H in the
            scores of a softmax as well, −π(log π + H); approximators add H to what they go up. Above 0 a lead that a
            choice has by chance fades again, until rewards say more than that. Where blocks are scarce
            (HiddenGroups-v0, 3 blocks) 0.4 with the baseline of the policy and a rate of 0.01 gives 77 instead of 64 %;
            0.3 is too much for DIGITS-MTL.
        min_probability: Floor of every legal choice's probability, in [0, 1); of tables.
    """

    policy_rate: float | None = positive(None)
    scaling: Literal["algorithm3", "appendix"] = "algorithm3"
    baseline: Literal["action", "policy"] | None = None
    entropy: float = not_negative(0.0)
    min_probability: float = fraction(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_probability and self.representation != "table":
            raise ValueError("WPL: min_probability is for representation='table'")


class WPL(LearningAgent):
    """Weighted Policy Learner: a policy that gains slowly where it is rare and loses slowly where it is common.

    The batched form of Algorithm 3: for a cell (agent, decision, choice) with n visits of mean return R, first
    average ← (1−λ)^n average + (1−(1−λ)^n) R; then every visit has its difference Δ from the average, scaled by the
    probability of what was chosen. A table of probabilities adds rate · ΣΔ, all on the old policy, clips to [0, 1] and
    divides by the sum. Approximators, where no paper says what to do, go the same way as far as their parameters let
    them: one step of Adam up the mean of Σ Δ π(a | s), whose gradient in π is the table's step. The averages are a
    table in both cases. Where several tensors choose, the choice of each is a visit of its own.
    """

    by_task = capturable = True
    Config = WPLConfig
    config: WPLConfig
    scores: ArrangedScores | None
    max_tensors = None
    scratch = ("_entropies",)
    _entropies: tuple[Tensor | None, int, int] = None, 0, 0
    """Entropy of every row of the table, flat, and which tensor they are of, in which version."""

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        if self.max_tensors is not None:
            raise ValueError(f"{type(self).__name__}: WPL's tables have an axis of tensors; leave max_tensors at None")
        super().__init__(env, config)
        options, legal, tabular = self.config, self.arrangement.legal, self.config.representation == "table"
        self.rate = options.policy_rate or DEFAULT_RATES[options.representation]
        self.average_rate = min(1.0, self.rate) if tabular else AVERAGE_RATE_OF_APPROXIMATORS
        self.baseline = options.baseline or ("action" if tabular else "policy")
        policy = uniform_policy(legal, self.arrangement.num_agents)
        self._average = nn.Buffer(torch.zeros_like(policy))
        if tabular:
            self._table = nn.Buffer(policy)
        else:
            self.scores = make_scores(self.arrangement, options.seed)
            self.optimizer = Adam(self.scores, lr=self.rate)
        if float(legal.sum(-1).max()) * options.min_probability > 1:
            raise ValueError(f"WPL: min_probability {options.min_probability} is too much for so many choices")

    @property
    def table(self) -> Tensor:
        """Policy `(agents, N, A)`, `(agents, N, M, A)` where M > 1."""
        return self._shown(self._table)

    @property
    def average(self) -> Tensor:
        """The average return of each cell of `table`."""
        return self._shown(self._average)

    def _shown(self, table: Tensor) -> Tensor:
        shown = table[:, : self.num_decisions, :, : self.num_choices]
        return shown.squeeze(2) if self.num_tensors == 1 else shown

    def preferences(self, observation: Observation, agent: Tensor) -> Tensor:
        """Probabilities `(B, M, A)`: the policy itself."""
        if self.scores is None:
            return look_up(self._table, agent, observation["depth"])
        return self.scores(observation, agent).softmax(-1)

    def preference_table(self, agent: Tensor | None = None) -> Tensor | None:
        """Policy `(agents, rows, M, A)`, of all or of some agents, where it is a table."""
        if self.scores is not None:
            return None
        return self._table if agent is None else self._table.index_select(0, agent)

    def chances(self, preferences: Tensor) -> Tensor:
        """Probabilities, as they are."""
        return preferences

    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Apply Algorithm 3 to all visits of a batch at once."""
        cells, values = self._visits(trajectory)
        choices = self.arrangement.num_choices
        averages = self._average.view(-1, choices)
        been, row = visited(cells // choices, len(averages))
        own = cells if been is None else row * choices + cells % choices
        average = averages if been is None else averages.index_select(0, been)
        visits, mean = visits_and_means(own, values, average.numel())
        kept = (1 - self.average_rate) ** visits  # 1 where there was no visit
        average = torch.lerp(mean, average.flatten(), kept)
        _put(averages, been, average)
        if self.scores is not None:
            return self._step(trajectory, cells, values)
        policies = self._table.view(-1, choices)
        table = policies if been is None else policies.index_select(0, been)
        _put(policies, been, self._moved(table, been, average, own.flatten(), values.flatten(), visits))
        return {"policy_entropy": self._entropy(been)}

    def _pull(self, table: Tensor, visits: Tensor) -> Tensor:
        """Gradient of the entropy, −π(log π + H), for every visit of a row; both arguments are flat tables."""
        policy = table.view(-1, self.arrangement.num_choices)
        terms = torch.special.entr(policy)
        pull = terms - policy * terms.sum(-1, keepdim=True)
        return (visits.view_as(policy).sum(-1, keepdim=True) * pull).flatten()

    def _moved(
        self, rows: Tensor, been: Tensor | None, average: Tensor, cells: Tensor, values: Tensor, visits: Tensor
    ) -> Tensor:
        """Policies `(R, A)` after visits of `cells`, numbered among those rows."""
        table = rows.flatten()
        if self.baseline == "policy":
            average = (table * average).view_as(rows).sum(-1, keepdim=True).expand_as(rows).flatten()
        difference = values - average.index_select(0, cells)
        delta = wpl_delta(difference, table.index_select(0, cells), self.config.scaling)
        moved = table.index_put((cells,), self.rate * delta, accumulate=True)
        if self.config.entropy:
            moved = moved + self.rate * self.config.entropy * self._pull(table, visits)
        legal = self.arrangement.legal.flatten(0, 1)
        form = (-1, *legal.shape) if been is None else rows.shape
        legal = legal if been is None else legal.index_select(0, been % len(legal))
        return project(moved.view(form), rows.view(form), legal, self.config.min_probability)

    def _entropy(self, been: Tensor | None) -> Tensor:
        """Mean entropy of the policies of all decisions, worked out anew of those rows that have moved."""
        exists = self.env.network.exists[:-1]
        table, (known, *of) = self._table.flatten(0, 2), self._entropies
        if been is None or known is None or of != [id(self._table), self._table._version - 1]:
            known = torch.special.entr(table).sum(-1)
        else:
            known[been] = torch.special.entr(table.index_select(0, been)).sum(-1)
        self._entropies = known, id(self._table), self._table._version
        entropy = known.view(self._table.shape[:-1])[:, : self.num_decisions] * exists
        return entropy.sum() / (len(self._table) * exists.sum())

    def _step(self, trajectory: Trajectory, cells: Tensor, values: Tensor) -> dict[str, Tensor]:
        steps, averages = trajectory.steps, self._average.view(-1, self.arrangement.num_choices)
        action, choosing = stacked(steps, "action"), stacked(steps, "choosing")
        policy = self.scores_at(steps).softmax(-1)
        chosen = policy.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        average = self._average.take(cells)
        if self.baseline == "policy":
            average = (policy.detach() * averages[cells // self.arrangement.num_choices]).sum(-1)
        delta = wpl_delta(values - average, chosen.detach(), self.config.scaling)
        gain = delta * chosen
        if self.config.entropy:  # illegal choices have probability 0, where the entropy has no gradient
            tiny = torch.finfo(policy.dtype).tiny
            gain = gain - self.config.entropy * (policy * policy.clamp(min=tiny).log()).sum(-1)
        self.descend((choosing * gain).sum().div(-len(trajectory)))
        entropy = torch.special.entr(policy.detach()).sum(-1)
        return {"policy_entropy": mean_of_steps(entropy, choosing)}

    def _visits(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Flat cell number of every choice, and its return, `(S, B, M)` each."""
        steps, returns = trajectory.steps, trajectory.returns(self.config.gamma)
        action, place = stacked(steps, "action"), self.cells(trajectory).unsqueeze(-1)
        if self.num_tensors > 1:  # tensors that did not choose visit the row of instances that have left
            choosing = stacked(steps, "choosing")
            decision = stacked(steps, "decision").unsqueeze(-1)
            place = torch.where(choosing, place, place - decision + self.arrangement.left_row)
            place = place * self.num_tensors + torch.arange(self.num_tensors, device=place.device)
        return action.add(place, alpha=self.arrangement.num_choices), returns.unsqueeze(-1).expand(action.shape)


def _put(table: Tensor, been: Tensor | None, rows: Tensor) -> None:
    """Write rows of a table `(R, A)` that a batch has been to; all where None."""
    if been is None:
        table.copy_(rows.view_as(table))
    else:
        table.index_copy_(0, been, rows.view(-1, table.shape[1]))
