"""Generalised Viterbi EM over instances' routes (Kirsch et al. 2018, "Modular networks")."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from gymnasium.error import ResetNeeded
from torch import Tensor

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import ScoredAgent, ScoredConfig, chosen_in, mean_of_steps, stacked
from routing_gym.agents.parts.losses import policy_gradient_loss
from routing_gym.agents.parts.trials import Trials
from routing_gym.envs import Context, Observation, Trajectory
from routing_gym.envs.turns import Seen
from routing_gym.options import count


@dataclasses.dataclass(frozen=True)
class EMConfig(ScoredConfig):
    """Options of EM; `gamma` is not looked at.

    Attributes:
        samples: How many routes of every instance are drawn in the E-step, S; each costs a pass without a gradient.
    """

    samples: int = count(4)


class EM(ScoredAgent):
    """EM: keeps for every training instance the best route found so far, trains the blocks on it and imitates it.

    The route of an instance is a latent variable h. Partial E-step, for the instances of a batch: S routes are drawn
    from the policy p(h | x), and of these and the one kept from before that with the largest log p(y | x, h) +
    log p(h | x) is kept. M-step: a gradient step on the same sum at the kept routes, of which the blocks take the first
    term and the policy the second (Kirsch et al. 2018, Algorithm 1 and Eqs. 8 and 9). There is no score function and so
    no variance from it. Prices of actions are subtracted from log p(y | x, h). The routes kept are of the training
    split's rows; what is judged takes the policy's best choices.
    """

    Config = EMConfig
    config: EMConfig
    kept: Tensor

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        if self.arrangement.dispatch_row is not None:
            raise ValueError(f"agent {self.name!r} keeps routes, not dispatchers' choices: arrangement='per_task'")
        self._trials = Trials(self, self.config.samples + 1)
        self.register_buffer("kept", torch.full((len(self.env.dataset), self.num_decisions), -1))
        self._given: Tensor | None = None  # while looking for routes: those of some rows, −1 of the others

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Routes `(B, N)` from a table, unless instances take those that are kept for them."""
        plan = super().plan(task, deterministic) if deterministic or self._given is not None else None
        return plan if plan is None or self._given is None else torch.where(self._given < 0, plan, self._given)

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Choices `(B,)`; while training those of the best routes, for which the first decision of a batch looks."""
        if context.carry is None and self._given is None and not context.deterministic and self._is_own(context):
            context.carry = self._best_routes(self.env.state.instance)
        routes = context.carry if self._given is None else self._given
        if context.deterministic or routes is None:
            return super().act(observation, context)
        place = observation["depth"].clamp(max=self.num_decisions - 1).unsqueeze(1)
        given = routes.gather(1, place).squeeze(1)
        if self._given is None and not self.shares_wanted and self.config.representation == "table":
            return given
        drawn = super().act(observation, context)  # whoever imitates has to see it again
        return torch.where(given < 0, drawn, given)

    def _is_own(self, context: Context) -> bool:
        """Whether what is seen is the batch of the agent's own environment; routes are kept for no other rows."""
        try:
            return isinstance(context.seen, Seen) and context.seen.state is self.env.state
        except ResetNeeded:  # it has none under way
            return False

    @torch.no_grad()
    def _best_routes(self, instance: Tensor) -> Tensor:
        """The E-step: the best routes `(B, N)` of instances."""
        times = self._trials.times
        self._given = self.kept.index_select(0, instance).repeat_interleave(times, 0)
        self._given.view(-1, times, self.num_decisions)[:, :-1] = -1  # the last of each follows the route kept so far
        try:
            tried = self._trials.of(instance)
        finally:
            self._given = None
        best = self._log_joint(tried).view(-1, times).argmax(1)
        places = torch.arange(len(instance), device=best.device)
        # Of rows of one instance the last counts, so that on a GPU, too, the same is kept every time.
        last = torch.zeros_like(self.kept[:, 0]).scatter_reduce_(0, instance, places, "amax").index_select(0, instance)
        return _routes(tried, self.num_decisions).index_select(0, (times * places + best).index_select(0, last))

    def _log_joint(self, trajectory: Trajectory) -> Tensor:
        """Log p(y | x, h) + log p(h | x) of episodes, `(B,)`, prices of actions subtracted."""
        steps = trajectory.steps
        log_chosen = torch.where(stacked(steps, "active"), self.chosen(steps)[0], 0.0).sum(0)
        return log_chosen - trajectory.loss + stacked(steps, "reward").sum(0)

    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Keep the routes that were learned on; the policy's part of the M-step, along the gradient of log p(h | x)."""
        self.kept[trajectory.instance] = _routes(trajectory, self.num_decisions)
        active = stacked(trajectory.steps, "active").to(trajectory.loss.dtype)
        log_chosen, entropy = self.chosen(trajectory.steps)
        self.descend(policy_gradient_loss(log_chosen, torch.ones_like(active), entropy, active, 0.0))
        return {"policy_entropy": mean_of_steps(entropy.detach(), active)}


def _routes(trajectory: Trajectory, decisions: int) -> Tensor:
    """Routes `(B, N)` that episodes took, 0 at decisions that they did not come to."""
    routes = torch.zeros(len(trajectory), decisions + 1, dtype=torch.int64, device=trajectory.task.device)
    for step in trajectory.steps:
        routes.scatter_(1, step.decision.unsqueeze(1), chosen_in(step).unsqueeze(1))
    return routes[:, :-1]
