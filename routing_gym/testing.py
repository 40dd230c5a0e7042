"""A checker for vector environments, which neither Gymnasium nor Stable-Baselines3 ships."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from routing_gym.envs import RoutingVectorEnv, core_of
from routing_gym.envs.single import to_numpy
from routing_gym.networks import RoutedNetwork
from routing_gym.networks.actions import of_one_tensor

MIN_STEPS = 40  # several episodes of most networks


def check_vector_env(env: Any, make: Callable[[], Any] | None = None) -> None:
    """Check that an environment keeps the contract of vector environments and the promises of routing_gym.

    Checked are: attributes and batched spaces; type, shape and device of everything returned; that row i of a batch
    fares as it would alone; seeding; the autoreset contract of all modes; the masks of infos; gradients, where they are
    asked for and nowhere else; that refused actions change nothing; `gymnasium.make_vec` and `spec.to_json()`; the
    numpy view. All this happens to a copy: the environment and its blocks stay as they are.

    Args:
        env: A `RoutingVectorEnv`, possibly under wrappers, or of a subclass.
        make: Makes a fresh, equal environment. By default `gymnasium.make_vec` with the environment's own spec; where
            there is neither, the seeding of fresh environments is not checked.

    Raises:
        AssertionError: Says which promise is broken.
    """
    given = env.unwrapped
    _require(isinstance(given, RoutingVectorEnv), f"expected a RoutingVectorEnv, got {type(given).__name__}")
    if make is None and given.spec is not None and isinstance(given.spec.kwargs.get("network", ""), str):
        options = {name: value for name, value in given.spec.kwargs.items() if name != "vectorization_mode"}
        make = partial(gymnasium.make_vec, given.spec.id, **{**options, "num_envs": given.num_envs})
    core = type(given)(_copy(given.network), given.datasets, given.num_envs, **dataclasses.asdict(given.config))

    _check_spec(given)
    _check_attributes(core)
    _check_returns(core)
    _check_rows_are_independent(core)
    _check_seeding(core, make)
    judging = partial(core.sibling, core.num_envs, train=False)
    if not core.config.differentiable and not (core.config.rho and core.config.collaboration == "probability"):
        _check_same_step(judging(autoreset_mode="same_step"))
        _check_next_step(judging(autoreset_mode="next_step"))
    _check_disabled(judging(autoreset_mode="disabled", illegal="raise"))
    _check_gradients(core)
    _check_refusals(judging(autoreset_mode="disabled", illegal="raise"))


def legal_actions(env: RoutingVectorEnv, generator: torch.Generator) -> Tensor:
    """Random legal action of every row: integers, or weights on the legal choices that sum to 1."""
    mask = env.action_mask().cpu().to(torch.float64)
    chance = torch.rand(mask.shape, generator=generator, dtype=torch.float64, device="cpu") * mask
    if env.config.action_type == "weights":
        return (chance / chance.sum(-1, keepdim=True)).to(env.network.costs.dtype).to(env.device)
    return chance.argmax(-1).to(env.device)


def _walk(env: RoutingVectorEnv, seed: int, most: int) -> Iterator[tuple]:
    """Take random legal actions until no row waits, but at most so many; yield what `step` returns."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(most):
        if env.state.waiting:
            yield env.step(legal_actions(env, generator))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _must_refuse(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{what} must be refused with a ValueError")


def _check_attributes(env: RoutingVectorEnv) -> None:
    _require(isinstance(env.num_envs, int) and env.num_envs >= 1, f"num_envs must be a positive int: {env.num_envs}")
    spaces = (env.single_observation_space, env.observation_space), (env.single_action_space, env.action_space)
    for single, batched in spaces:
        _require(batch_space(single, env.num_envs) == batched, f"{batched} is not {env.num_envs} times {single}")
    mode = env.metadata.get("autoreset_mode")
    _require(isinstance(mode, AutoresetMode), f"metadata['autoreset_mode'] must be an AutoresetMode, got {mode!r}")
    _require(mode is env.autoreset_mode, f"metadata says {mode}, the attribute {env.autoreset_mode}")
    _require("render_fps" in env.metadata or not env.metadata.get("render_modes"), "render modes need 'render_fps'")
    _require("torch" not in env.metadata, "metadata['torch'] makes Gymnasium's checker call a wrapper it does not have")


def _check_tensor(name: str, value: Any, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    _require(isinstance(value, Tensor), f"{name} must be a torch tensor, got {type(value).__name__}")
    expected, got = (dtype, shape, device), (value.dtype, tuple(value.shape), value.device)
    _require(got == expected, f"{name} must have type, shape and device {expected}, got {got}")


def _check_told(env: RoutingVectorEnv, observation: Any, infos: dict[str, Any], where: str) -> None:
    """Check observation and infos."""
    spaces: dict[str, Any] = env.single_observation_space.spaces  # type: ignore[attr-defined]
    _require(set(observation) == set(spaces), f"{where}: keys must be {sorted(spaces)}, got {sorted(observation)}")
    for key, space in spaces.items():
        dtype = torch.int64 if key in ("task", "depth") else env.network.costs.dtype
        _check_tensor(f"{where}: {key}", observation[key], dtype, (env.num_envs, *space.shape), env.device)
    view = to_numpy(dict(observation))
    _require(env.observation_space.contains(view), f"{where}: the numpy view lies outside {env.observation_space}")
    tensors = (env.network.num_tensors,) if env.network.num_tensors > 1 else ()
    shape = (env.num_envs, *tensors, env.network.num_choices)
    _require("action_mask" in infos, f"{where}: info has no action_mask")
    _check_tensor(f"{where}: action_mask", infos["action_mask"], torch.bool, shape, env.device)
    _require(bool(infos["action_mask"].any(-1).all()), f"{where}: an action mask leaves no choice")
    for key, value in infos.items():
        if key.startswith("_"):
            _require(key[1:] in infos, f"{where}: the mask {key} belongs to nothing")
            _check_tensor(f"{where}: {key}", value, torch.bool, (env.num_envs,), env.device)
        elif isinstance(value, Tensor):
            _require(len(value) == env.num_envs, f"{where}: info {key} must have a row per sub-environment")
            _require(not value.requires_grad, f"{where}: info {key} carries a gradient")


def _steps(env: RoutingVectorEnv) -> int:
    """Number of steps that bring every row out of the network at least once."""
    return max(MIN_STEPS, len(env.network.decisions))


def _check_returns(env: RoutingVectorEnv) -> None:
    observation, infos = env.reset(seed=0)
    _check_told(env, observation, infos, "reset")
    for number, (observation, reward, terminated, truncated, infos) in enumerate(_walk(env, 0, _steps(env)), start=1):
        where = f"step {number}"
        _check_told(env, observation, infos, where)
        _check_tensor(f"{where}: reward", reward, env.network.costs.dtype, (env.num_envs,), env.device)
        _require(bool(reward.isfinite().all()) and not reward.requires_grad, f"{where}: rewards must be plain numbers")
        for name, value in (("terminated", terminated), ("truncated", truncated)):
            _check_tensor(f"{where}: {name}", value, torch.bool, (env.num_envs,), env.device)
        _require(not bool(truncated.any()), f"{where}: routing never truncates: the depth is part of the state")
    if env.config.action_type == "discrete" and env.autoreset_mode is AutoresetMode.SAME_STEP:
        env.reset(seed=0)
        env.action_space.seed(0)
        env.step(env.action_space.sample())  # what a numpy user would do


def _course(steps: Iterable[tuple]) -> list[dict[str, Tensor]]:
    """Observations, rewards and terminations of steps, copied."""
    course = []
    for observation, reward, terminated, _, _ in steps:
        told = {**observation, "reward": reward, "terminated": terminated}
        course.append({name: value.detach().clone() for name, value in told.items()})
    return course


def _check_rows_are_independent(env: RoutingVectorEnv) -> None:
    """Check that row i of a batch goes exactly as the same instance alone with the same actions."""
    quiet = {"train": False, "autoreset_mode": "disabled", "differentiable": False, "illegal": "raise", "rho": 0.0}
    quiet["precision"] = "float32"  # in bfloat16 a batch of another size is rounded otherwise
    batch, alone = env.sibling(env.num_envs, **quiet), env.sibling(1, **quiet)
    instances = torch.randint(
        len(batch.dataset), (batch.num_envs,), generator=torch.Generator().manual_seed(1), device="cpu"
    )
    actions: list[Any] = []
    form = of_one_tensor if batch.network.num_tensors == 1 else lambda action: action
    batch.watchers.append(lambda turn: actions.append(form(turn.action)))
    batch.reset(options={"instances": instances})
    together = _course(_walk(batch, 1, _steps(batch)))
    for row in range(min(batch.num_envs, 4)):
        alone.reset(options={"instances": instances[row : row + 1]})
        single = _course(alone.step(action[row : row + 1]) for action in actions if alone.state.waiting)
        for number, step in enumerate(single):
            for name, value in step.items():
                one, other = value[0].double(), together[number][name][row].double()
                # What cancels out in a number is as large as its neighbours.
                _require(
                    torch.allclose(one, other, rtol=1e-5, atol=1e-5 * max(1.0, float(other.abs().max()))),
                    f"row {row} of a batch differs from the same instance alone: {name} at step {number + 1}",
                )


def _same_course(one: RoutingVectorEnv, seed: int, other: RoutingVectorEnv, other_seed: int) -> bool:
    """Whether two environments give the same observations and rewards for the same random actions."""
    courses = []
    for env, start in ((one, seed), (other, other_seed)):
        first = {name: value.clone() for name, value in env.reset(seed=start)[0].items()}
        courses.append([first, *_course(_walk(env, 2, 2 * len(env.network.decisions)))])
    pairs = zip(*courses, strict=False)
    same = all(torch.equal(step[name], again[name]) for step, again in pairs for name in step)
    return same and len(courses[0]) == len(courses[1])


def _check_seeding(env: RoutingVectorEnv, make: Callable[[], Any] | None) -> None:
    still = env.sibling(env.num_envs, train=False, rho=0.0)  # what has been chosen often goes on beyond a reset
    _require(_same_course(still, 3, still, 3), "the same seed gave another course of events in the same environment")
    distinct = len(still.dataset.image.unique()) > 1
    _require(not distinct or not _same_course(still, 3, still, 4), "another seed gave the same course of events")
    if make is not None:
        fresh = core_of(make()), core_of(make())
        _require(_same_course(fresh[0], 3, fresh[1], 3), "the same seed differs between two fresh environments")


def _check_next_step(env: RoutingVectorEnv) -> None:
    generator, last = torch.Generator().manual_seed(9), len(env.network.decisions)
    env.reset(seed=9)
    left = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
    for _ in range(2 * last + 2):
        observation, reward, terminated, _, _ = env.step(legal_actions(env, generator))
        _require(bool((observation["depth"][left] == 0).all()), "next_step: a row that left begins in the next step")
        _require(not bool(terminated[left].any()), "next_step: a row that begins has not terminated")
        _require(bool((reward[left] == 0).all()), "next_step: the step in which a row begins earns nothing")
        ended = observation["depth"] == last
        _require(torch.equal(ended, terminated), "next_step: depth N and terminated must agree")
        left = terminated


def _check_same_step(env: RoutingVectorEnv) -> None:
    last = len(env.network.decisions)
    env.reset(seed=5)
    for observation, _, terminated, _, infos in _walk(env, 5, 2 * last + 2):
        _require(bool((observation["depth"] < last).all()), "same_step: a row that left was not restarted in the step")
        if not bool(terminated.any()):
            _require("final_obs" not in infos, "same_step: final_obs although nothing ended")
            continue
        for key in ("final_obs", "final_info", "_final_obs", "_final_info", "loss", "correct", "macs", "label"):
            _require(key in infos, f"same_step: an episode ended, but info has no {key}")
        _require(torch.equal(infos["_final_obs"], terminated), "same_step: _final_obs must name the rows that ended")
        depth = infos["final_obs"]["depth"]
        _require(bool((depth[terminated] == last).all()), "same_step: final_obs must be the observation after leaving")
        _require(bool((observation["depth"][terminated] == 0).all()), "same_step: restarted rows begin at decision 0")


def _check_disabled(env: RoutingVectorEnv) -> None:
    last = len(env.network.decisions)
    env.reset(seed=6)
    left = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
    for observation, _, terminated, _, _ in _walk(env, 6, last):
        _require(bool((terminated | ~left).all()), "disabled: a row that left came back without a reset")
        _require(torch.equal(observation["depth"] == last, terminated), "disabled: depth N and terminated must agree")
        left = terminated
    _require(bool(left.all()), f"disabled: rows are still on their way after {last} decisions")
    for empty in (np.zeros(env.num_envs, dtype=bool), torch.zeros(env.num_envs, dtype=torch.bool, device="cpu")):
        _must_refuse(partial(env.reset, options={"reset_mask": empty}), "a reset_mask of all False")
    observation, _ = env.reset(options={"reset_mask": np.arange(env.num_envs) == 0})
    expected = [0] + [last] * (env.num_envs - 1)
    _require(observation["depth"].tolist() == expected, "disabled: reset_mask must restart exactly the rows it names")


def _check_gradients(env: RoutingVectorEnv) -> None:
    kept: dict[str, Any] = {name: getattr(env.config, name) for name in ("split", "action_type", "precision")}
    kept |= {"autoreset_mode": "disabled", "device": str(env.device)}
    for differentiable in (False, True):
        copied = _copy(env.network)
        twin = type(env)(copied, env.datasets, env.num_envs, differentiable=differentiable, **kept)
        observation, _ = twin.reset(seed=7)
        leaked = observation["activation"].requires_grad
        for observation, reward, *_ in _walk(twin, 7, _steps(twin)):
            leaked = leaked or observation["activation"].requires_grad
            _require(not reward.requires_grad, "a reward carries a gradient")
        expected = differentiable and len(twin.network.decisions) > 1
        _require(differentiable or not leaked, "observations carry gradients although differentiable=False")
        _require(leaked or not expected, "differentiable=True, but observations carry no gradient")
        before = [parameter.detach().clone() for parameter in copied.parameters()]
        twin.train_blocks()
        _require(not all(map(torch.equal, before, copied.parameters())), "train_blocks changed no parameter")


def _copy(network: RoutedNetwork) -> RoutedNetwork:
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise AssertionError(f"the network cannot be copied: does it keep tensors with a graph? {error}") from error


def _check_refusals(env: RoutingVectorEnv) -> None:
    env.reset(seed=8)
    good = legal_actions(env, torch.Generator().manual_seed(8))
    before = env.state
    wrong = {"one row too few": good[:-1], "a bool action": torch.ones_like(good, dtype=torch.bool)}
    if good.is_floating_point():
        wrong["weights that are not finite"] = torch.full_like(good, float("nan"))
    else:
        values = {"a choice out of range": env.network.num_choices, "a negative choice": -1}
        wrong |= {what: torch.full_like(good, value) for what, value in values.items()}
        wrong["floating-point choices"] = good.to(torch.float32)
    for what, action in wrong.items():
        _must_refuse(partial(env.step, action), what)
        _require(env.state is before, f"refusing {what} changed the environment")
    env.step(good)


def _check_spec(env: RoutingVectorEnv) -> None:
    if env.spec is None or not isinstance(env.spec.kwargs.get("network", ""), str):
        return  # not registered, or made around an object that no text can describe
    try:
        json.loads(env.spec.to_json())
    except Exception as error:
        raise AssertionError(f"spec.to_json() fails: {error}") from error
    _require("max_episode_steps" not in env.spec.kwargs, "max_episode_steps breaks batched environments")
