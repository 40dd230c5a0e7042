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
    DEFAULT_RATES = {"table": 0.1, "mlp": 0.003}
    kept: Tensor

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        if self.arrangement.dispatch_row is not None:
            raise ValueError(f"agent {self.name!r} keeps routes, not dispatchers' choices: arrangement='per_task'")
        self._trials = Trials(self)
        self.register_buffer("kept", torch.full((len(self.env.dataset), self.num_decisions), -1))
        self._searching = False
        self._given: Tensor | None = None

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Routes `(B, N)` from a table, unless instances take those that are kept for them."""
        if self._given is not None and self.config.representation == "table" and not self.shares_wanted:
            return self._given
        return super().plan(task, deterministic) if deterministic or self._searching else None

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Choices `(B,)`; while training those of the best routes, for which the first decision of a batch looks."""
        if context.carry is None and not (context.deterministic or self._searching) and self._is_own(context):
            context.carry = self._best_routes(self.env.state.instance)
        routes = context.carry if self._given is None else self._given
        if routes is None:
            return super().act(observation, context)
        if self.shares_wanted or self.config.representation == "mlp":  # who imitates has to see it again
            super().act(observation, context)
        place = observation["depth"].clamp(max=self.num_decisions - 1).unsqueeze(1)
        return routes.gather(1, place).squeeze(1)

    def _is_own(self, context: Context) -> bool:
        """Whether what is seen is the batch of the agent's own environment; routes are kept for no other rows."""
        try:
            return isinstance(context.seen, Seen) and context.seen.state is self.env.state
        except ResetNeeded:  # it has none under way
            return False

    @torch.no_grad()
    def _best_routes(self, instance: Tensor) -> Tensor:
        """The E-step: the best routes `(B, N)` of instances, kept from now on."""
        self._searching = True
        try:
            tried = self._trials.of(instance, self.config.samples)
            kept = self.kept.index_select(0, instance)
            self._given = torch.where(kept < 0, _routes(tried[0], self.num_decisions), kept)
            tried += self._trials.of(instance, 1)
        finally:
            self._searching, self._given = False, None
        worth = torch.stack([self._log_joint(one) for one in tried])
        routes = torch.stack([_routes(one, self.num_decisions) for one in tried])
        best = worth.argmax(0).view(1, -1, 1).expand(-1, -1, self.num_decisions)
        # Of rows of one instance the last counts, so that on a GPU, too, the same is kept every time.
        last, rows = torch.zeros_like(self.kept[:, 0]), torch.arange(len(instance), device=instance.device)
        last.scatter_reduce_(0, instance, rows, "amax")
        found = routes.gather(0, best)[0].index_select(0, last.index_select(0, instance))
        self.kept[instance] = found
        return found

    def _log_joint(self, trajectory: Trajectory) -> Tensor:
        """Log p(y | x, h) + log p(h | x) of episodes, `(B,)`, prices of actions subtracted."""
        steps = trajectory.steps
        log_chosen = torch.where(stacked(steps, "active"), self.chosen(steps)[0], 0.0).sum(0)
        return log_chosen - trajectory.loss + stacked(steps, "reward").sum(0)

    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """The policy's part of the M-step: a step along the gradient of log p(h | x)."""
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
