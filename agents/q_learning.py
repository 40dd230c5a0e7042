"""Q-learning (Watkins 1989) and SARSA, on tables or on approximators (Rosenbaum et al. 2018, section 3.1.2)."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import ScoredAgent, ScoredConfig, chosen_in, stacked
from routing_gym.agents.parts.losses import lambda_returns, squared_td_error
from routing_gym.agents.parts.scores import TableScores, visited, visits_and_means
from routing_gym.envs import Trajectory
from routing_gym.options import count, share


@dataclasses.dataclass(frozen=True)
class QLearningConfig(ScoredConfig):
    """Options of Q-learning and SARSA.

    `gamma` discounts the final reward too, by one power for every decision before it.

    Of a table, `learning_rate` is the step towards the target per visit, in (0, 1]. (On DIGITS-MTL's validation split
    0.005 and 0.01 learn, from 0.05 on nothing is learned in 20 epochs.)

    Attributes:
        td_lambda: How far targets look ahead: 0 for one step (as printed), 1 for the whole return. A table tells states
            apart by task and depth only, so that one step ahead all look the same: with two decisions or more only the
            whole return tells the first what it is worth. (Peng and Williams' λ-returns: not cut where something was
            explored; at 1 Q-learning and SARSA agree.)
        epsilon: Share of random choices at first.
        epsilon_final: Share of random choices in the end.
        epsilon_episodes: Instances over which the share falls, in a straight line.
        target_update: Batches after which the target network, a copy of approximators, is renewed; 0 for none.
    """

    td_lambda: float = share(0.0)
    epsilon: float = share(1.0)
    epsilon_final: float = share(0.02)
    epsilon_episodes: int = count(50_000)
    target_update: int = count(0, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.representation == "table" and self.target_update:
            raise ValueError(f"{self.owner()}target_update is for representation='mlp', got {self.target_update}")
        if self.representation == "table" and self.optimizer != "adam":
            raise ValueError(f"{self.owner()}optimizer is for representation='mlp', got {self.optimizer!r}")
        if self.representation == "table" and self.learning_rate is not None and self.learning_rate > 1:
            raise ValueError(f"{self.owner()}learning_rate of a table must lie in (0, 1], got {self.learning_rate}")


class QLearning(ScoredAgent):
    """Q-learning: values move towards r + γ max Q(next); towards the final reward where the instance leaves.

    A table takes a visit's step for every visit of a batch, with the batch's mean target (Q moves by 1 − (1−α)^n of the
    way after n visits), approximators a step on half the squared error, of all decisions, mean over instances.
    """

    by_task = True
    Config = QLearningConfig
    config: QLearningConfig
    DEFAULT_RATES = {"table": 0.01, "mlp": 0.001}

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.target = copy.deepcopy(self.scores).requires_grad_(False) if self.config.target_update else None

    @property
    def exploration(self) -> float:
        """The share of random choices now."""
        done = min(1.0, self.episodes / self.config.epsilon_episodes)
        return self.config.epsilon + done * (self.config.epsilon_final - self.config.epsilon)

    def chances(self, preferences: Tensor) -> Tensor:
        """Probabilities of choices: the best one's share, and the explored rest spread over what is legal."""
        legal = preferences.isfinite().to(preferences.dtype)
        anything = legal / legal.sum(-1, keepdim=True)
        best = functional.one_hot(preferences.argmax(-1), preferences.shape[-1])
        return (1 - self.exploration) * best + self.exploration * anything

    def next_value(self, scores: Tensor, action: Tensor) -> Tensor:
        """Value `(B,)` of the next decision, from its scores `(B, A)` and what was chosen there."""
        return scores.max(-1).values

    @torch.no_grad()
    def targets(self, trajectory: Trajectory) -> Tensor:
        """Targets `(S, B)` of the values: λ-returns."""
        steps, final = trajectory.steps, trajectory.final_reward
        judge = self.scores if self.target is None else self.target
        scores = [judge(step.observation, self.agent_at(step)) for step in steps[1:]]
        values = [self.next_value(of_step, chosen_in(step)) for of_step, step in zip(scores, steps[1:], strict=True)]
        rewards, active = [step.reward for step in steps], [step.active for step in steps]
        gamma, lambda_ = self.config.gamma, self.config.td_lambda
        return lambda_returns(rewards, [final, *values], final, active, gamma=gamma, lambda_=lambda_)

    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Move the values of what was chosen towards their targets."""
        targets, steps = self.targets(trajectory), trajectory.steps
        action, active = stacked(steps, "action"), stacked(steps, "active")
        if isinstance(self.scores, TableScores):
            table = self.scores.table.detach()
            cells = self.cells(trajectory) * self.arrangement.num_choices + action
            been, cells = visited(cells, table.numel())
            value = table.view(-1) if been is None else table.view(-1).index_select(0, been)
            visits, mean = visits_and_means(cells, targets, len(value))
            value += (1 - (1 - self.rate) ** visits) * (mean - value)
            if been is not None:
                table.view(-1).index_copy_(0, been, value)
        else:
            values = self.scores_at(steps).gather(-1, action.unsqueeze(-1)).squeeze(-1)
            self.descend(0.5 * squared_td_error(targets, values, active))
        batch = self.episodes * self.env.trainer.runs // len(trajectory) + 1  # this one included
        if self.target is not None and batch % self.config.target_update == 0:
            self.target.load_state_dict(self.scores.state_dict())
        return {
            "value": (targets * active).sum() / active.sum(),
            "exploration": torch.tensor(self.exploration, device="cpu"),
        }


class Sarsa(QLearning):
    """SARSA: as Q-learning, but a decision is worth what was chosen there, exploration included; one at td_lambda=1."""

    by_task = True

    def next_value(self, scores: Tensor, action: Tensor) -> Tensor:
        """Value of what was chosen."""
        return scores.gather(-1, action.unsqueeze(-1)).squeeze(-1)
