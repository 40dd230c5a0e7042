"""Letting a router take a batch of instances through the network, and judging it."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from routing_gym.envs.accept import accept_instances, accept_plan
from routing_gym.envs.trajectory import Context, Observation, Router, Step, Trajectory
from routing_gym.envs.vector import RoutingVectorEnv
from routing_gym.networks import actions


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


def rollout(
    router: Router,
    env: RoutingVectorEnv,
    *,
    instances: Tensor | None = None,
    deterministic: bool = False,
) -> Trajectory:
    """Route one batch of `env.num_envs` instances from start to end; `env` must be in mode `"disabled"`.

    Args:
        router: Whoever decides.
        env: The environment; it is reset.
        instances: `(num_envs,)` rows of the data set, each as often as the environment augments it; drawn by default.
        deterministic: Handed to the router.

    Returns:
        The whole episodes. The graph, where one is kept, stays with `env` for `train_blocks`.
    """
    if env.autoreset_mode is not AutoresetMode.DISABLED:
        raise ValueError("a rollout needs an environment in mode 'disabled': make it so, or use env.batch_mode()")
    env.begin(instances=accept_instances(instances, env.num_envs, len(env.dataset), env.config.augmentations))
    env.outcome.keep_exits = True  # of one batch, which is let go as a whole
    plan = router.plan(env.state.task, deterministic) if hasattr(router, "plan") else None
    steps = _act(router, env, deterministic) if plan is None else _follow(env, plan)
    if not env.keeps_graph:
        env.check_batch()
    outcome, state = env.outcome, env.state
    return Trajectory(
        steps=steps,
        exits=list(outcome.exits),
        task=state.task,
        instance=state.instance,
        price=state.price,
        final_reward=outcome.final_reward,
        correct=outcome.correct,
        loss=outcome.loss,
        macs=state.macs,
        expected_macs=state.expected_macs,
        action_rewards=env.earnings.priced or env.config.rho > 0,
    )


def _act(router: Router, env: RoutingVectorEnv, deterministic: bool) -> list[Step]:
    """Ask the router at every decision."""
    steps: list[Step] = []
    carry: Tensor | None = None
    observation: Observation = env.observe()
    info: dict[str, Any] = {"action_mask": env.network.action_mask(env.state)}
    while env.state.waiting:
        state, seen = env.state, observation
        context = Context(state.active, info["action_mask"], deterministic, carry)
        given = [(key, value, value._version) for key, value in seen.items()]
        action = router.act(seen, context)
        for key, value, version in given:
            if value._version != version:
                raise ValueError(f"act has written into its observation, {key!r}, which others need: write into a copy")
        reach, choosing = state.reach, env.network.choosing(state)
        observation, _, _, _, info = env.step(action)
        assert env.executed is not None
        steps.append(
            Step(
                observation=seen,
                decision=state.at,
                active=context.active,
                choosing=choosing,
                action=env.executed,
                reach=reach,
                reward=info["action_reward"],
                carry=carry,
                record=context.record,
            )
        )
        carry = context.carry
    return steps


def _follow(env: RoutingVectorEnv, plan: Tensor) -> list[Step]:
    """Carry every row to its end along a plan, without looking at what it sees on the way.

    Does what `env.step` does with the same actions, but observations and masks nobody asks for are not computed.

    Args:
        env: The environment, just reset.
        plan: `(B, N)` or `(B, N, M)` int64: the choice of each row at each decision.
    """
    network = env.network
    expected = (env.num_envs, len(network.decisions), *([network.num_tensors] if network.num_tensors > 1 else []))
    if tuple(plan.shape) != expected:
        raise ValueError(f"a plan has shape {expected} here, got {tuple(plan.shape)}")
    if network.in_order and not env.watched:
        steps = _follow_at_once(env, plan)
        if steps is not None:
            return steps
    in_range = not bool(actions.out_of_range(plan, network.num_choices)) if env.device.type == "cpu" else False
    steps = []
    while env.state.waiting:
        state, choosing = env.state, env.network.choosing(env.state)
        if state.sole is not None:
            action = plan[:, state.sole]
        else:
            row = torch.arange(env.num_envs, device=plan.device)
            action = plan[row, state.at.clamp(max=len(network.decisions) - 1)]
        if not (in_range and network.nothing_masked):
            accepted = env.accept(action).action
            assert isinstance(accepted, Tensor)
            action = accepted
        reward, _ = env.transition(action)
        seen = {"task": state.task, "depth": state.at}
        steps.append(Step(seen, state.at, state.active, choosing, action, state.reach, reward, None, {}))
    return steps


def _follow_at_once(env: RoutingVectorEnv, plan: Tensor) -> list[Step] | None:
    """Carry every row through a network that is `in_order` in one go; None, and nothing done, if it may not."""
    accepted = accept_plan(env.network, plan, first_legal=env.illegal == "first_legal", validate=env.validates)
    if accepted is None:
        return None  # who follows step by step finds out what is wrong
    plan, doubtful = accepted
    env.note_doubt(doubtful)
    task, price = env.state.task, env.state.price
    with env.forward_pass(env.keeps_graph):
        # Nobody here holds on to the state before: what waits there can go once it is not needed.
        after = env.network.follow(env.state, plan)
    env.arrive(after)
    reach = torch.ones_like(price)
    everyone = torch.ones_like(task, dtype=torch.bool)
    choosing = everyone.unsqueeze(1)
    steps = []
    for number, (action, spent) in enumerate(zip(plan.unbind(1), env.network.route_macs(plan).unbind(1), strict=True)):
        at = torch.full_like(task, number)
        reward = env.earnings.of(at, choosing, action, spent, price)
        if env.keeps_graph:
            env.trainer.note_throughput(at, reach, action)
        steps.append(Step({"task": task, "depth": at}, at, everyone, choosing, action, reach, reward, None, {}))
    return steps
