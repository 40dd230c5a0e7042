"""Letting a router take a batch of instances through the network."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from routing_gym.envs.accept import accept_instances
from routing_gym.envs.drive import Seen, Turn, along
from routing_gym.envs.trajectory import Context, Router, Step, Trajectory
from routing_gym.envs.vector import RoutingVectorEnv
from routing_gym.networks import Action, RoutedNetwork
from routing_gym.networks.actions import of_one_tensor


def core_of(env: Any) -> RoutingVectorEnv:
    """Return the vector environment under any wrapper or face.

    Raises:
        ValueError: There is none.
    """
    inner = getattr(env, "unwrapped", env)
    core = getattr(inner, "core", inner)  # faces hold theirs
    if not isinstance(core, RoutingVectorEnv):
        raise ValueError(f"expected an environment of routing_gym, got {type(inner).__name__}")
    return core


def is_single(router: Any, network: RoutedNetwork) -> bool:
    """Tell whether who decides sees no axis M: where M = 1, all but those who say that they choose for any number."""
    return network.num_tensors == 1 and getattr(router, "max_tensors", 1) is not None


class Asked:
    """A router that is asked at every decision of a batch, and what it carries from one to the next.

    Args:
        router: Whoever decides.
        network: What it routes through.
        deterministic: Handed to the router.
        carry: What it carries into the first decision.

    Attributes:
        single: Whether the router sees no axis M.
        before: What it carried into the last decision.
        context: What came with the last decision.
    """

    def __init__(
        self, router: Router, network: RoutedNetwork, deterministic: bool, carry: Tensor | None = None
    ) -> None:
        self.router, self.deterministic, self.carry = router, deterministic, carry
        self.single = is_single(router, network)

    context: Context
    before: Tensor | None

    def __call__(self, seen: Seen) -> Action:
        """Ask the router."""
        self.before = self.carry
        self.context = Context(seen, single=self.single, deterministic=self.deterministic, carry=self.carry)
        action = self.router.act(seen, self.context)
        self.carry = self.context.carry
        return action


def rollout(
    router: Router,
    env: RoutingVectorEnv,
    *,
    instances: Tensor | None = None,
    deterministic: bool = False,
) -> Trajectory:
    """Route one batch of `env.num_envs` instances from start to end.

    Args:
        router: Whoever decides.
        env: The environment; the episodes that are under way in it are given up.
        instances: `(num_envs,)` rows of the data set, each as often as the environment augments it; drawn by default.
        deterministic: Handed to the router.

    Returns:
        The whole episodes. The graph, where one is kept, stays with `env` for `train_blocks`.
    """
    if instances is not None:
        instances = accept_instances(instances, env.num_envs, len(env.dataset), env.config.augmentations)
    batch = env.begin(instances)
    plan = router.plan(batch.state.task, deterministic) if hasattr(router, "plan") else None
    asked = Asked(router, env.network, deterministic)
    steps: list[Step] = []

    def remember(turn: Turn, rewards: dict[str, Tensor]) -> Step:
        seen, action = turn.seen, of_one_tensor(turn.action) if asked.single else turn.action
        steps.append(Step(seen, seen.decision, seen.active, seen.choosing, action, seen.reach, rewards))
        return steps[-1]

    if plan is not None:
        plan = _whole(plan, env)
        turns = batch.follow(plan[..., 0]) if env.network.in_order else None
        for turn, rewards in batch.drive(along(plan)) if turns is None else turns:
            remember(turn, rewards)
    else:
        for turn, rewards in batch.drive(asked):
            step = remember(turn, rewards)
            step.carry, step.record = asked.before, asked.context.record
    if not batch.manner.graph:
        batch.check()
    if env.rewards.of_probabilities:
        env.rewards.give_for_probabilities(steps)
    return batch.trajectory(steps)


def _whole(plan: Tensor, env: RoutingVectorEnv) -> Tensor:
    """Return a plan with the axis of tensors, `(B, N, M)`.

    Raises:
        ValueError: It has another shape.
    """
    whole = (env.num_envs, len(env.network.decisions), env.network.num_tensors)
    if tuple(plan.shape) == whole[:2] and whole[2] == 1:
        return plan.unsqueeze(2)
    if tuple(plan.shape) != whole:
        raise ValueError(f"a plan has shape {whole if whole[2] > 1 else whole[:2]} here, got {tuple(plan.shape)}")
    return plan
