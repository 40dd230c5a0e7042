"""What an agent sees while it acts, and what it learns from afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from routing_gym.networks import Action

Observation = Mapping[str, Tensor]
"""`activation (B, D)`, `task (B,)`, `depth (B,)`: the decision each row waits at, N for rows that have left."""


@dataclasses.dataclass
class Context:
    """What comes with an observation.

    Attributes:
        active: `(B,)` bool: rows that are still in the network; what is chosen for the others is ignored.
        mask: `(B, A)` bool, `(B, M, A)` where M > 1 tensors choose: which choices are legal.
        deterministic: The agent is being evaluated and should take its best action.
        carry: A tensor per instance that the agent may set; it gets it back at the next decision of the same
            episode, None at the first.
        begins: `(B,)` bool: rows whose episode begins here while others are under way; None where nobody's does, or
            everybody's (`carry` is None then).
        record: What the agent wants to find again in the trajectory; `"probabilities"` of shape `(B, A)`, `(B, M, A)`
            where M > 1, are what the collaboration reward needs.
    """

    active: Tensor
    mask: Tensor
    deterministic: bool = False
    carry: Tensor | None = None
    begins: Tensor | None = None
    record: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Router(Protocol):
    """Anything that decides."""

    def act(self, observation: Observation, context: Context) -> Action:
        """Return an action for every row."""


@dataclasses.dataclass
class Step:
    """One decision of every instance of a batch.

    Attributes:
        observation: What was seen, detached unless the environment is differentiable; without `activation` where the
            agent planned ahead.
        decision: `(B,)` int64; N for rows that had left.
        active: `(B,)` bool: rows that decided here.
        choosing: `(B, M)` bool: the tensors that chose; none in rows that had left.
        action: What was done; where masked choices are tolerated, after they were replaced.
        reach: `(B,)` share of the instance that was at its decision (1 under hard routing, 0 for rows that had left).
        reward: `(B,)` reward of the action itself, without the final reward.
        carry: What the agent carried into this decision.
        record: What the agent recorded.
    """

    observation: Observation
    decision: Tensor
    active: Tensor
    choosing: Tensor
    action: Action
    reach: Tensor
    reward: Tensor
    carry: Tensor | None
    record: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class SettledExit:
    """Rows that left at one place, with what became of them.

    Attributes:
        decision: The decision they left from.
        choice: The choice that led out.
        rows: `(r,)` int64 row numbers, or None for every row in order.
        logits: `(r, num_classes)`, with graph while training.
        loss: `(r,)` cross-entropy, with graph while training.
        weight: `(r,)` share of the instance that left here, with graph where weights have one.
    """

    decision: int
    choice: int
    rows: Tensor | None
    logits: Tensor
    loss: Tensor
    weight: Tensor


@dataclasses.dataclass
class Trajectory:
    """A batch of whole episodes.

    Attributes:
        steps: The decisions in the order they were made, at most N.
        exits: Where the instances left.
        task: `(B,)` int64.
        instance: `(B,)` int64 row numbers in the data set.
        price: `(B,)` cost of one multiply-accumulate.
        final_reward: `(B,)`.
        correct: `(B,)` share of the instance that was classified right, 0 or 1 under hard routing.
        loss: `(B,)` cross-entropy, summed over exits by weight, detached.
        macs: `(B,)` executed multiply-accumulates.
        expected_macs: `(B,)`, with graph where weights have one.
        action_rewards: Whether actions themselves can have earned something; if not, all `Step.reward` are 0.
    """

    steps: list[Step]
    exits: list[SettledExit]
    task: Tensor
    instance: Tensor
    price: Tensor
    final_reward: Tensor
    correct: Tensor
    loss: Tensor
    macs: Tensor
    expected_macs: Tensor
    action_rewards: bool = True

    def __len__(self) -> int:
        return len(self.task)

    def reward(self) -> Tensor:
        """Return `(B,)`: the sum of all rewards of each episode."""
        total = self.final_reward
        for step in self.steps:
            total = total + step.reward
        return total

    def returns(self, gamma: float = 1.0) -> Tensor:
        """Return `(steps, B)`: R_i = r_final + Σ_{j≥i} γ^{j−i} r_j (Rosenbaum et al. 2018, Algorithm 3)."""
        if not self.action_rewards:
            return self.final_reward.expand(len(self.steps), -1)
        rewards = torch.stack([step.reward for step in self.steps])
        if gamma == 1:
            return self.final_reward + rewards.flip(0).cumsum(0).flip(0)
        for i in reversed(range(len(self.steps) - 1)):
            rewards[i] += gamma * rewards[i + 1]
        return self.final_reward + rewards
