"""What an agent sees while it acts, and what it learns from afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from routing_gym.envs.drive import Seen
from routing_gym.networks import Action

Observation = Mapping[str, Tensor]
"""`activation (B, D)`, `task (B,)`, `depth (B,)`: the decision each row waits at, N for rows that have left."""


class Context:
    """What comes with an observation; what is not looked at is not computed.

    Attributes:
        deterministic: The agent is being evaluated and should take its best action.
        carry: A tensor per instance that the agent may set; it gets it back at the next decision of the same
            episode, None at the first.
        begins: `(B,)` bool: rows whose episode begins here while others are under way; None where nobody's does, or
            everybody's (`carry` is None then).
        record: What the agent wants to find again in the trajectory; `"probabilities"` of the shape of `mask` are what
            the collaboration reward needs.

    Args:
        seen: What there is to see.
        single: Leave the axis M of masks out, for an agent that chooses for one tensor.
        deterministic: As above.
        carry: As above.
        begins: As above.
    """

    def __init__(
        self,
        seen: Seen | Known,
        *,
        single: bool = False,
        deterministic: bool = False,
        carry: Tensor | None = None,
        begins: Tensor | None = None,
    ) -> None:
        self._seen, self._single = seen, single
        self.deterministic, self.carry, self.begins = deterministic, carry, begins
        self.record: dict[str, Tensor] = {}

    @property
    def active(self) -> Tensor:
        """`(B,)` bool: rows that are still in the network; what is chosen for the others is ignored."""
        return self._seen.active

    @property
    def mask(self) -> Tensor:
        """`(B, A)` bool, `(B, M, A)` where the agent chooses for M tensors: which choices are legal."""
        return self._seen.mask[:, 0] if self._single else self._seen.mask

    @property
    def sole(self) -> int | None:
        """The decision at which all rows are, known without asking the device; None where they are spread."""
        return self._seen.sole


@dataclasses.dataclass(frozen=True)
class Known:
    """What goes with an observation that has come from outside.

    Attributes:
        active: `(B,)` bool, rows that are in the network.
        mask: `(B, M, A)` bool, what is legal.
        sole: The decision at which all rows are, None where they are spread.
    """

    active: Tensor
    mask: Tensor
    sole: int | None = None


class Router(Protocol):
    """Anything that decides."""

    def act(self, observation: Observation, context: Context) -> Action:
        """Return an action for every row."""


@dataclasses.dataclass
class Step:
    """One decision of every instance of a batch, in the form of the agent that made it.

    Attributes:
        observation: What was seen, detached unless the environment is differentiable; of `activation` only what the
            agent has looked at.
        decision: `(B,)` int64; N for rows that had left.
        active: `(B,)` bool: rows that decided here.
        choosing: `(B, M)` bool: the tensors that chose; none in rows that had left.
        action: What was done; where masked choices are tolerated, after they were replaced.
        reach: `(B,)` share of the instance that was at its decision (1 under hard routing, 0 for rows that had left).
        rewards: `(B,)` for each term of the reward that the action itself has earned, by name.
        carry: What the agent carried into this decision.
        record: What the agent recorded.
    """

    observation: Observation
    decision: Tensor
    active: Tensor
    choosing: Tensor
    action: Action
    reach: Tensor
    rewards: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    carry: Tensor | None = None
    record: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def reward(self) -> Tensor:
        """`(B,)` reward of the action itself, the sum of its terms; whoever sets it replaces them."""
        return sum(self.rewards.values(), start=torch.zeros_like(self.reach))

    @reward.setter
    def reward(self, value: Tensor) -> None:
        self.rewards = {"reward": value}


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
        label: `(B,)` int64.
        price: `(B,)` cost of one multiply-accumulate.
        final_rewards: `(B,)` for each term of the reward for leaving, by name.
        correct: `(B,)` share of the instance that was classified right, 0 or 1 under hard routing.
        loss: `(B,)` cross-entropy, summed over exits by weight, detached.
        macs: `(B,)` executed multiply-accumulates.
        expected_macs: `(B,)`, with graph where weights have one.
    """

    steps: list[Step]
    exits: list[SettledExit]
    task: Tensor
    instance: Tensor
    label: Tensor
    price: Tensor
    final_rewards: dict[str, Tensor]
    correct: Tensor
    loss: Tensor
    macs: Tensor
    expected_macs: Tensor

    def __len__(self) -> int:
        return len(self.task)

    @property
    def final_reward(self) -> Tensor:
        """`(B,)` reward for leaving, the sum of its terms; whoever sets it replaces them."""
        first, *others = self.final_rewards.values()
        return sum(others, start=first)

    @final_reward.setter
    def final_reward(self, value: Tensor) -> None:
        self.final_rewards = {"reward": value}

    @property
    def rewards(self) -> dict[str, Tensor]:
        """`(B,)` of each term of the reward over the whole episode, by name."""
        total = dict(self.final_rewards)
        for step in self.steps:
            for name, reward in step.rewards.items():
                total[name] = total[name] + reward if name in total else reward
        return total

    def reward(self) -> Tensor:
        """Return the sum of all rewards of each episode, `(B,)`."""
        total = self.final_reward
        for step in self.steps:
            if step.rewards:
                total = total + step.reward
        return total

    def returns(self, gamma: float = 1.0) -> Tensor:
        """Return R_i = r_final + Σ_{j≥i} γ^{j−i} r_j, `(steps, B)` (Rosenbaum et al. 2018, Algorithm 3)."""
        if not any(step.rewards for step in self.steps):
            return self.final_reward.expand(len(self.steps), -1)
        rewards = torch.stack([step.reward for step in self.steps])
        if gamma == 1:
            return self.final_reward + rewards.flip(0).cumsum(0).flip(0)
        for i in reversed(range(len(self.steps) - 1)):
            rewards[i] += gamma * rewards[i + 1]
        return self.final_reward + rewards
