"""Rollouts: a batch of episodes from a router's side, with context, steps and trajectory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from routing_gym.envs.drive import Seen, along
from routing_gym.networks import Action, Exit, RoutedNetwork
from routing_gym.networks.actions import of_one_tensor

if TYPE_CHECKING:
    from routing_gym.envs.vector import RoutingVectorEnv

Observation = Mapping[str, Tensor]
"""`activation (B, D)`, `task (B,)`, `depth (B,)`: the decision each row waits at, N for rows that have left."""


class Context:
    """Context of an observation; masks are computed when they are looked at.

    Attributes:
        deterministic: The agent is being evaluated and should take its best action.
        carry: `(B, ...)` that the agent may set; it gets it back at the next decision of the same episode, None at the
            first.
        begins: `(B,)` bool: rows whose episode begins here while others are under way; None where nobody's does, or
            everybody's (`carry` is None then).
        record: Tensors that the agent wants to find again in the trajectory; the collaboration reward needs
            `"probabilities"` of the shape of `mask`.
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
        self._seen, self._single = seen, single  # single: masks without the axis M
        self.deterministic, self.carry, self.begins = deterministic, carry, begins
        self.record: dict[str, Tensor] = {}

    @property
    def active(self) -> Tensor:
        """`(B,)` bool: rows that are still in the network; what is chosen for the others is ignored."""
        return self._seen.active

    @property
    def mask(self) -> Tensor:
        """`(B, A)` bool, `(B, M, A)` where the agent chooses for M tensors: legal choices."""
        return self._seen.mask[:, 0] if self._single else self._seen.mask

    @property
    def sole(self) -> int | None:
        """The decision at which all rows are, known without asking the device; None where they are spread."""
        return self._seen.sole


@dataclasses.dataclass(frozen=True)
class Known:
    """Context of an observation that has come from outside.

    Attributes:
        active: `(B,)` bool, rows that are in the network.
        mask: `(B, M, A)` bool, legal choices.
        sole: The decision at which all rows are, None where they are spread.
    """

    active: Tensor
    mask: Tensor
    sole: int | None = None


class Router(Protocol):
    """Anything that decides."""

    def act(self, observation: Observation, context: Context) -> Action:
        """Action of every row."""


def is_single(router: Any, network: RoutedNetwork) -> bool:
    """Whether a router sees no axis M: where M = 1, all but those who say that they choose for any number."""
    return network.num_tensors == 1 and getattr(router, "max_tensors", 1) is not None


class Asked:
    """A router that is asked at every decision of a batch.

    Attributes:
        single: Whether it sees no axis M.
        carry: `Context.carry` for the next decision.
        before: The same for the last one.
        context: Context of the last one.
    """

    before: Tensor | None
    context: Context

    def __init__(
        self, router: Router, network: RoutedNetwork, deterministic: bool, carry: Tensor | None = None
    ) -> None:
        self.router, self.deterministic, self.carry = router, deterministic, carry
        self.single = is_single(router, network)

    def __call__(self, seen: Seen) -> Action:
        """Action of every row."""
        self.before = self.carry
        self.context = Context(seen, single=self.single, deterministic=self.deterministic, carry=self.carry)
        action = self.router.act(seen, self.context)
        self.carry = self.context.carry
        return action


@dataclasses.dataclass
class Step:
    """One decision of every instance of a batch, in the form of the agent that made it.

    Attributes:
        observation: Detached unless the environment is differentiable; without an `activation` that the agent has not
            looked at.
        decision: `(B,)` int64; N for rows that had left.
        active: `(B,)` bool: rows that decided here.
        choosing: `(B, M)` bool: the tensors that chose; none in rows that had left.
        action: Where masked choices are tolerated, after they were replaced.
        reach: `(B,)` share of the instance that was at its decision (1 under hard routing, 0 for rows that had left).
        rewards: `(B,)` for each term of the reward of the action itself, by name.
        carry: `Context.carry` when it was made.
        record: `Context.record`.
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
class SettledExit(Exit):
    """An exit with its cross-entropy, `loss (r,)`, with graph while training."""

    loss: Tensor


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
        """Sum of all rewards of each episode, `(B,)`."""
        total = self.final_reward
        for step in self.steps:
            if step.rewards:
                total = total + step.reward
        return total

    def returns(self, gamma: float = 1.0) -> Tensor:
        """Returns R_i = r_final + Σ_{j≥i} γ^{j−i} r_j, `(steps, B)` (Rosenbaum et al. 2018, Algorithm 3)."""
        if not any(step.rewards for step in self.steps):
            return self.final_reward.expand(len(self.steps), -1)
        rewards = torch.stack([step.reward for step in self.steps])
        if gamma == 1:
            return self.final_reward + rewards.flip(0).cumsum(0).flip(0)
        for i in reversed(range(len(self.steps) - 1)):
            rewards[i] += gamma * rewards[i + 1]
        return self.final_reward + rewards


def rollout(
    router: Router, env: RoutingVectorEnv, *, instances: Tensor | None = None, deterministic: bool = False
) -> Trajectory:
    """Route one batch of `env.num_envs` instances from start to end.

    Args:
        router: Whoever decides.
        env: The environment; the episodes that are under way in it are given up.
        instances: `(num_envs,)` rows of the data set, each as often as the environment augments it; drawn by default.
        deterministic: For the router.

    Returns:
        The whole episodes. The graph, where one is kept, stays with `env` for `train_blocks`.

    Raises:
        ValueError: An action that is not allowed. On a GPU it was replaced when it came, so as not to wait for it.
    """
    batch = env.begin(instances)
    plan = router.plan(batch.state.task, deterministic) if hasattr(router, "plan") else None
    asked, turns = Asked(router, env.network, deterministic), None
    if plan is not None:
        plan = _whole(plan, env)
        turns = batch.follow(plan[..., 0]) if env.network.in_order else None
    steps = []
    for turn, rewards in turns or batch.drive(asked if plan is None else along(plan)):
        seen, action = turn.seen, of_one_tensor(turn.action) if asked.single else turn.action
        step = Step(seen, seen.decision, seen.active, seen.choosing, action, seen.reach, rewards)
        if plan is None:
            step.carry, step.record = asked.before, asked.context.record
        steps.append(step)
    if not batch.manner.graph and batch.doubts and bool(batch.doubtful):
        raise ValueError("an action of this batch was out of range, masked or not finite: its results are void")
    if env.rewards.of_probabilities:
        env.rewards.give_for_probabilities(steps)
    return batch.trajectory(steps)


def _whole(plan: Any, env: RoutingVectorEnv) -> Tensor:
    """A plan with the axis of tensors, `(B, N, M)`."""
    if not isinstance(plan, Tensor) or plan.is_floating_point() or plan.dtype == torch.bool:
        got = plan.dtype if isinstance(plan, Tensor) else type(plan).__name__
        raise ValueError(f"a plan is a tensor of integers, or None, got {got}")
    whole = (env.num_envs, len(env.network.decisions), env.network.num_tensors)
    if tuple(plan.shape) == whole[:2] and whole[2] == 1:
        return plan.unsqueeze(2)
    if tuple(plan.shape) != whole:
        raise ValueError(f"a plan has shape {whole if whole[2] > 1 else whole[:2]} here, got {tuple(plan.shape)}")
    return plan
