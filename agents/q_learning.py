"""Q-learning (Watkins 1989) and SARSA, on tables or on approximators (Rosenbaum et al. 2018, section 3.1.2)."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.agents.base import ARRANGEMENTS, Agent, AgentConfig
from routing_gym.agents.scores import REPRESENTATIONS, TableScores, make_scores
from routing_gym.agents.tabular import agents_of, sample
from routing_gym.envs import Context, Observation, Trajectory


@dataclasses.dataclass(frozen=True)
class QLearningConfig(AgentConfig):
    """Options of Q-learning and SARSA.

    Attributes:
        arrangement: `"per_task"`, one agent per task, or `"single"`, one for all.
        representation: `"table"` of values, or `"mlp"`, two-layer approximators that see activation and task.
        learning_rate: Of a table: the step towards the target per visit, in (0, 1]. Of approximators: the step size of
            Adam. None for 0.01 and 0.001. (A table on DIGITS-MTL's validation split: 0.005 and 0.01 learn, from 0.05 on
            nothing is learned in 20 epochs.)
        gamma: Discount.
        epsilon: Share of random choices at first, in [0, 1].
        epsilon_final: Share of random choices in the end.
        epsilon_episodes: Instances over which the share falls, in a straight line.
        target_update: Batches after which the copy that gives the targets is renewed; 0 for no copy. For
            approximators.
    """

    arrangement: Literal["per_task", "single"] = "per_task"
    representation: Literal["table", "mlp"] = "table"
    learning_rate: float | None = None
    gamma: float = 1.0
    epsilon: float = 1.0
    epsilon_final: float = 0.02
    epsilon_episodes: int = 50_000
    target_update: int = 0

    def __post_init__(self) -> None:
        for option, known in (("arrangement", ARRANGEMENTS), ("representation", REPRESENTATIONS)):
            if getattr(self, option) not in known:
                raise ValueError(f"q-learning: {option} must be one of {known}, got {getattr(self, option)!r}")
        largest = 1.0 if self.representation == "table" else float("inf")
        if self.learning_rate is not None and not 0 < self.learning_rate <= largest:
            raise ValueError(f"q-learning: learning_rate must lie in (0, {largest}], got {self.learning_rate}")
        for option in ("gamma", "epsilon", "epsilon_final"):
            if not 0 <= getattr(self, option) <= 1:
                raise ValueError(f"q-learning: {option} must lie in [0, 1], got {getattr(self, option)}")
        if self.epsilon_episodes < 1 or self.target_update < 0:
            raise ValueError(
                "q-learning: epsilon_episodes must be at least 1 and target_update at least 0, got "
                f"{self.epsilon_episodes} and {self.target_update}"
            )


DEFAULT_RATES = {"table": 0.01, "mlp": 0.001}


class QLearning(Agent):
    """Q-learning: values move towards r + γ max Q(next); towards the final reward where the instance leaves.

    A table takes a visit's step for every visit of a batch, with the batch's mean target (Q moves by 1 − (1−α)^n of the
    way after n visits). Approximators take one step of Adam on half the squared error, summed over decisions, mean
    over instances.
    """

    Config = QLearningConfig
    config: QLearningConfig

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        options = self.config
        self.rate = options.learning_rate or DEFAULT_RATES[options.representation]
        self.scores = make_scores(options.representation, self.env, options.arrangement, options.seed)
        self.scores.to(self.env.device)
        self.target = copy.deepcopy(self.scores) if options.target_update else None
        if not isinstance(self.scores, TableScores):
            self.optimizer = torch.optim.Adam(self.scores.parameters(), lr=self.rate)

    @property
    def exploration(self) -> float:
        """The share of random choices now."""
        done = min(1.0, self.episodes / self.config.epsilon_episodes)
        return self.config.epsilon + done * (self.config.epsilon_final - self.config.epsilon)

    def _choose(self, scores: Tensor) -> Tensor:
        """Return the best choice, or with the current share a random one of what is legal (not −inf)."""
        legal = scores.isfinite().to(scores.dtype)
        anything = sample(legal.cumsum(-1), self.generator)
        best = scores.argmax(-1)
        height = torch.rand(best.shape, generator=self.generator, device=best.device)
        return torch.where(height < self.exploration, anything, best)

    @torch.no_grad()
    def act(self, observation: Observation, context: Context) -> Tensor:
        """Take the best choice, while training now and then a random one."""
        scores = self.scores(observation)
        if context.deterministic:
            return scores.argmax(-1)
        if self.shares_wanted:
            legal = scores.isfinite().to(scores.dtype)
            best = functional.one_hot(scores.argmax(-1), self.num_choices)
            anything = legal / legal.sum(-1, keepdim=True)
            context.record["probabilities"] = (1 - self.exploration) * best + self.exploration * anything
        return self._choose(scores)

    @torch.no_grad()
    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Choose whole routes from a table; an approximator has to see the activations."""
        if self.shares_wanted or not isinstance(self.scores, TableScores):
            return None
        scores = self.scores.of_all_decisions(task)
        return scores.argmax(-1) if deterministic else self._choose(scores)

    def next_value(self, scores: Tensor, action: Tensor) -> Tensor:
        """Return `(B,)`, what the next decision is worth, from its scores `(B, A)` and what was chosen there."""
        return scores.max(-1).values

    @torch.no_grad()
    def targets(self, trajectory: Trajectory) -> Tensor:
        """Return `(steps, B)`: what each decision's value should move towards."""
        judge = self.scores if self.target is None else self.target
        targets = []
        for i, step in enumerate(trajectory.steps):
            value = trajectory.final_reward
            if i + 1 < len(trajectory.steps):
                following = trajectory.steps[i + 1]
                assert isinstance(following.action, Tensor)
                ahead = self.config.gamma * self.next_value(judge(following.observation), following.action)
                value = torch.where(following.active, ahead, value)
            targets.append(step.reward + value)
        return torch.stack(targets)

    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Move the values of what was chosen towards their targets."""
        targets = self.targets(trajectory)
        if isinstance(self.scores, TableScores):
            self._move_table(trajectory, targets)
        else:
            self._step(trajectory, targets)
        if self.target is not None and self._batch(trajectory) % self.config.target_update == 0:
            self.target.load_state_dict(self.scores.state_dict())
        return {"value": targets.mean(), "exploration": torch.tensor(self.exploration)}

    def _batch(self, trajectory: Trajectory) -> int:
        """Return how many batches there have been, this one included."""
        return self.episodes // len(trajectory) + 1

    @torch.no_grad()
    def _move_table(self, trajectory: Trajectory, targets: Tensor) -> None:
        agent = agents_of({"task": trajectory.task}, self.config.arrangement)
        row = torch.stack([step.decision for step in trajectory.steps])
        action = torch.stack([step.action for step in trajectory.steps if isinstance(step.action, Tensor)])
        cells = ((agent * (self.num_decisions + 1) + row) * self.num_choices + action).flatten()
        table = self.scores.table.flatten()
        nothing = torch.zeros_like(table)
        # index_put, because index_add is not the same twice on a GPU
        visits = nothing.index_put((cells,), torch.ones_like(targets).flatten(), accumulate=True)
        mean = nothing.index_put((cells,), targets.flatten(), accumulate=True) / visits.clamp(min=1)
        moved = table + (1 - (1 - self.rate) ** visits) * (mean - table)
        self.scores.table.copy_(moved.view_as(self.scores.table))

    def _step(self, trajectory: Trajectory, targets: Tensor) -> None:
        losses = []
        for step, target in zip(trajectory.steps, targets, strict=True):
            assert isinstance(step.action, Tensor)
            value = self.scores(step.observation).gather(-1, step.action.unsqueeze(-1)).squeeze(-1)
            losses.append(0.5 * (step.active * (target - value) ** 2).sum())
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().div(len(trajectory)).backward()
        self.optimizer.step()

    def macs(self, decision: int) -> float:
        """Return what the approximator costs; 0 for a table."""
        return self.scores.macs(decision)


class Sarsa(QLearning):
    """SARSA: as Q-learning, but a decision is worth what was chosen there, exploration included."""

    def next_value(self, scores: Tensor, action: Tensor) -> Tensor:
        """Return the value of what was chosen."""
        return scores.gather(-1, action.unsqueeze(-1)).squeeze(-1)
