"""Letting a router take a batch of instances through the network, and judging it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from routing_gym.envs.trajectory import Context, Observation, Router, Step, Trajectory
from routing_gym.envs.vector import RoutingVectorEnv
from routing_gym.networks import actions

EVALUATION_BATCH = 1024


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
        instances: `(num_envs,)` rows of the data set; drawn by default.
        deterministic: Handed to the router.

    Returns:
        The whole episodes. The graph, where one is kept, stays with `env` for `train_blocks`.
    """
    if env.autoreset_mode is not AutoresetMode.DISABLED:
        raise ValueError("a rollout needs an environment in mode 'disabled': make it so, or use env.batch_mode()")
    observation, info = env.reset(options=None if instances is None else {"instances": instances})
    plan = router.plan(observation["task"], deterministic) if hasattr(router, "plan") else None
    steps = _act(router, env, observation, info, deterministic) if plan is None else _follow(env, plan)
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
        action_rewards=env.config.k_cpt > 0 or env.config.rho > 0,
    )


def _act(
    router: Router, env: RoutingVectorEnv, observation: Observation, info: dict[str, Any], deterministic: bool
) -> list[Step]:
    """Ask the router at every decision."""
    steps: list[Step] = []
    carry: Tensor | None = None
    while env.state.waiting:
        state, seen = env.state, observation
        context = Context(state.active, info["action_mask"], deterministic, carry)
        action = router.act(seen, context)
        reach, choosing = _reach(env), env.network.choosing(state)
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
    in_range = not bool(actions.out_of_range(plan, network.num_choices)) if env.device.type == "cpu" else False
    steps: list[Step] = []
    while env.state.waiting:
        state, reach, choosing = env.state, _reach(env), env.network.choosing(env.state)
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
        steps.append(Step(seen, state.at, state.active, choosing, action, reach, reward, None, {}))
    return steps


def _reach(env: RoutingVectorEnv) -> Tensor:
    """Return `(B,)`: the share of each instance that is at the decision it acts at."""
    state = env.state
    if state.sole is not None:
        return state.waiting[state.sole].reach.detach()
    reach = torch.zeros_like(state.macs)
    for _, group, _ in state.acting():
        value = group.reach.detach()
        reach = value if group.rows is None else reach.index_copy(0, group.rows, value)
    return reach


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a router does on a whole split, deciding deterministically.

    Attributes:
        split: Name of the split.
        accuracy: Share of instances classified right, 0 to 1.
        task_accuracy: The same for each task.
        loss: Mean cross-entropy.
        macs: Mean multiply-accumulates per instance, the router's own included.
        router_macs: The router's own share of `macs`.
        task_macs: `macs` for each task.
        blocks_used: How many (decision, choice) pairs any instance took.
        paths: How many different routes there were.
        routes: `(T, N, A)` int64: how often each task took each choice at each decision.
    """

    split: str
    accuracy: float
    task_accuracy: list[float]
    loss: float
    macs: float
    router_macs: float
    task_macs: list[float]
    blocks_used: int
    paths: int
    routes: Tensor


@torch.no_grad()
def evaluate(
    router: Any, env: Any, *, split: str = "test", deterministic: bool = True, batch_size: int = EVALUATION_BATCH
) -> Evaluation:
    """Route a whole split, in eval mode.

    Neither the environment's own episodes nor modes and random numbers of network and router are disturbed.

    Args:
        router: An agent, or anything with `act(observation, context)`.
        env: An environment of routing_gym, or a face of one.
        split: Which split.
        deterministic: Whether the router takes its best action or acts as in training.
        batch_size: Instances routed together.
    """
    core = core_of(env)
    size = min(batch_size, len(core.datasets[split]) if split in core.datasets else 1)
    for attribute, here in (
        ("num_tasks", core.dataset.num_tasks),
        ("num_decisions", len(core.network.decisions)),
        ("num_choices", core.network.num_choices),
    ):
        if getattr(router, attribute, here) != here:
            raise ValueError(f"the agent has {attribute} {getattr(router, attribute)}, this environment {here}")
    judged = core.sibling(size, split=split, autoreset_mode="disabled", train=False, render_mode=None, k_cpt=0.0)
    network, dataset = judged.network, judged.dataset
    modules = [network, *([router] if isinstance(router, nn.Module) else [])]
    modes = [{part: part.training for part in module.modules()} for module in modules]
    router_macs = torch.tensor(
        [float(router.macs(number)) if hasattr(router, "macs") else 0.0 for number in range(len(network.decisions))]
        + [0.0],
        device=judged.device,
    )
    columns: dict[str, list[Tensor]] = {name: [] for name in ("task", "correct", "loss", "macs", "router")}
    routes = torch.zeros(dataset.num_tasks, len(network.decisions) + 1, network.num_choices, dtype=torch.int64)
    routes = routes.to(judged.device)
    paths: set[tuple] = set()
    generator: torch.Generator | None = getattr(router, "generator", None)
    drawn = torch.empty(0) if generator is None else generator.get_state()
    try:
        for module in modules:
            module.eval()
        for start in range(0, len(dataset), size):
            rows = torch.arange(start, start + size).remainder(len(dataset))
            kept = slice(min(size, len(dataset) - start))  # the last batch is filled up from the front
            batch = rollout(router, judged, instances=rows, deterministic=deterministic)
            spent = torch.stack([router_macs[step.decision] for step in batch.steps]).sum(0)
            for name, column in (
                ("task", batch.task),
                ("correct", batch.correct),
                ("loss", batch.loss),
                ("macs", batch.macs),
                ("router", spent),
            ):
                columns[name].append(column[kept])
            ways = torch.zeros(size, len(network.decisions), network.num_choices, dtype=torch.bool)
            ways = ways.to(judged.device)
            for number, step in enumerate(batch.steps):
                ways[:, number] = used = _used(step, network.num_choices)
                place = (batch.task[kept], step.decision[kept])
                routes.index_put_(place, used[kept].to(torch.int64), accumulate=True)
            paths.update(map(tuple, ways[kept].flatten(1).unique(dim=0).tolist()))
    finally:
        if generator is not None:
            generator.set_state(drawn)  # judging an agent must not change how it goes on
        for mode in modes:
            for part, training in mode.items():
                part.training = training
    whole = {name: torch.cat(parts).double() for name, parts in columns.items()}
    task = whole["task"].long()
    count = torch.bincount(task, minlength=dataset.num_tasks)

    def per_task(values: Tensor) -> list[float]:
        return (torch.zeros_like(count, dtype=values.dtype).index_add(0, task, values) / count).tolist()

    macs = whole["macs"] + whole["router"]
    return Evaluation(
        split=split,
        accuracy=float(whole["correct"].mean()),
        task_accuracy=per_task(whole["correct"]),
        loss=float(whole["loss"].mean()),
        macs=float(macs.mean()),
        router_macs=float(whole["router"].mean()),
        task_macs=per_task(macs),
        blocks_used=int((routes[:, :-1].sum(0) > 0).sum()),
        paths=len(paths),
        routes=routes[:, :-1].cpu(),
    )


def _used(step: Step, num_choices: int) -> Tensor:
    """Return `(B, A)` bool: which choices the tensors that chose gave weight to."""
    action = step.action
    if isinstance(action, tuple):
        action = action[0], (action[1] != 0).to(torch.get_default_dtype())
    used = actions.dense(action, num_choices) != 0
    return (used.view(len(used), -1, num_choices) & step.choosing.unsqueeze(-1)).any(1)
