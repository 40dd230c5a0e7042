"""Critic learning, pragmatic and optimistic, exact and sampled (McGill and Perona 2017, sections 4.2 and 4.3)."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.agents.parts.bases import chosen_in
from routing_gym.agents.parts.draws import running_sums
from routing_gym.agents.parts.losses import lambda_returns
from routing_gym.agents.parts.multipath import ExactMultipath, Multipath, MultipathConfig
from routing_gym.agents.parts.scores import sample
from routing_gym.envs import Context, Observation, SettledExit, Step, Trajectory, classified_right
from routing_gym.networks import EXIT
from routing_gym.options import not_negative, positive, rate


@dataclasses.dataclass(frozen=True)
class CriticConfig(MultipathConfig):
    """Options of every critic.

    Attributes:
        temperature: As of every strategy; lower, because scores are costs here.
        regression: k_ure of Eq. 6: weight of the regression's squared error in the loss.
        error: What a wrong answer costs in the targets: `"cross-entropy"`, or `"classification"`, 1 (Fig. 5).
    """

    temperature: float = positive(0.1)
    regression: float = not_negative(1e-3)
    error: Literal["cross-entropy", "classification"] = "cross-entropy"


class ExactCritic(ExactMultipath):
    """Scores that predict the negative cost of every choice; every path is run, so that all these costs are known.

    L = E[c_err] + E[Σ_j k_ure ‖s_j − u_j‖²] + E[k_L2 Σ w²] over the junctions j met under the training policy, all
    probabilities and all utilities u constant (Eqs. 5, 6 and 9); the scores' gradient goes on into the columns.
    """

    config: CriticConfig

    @cached_property
    def offered(self) -> list[list[bool]]:
        """Whether each choice of each decision is legal, known on the host."""
        return self._legal.tolist()

    @abstractmethod
    def worth(self, utilities: Tensor, scores: Tensor, chances: Tensor) -> Tensor:
        """Utility `(B,)` of arriving at a decision, by its choices' utilities and scores, −inf where one is not legal.

        All are `(B, A)`; `chances` is the training policy.
        """

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Probabilities `(B, A)` of the training policy, without graph; the best choice alone when deterministic."""
        chances = super().act(observation, context).detach()
        context.carry = None if context.carry is None else context.carry.detach()
        return chances

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor:
        """Error of the regression and penalty on weights, 0-dimensional."""
        utilities, errors = self.utilities(trajectory), torch.zeros_like(trajectory.loss)
        for number, step in self._steps(trajectory).items():
            missed = (step.record["scores"] - utilities[number]).masked_fill(~self._legal[number], 0)
            errors = errors + step.reach * missed.square().sum(-1)
        return self.config.regression * errors.mean() + self.weight_penalty(trajectory)

    @torch.no_grad()
    def utilities(self, trajectory: Trajectory) -> Tensor:
        """Utilities `(N, B, A)` of each decision's choices (Eqs. 7 and 8); −inf where one is not legal.

        Found from the last decision to the first: a choice costs what it runs, and then either the error of the answer,
        or the router of the next decision and whatever that one costs.
        """
        network, steps = self.env.network, self._steps(trajectory)
        error_at = {(exit.decision, exit.choice): self._error(exit, trajectory) for exit in trajectory.exits}
        scores = {d: self.masked(step.record["scores"], step.decision) for d, step in steps.items()}
        shape, offered = (self.num_decisions, len(trajectory), self.num_choices), self.offered
        utilities = trajectory.loss.new_full(shape, -torch.inf)
        for number in sorted(steps, reverse=True):  # a decision that masks cut off has no step
            decision = network.decisions[number]
            for choice, (macs, target) in enumerate(zip(decision.macs, decision.next, strict=True)):
                if not offered[number][choice]:
                    continue
                if target == EXIT:
                    rest = -error_at[number, choice]
                else:
                    chances = steps[target].action
                    assert isinstance(chances, Tensor)
                    rest = self.worth(utilities[target], scores[target], chances)
                    macs = macs + self.macs(target)
                utilities[number, :, choice] = rest - trajectory.price * macs
        return utilities

    @staticmethod
    def _steps(trajectory: Trajectory) -> dict[int, Step]:
        """Steps by decision: since every row takes every way, all are at one decision at a time."""
        steps = trajectory.steps
        known = (getattr(step.observation, "sole", None) for step in steps)
        return {int(step.decision[0]) if of is None else of: step for of, step in zip(known, steps, strict=True)}

    def _error(self, exit: SettledExit, trajectory: Trajectory) -> Tensor:
        """Cost `(B,)` of the answers at an exit, where every row is."""
        error = exit.loss.detach()
        if self.config.error == "classification":
            label = self.env.dataset.label.index_select(0, trajectory.instance)
            label = label if exit.rows is None else label.index_select(0, exit.rows)
            error = 1 - classified_right(exit.logits, label).to(error.dtype)
        return error if exit.rows is None else torch.empty_like(error).index_copy(0, exit.rows, error)


@dataclasses.dataclass(frozen=True)
class PragmaticCriticConfig(CriticConfig):
    """Options of pragmatic critics.

    Attributes:
        target: The policy downstream whose cost is predicted: of `"inference"`, the best (Eq. 7), or of `"training"`.
    """

    target: Literal["inference", "training"] = "inference"


class PragmaticCritic(ExactCritic):
    """Pragmatic critic: predicts what every choice costs under the present policy downstream (Eqs. 5 to 7)."""

    Config = PragmaticCriticConfig
    config: PragmaticCriticConfig

    def worth(self, utilities: Tensor, scores: Tensor, chances: Tensor) -> Tensor:
        """Utility of the best-scored choice, or the mean under the training policy."""
        if self.config.target == "inference":
            return utilities.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
        return (chances * utilities.masked_fill(chances == 0, 0)).sum(1)


class OptimisticCritic(ExactCritic):
    """Optimistic critic: predicts what every choice costs if all decisions downstream are the best (Eq. 8)."""

    Config = CriticConfig

    def worth(self, utilities: Tensor, scores: Tensor, chances: Tensor) -> Tensor:
        """Utility of the best choice."""
        return utilities.max(1).values


@dataclasses.dataclass(frozen=True)
class SampledCriticConfig(CriticConfig):
    """Options of sampled critics.

    Attributes:
        policy: The training policy: `"softmax"`, softmax(s / τ), or `"greedy"`, the best choice.
        epsilon: Share of random choices in both; with `"greedy"` it is ε-greedy.
    """

    policy: Literal["softmax", "greedy"] = "softmax"
    epsilon: float = rate(0.1)


class SampledCritic(Multipath):
    """A critic that runs only the path it has drawn, which costs a fraction of running all.

    A visit is weighed by one over the probability of its choice, so that every choice counts as in the exact critic; ε
    bounds these weights. `td_lambda` says how far targets look ahead: 1 for the whole return, 0 for a step.
    """

    Config = SampledCriticConfig
    config: SampledCriticConfig
    td_lambda: ClassVar[float]

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Choices `(B,)`, drawn; the best when deterministic."""
        scores = self.scored(observation, context)
        best = scores.argmax(-1)
        if context.deterministic:
            return best
        fixed = scores.detach()
        greedy = self.config.policy == "greedy"
        likely = functional.one_hot(best, self.num_choices).to(fixed.dtype) if greedy else self.softened(fixed)
        legal = fixed.isfinite().to(fixed.dtype)
        chances = (1 - self.config.epsilon) * likely + self.config.epsilon * legal / legal.sum(-1, keepdim=True)
        context.record["probabilities"] = chances
        return sample(running_sums(chances), self.generator)

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor:
        """Error of the regression and penalty on weights, 0-dimensional."""
        errors = torch.zeros_like(trajectory.loss)
        for step, utility in zip(trajectory.steps, self.utilities(trajectory), strict=True):
            choice = chosen_in(step).unsqueeze(-1)
            score = step.record["scores"].gather(-1, choice).squeeze(-1)
            chance = step.record["probabilities"].gather(-1, choice).squeeze(-1)
            errors = errors + step.active * (score - utility).square() / chance
        return self.config.regression * errors.mean() + self.weight_penalty(trajectory)

    @torch.no_grad()
    def utilities(self, trajectory: Trajectory) -> Tensor:
        """Targets `(S, B)` of the choices that were drawn: λ-returns of the negative cost."""
        steps, price = trajectory.steps, trajectory.price
        error = trajectory.loss if self.config.error == "cross-entropy" else 1 - trajectory.correct
        costs, last = self.env.network.costs, self.num_decisions - 1
        scores = [self.masked(step.record["scores"], step.decision) for step in steps]
        return lambda_returns(
            [-(price * costs[step.decision.clamp(max=last), chosen_in(step)]) for step in steps],
            [of_step.max(-1).values for of_step in scores],
            -error,
            [step.active for step in steps],
            lambda_=self.td_lambda,
            arrival=[-(price * self._scores_macs.index_select(0, step.decision)) for step in steps],
        )


class SampledPragmaticCritic(SampledCritic):
    """Pragmatic critic from sampled paths: the target is the whole cost of what was drawn, a Monte-Carlo return.

    It is an unbiased estimate of the cost under the training policy (`target="training"` of the exact critic) only: the
    expected gradient is that of the exact critic there, the loss is larger by the variance of the returns.
    """

    td_lambda = 1.0


class SampledOptimisticCritic(SampledCritic):
    """Optimistic critic from sampled paths: the target is the next decision's best score.

    An approximation: the best score stands for the best cost, which is not known after a single path.
    """

    td_lambda = 0.0
