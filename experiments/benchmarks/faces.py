"""How many steps per second each face of the environment keeps of the core's."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch

from routing_gym.envs import RecordEpisodeStatistics, RecordRoutes, ToNumpy, core_of
from routing_gym.experiments.benchmarks.timing import Step, in_turns
from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.engine.settings import DEFAULT_ENV

Numbers = Callable[[Any, Any], Callable[[], Any]]
"""Draws legal choices of an environment, so many at once."""

CALLS = 12
"""Calls per turn, so that each face runs from a warm cache as it would alone."""


def measure_faces(train: bool, rounds: int, rows: int = 256) -> list[Record]:
    """Time the core and all faces that are installed, on the CPU, with random actions, in turns.

    A step is one decision of one instance. Every face is compared with the core of 256 rows, and with a core of as many
    rows as its own. With training, the blocks learn from finished routes meanwhile. Means are taken, not medians,
    because only some calls train the blocks.

    Returns:
        A record for each: `face`, `batch`, `blocks`, `train`, `transitions_per_second`, `share_of_core` and
        `share_of_core_of_as_many_rows`.
    """
    there = [(name, size, make) for name, size, make in _faces(train, rows) if make is not None]
    for size in sorted({size for _, size, _ in there} - {rows}):
        there.append((f"core, {size} rows", size, partial(_core_step, train, size)))
    steps = {name: partial(_several, make()) for name, _, make in there}
    times = in_turns(steps, rounds)
    speeds = {name: CALLS * size / statistics.fmean(times[name]) for name, size, _ in there}
    blocks = _choices(_core(train, 1))
    return [
        {
            "face": name,
            "batch": size,
            "blocks": blocks,
            "train": train,
            "transitions_per_second": speeds[name],
            "share_of_core": speeds[name] / speeds[f"core, {rows} rows"],
            "share_of_core_of_as_many_rows": speeds[name] / speeds[f"core, {size} rows"],
        }
        for name, size, _ in there
    ]


def _several(step: Step) -> None:
    for _ in range(CALLS):
        step()


def _faces(train: bool, rows: int) -> list[tuple[str, int, Callable[[], Step] | None]]:
    """Return name, rows and how to make a step of every face; None where its library is not installed."""
    tasks = core_of(_core(train, 1)).dataset.num_tasks
    each = rows // tasks
    zoo, torchrl = (importlib.util.find_spec(library) is not None for library in ("pettingzoo", "torchrl"))
    core = partial(_core_step, train, rows)
    return [
        (f"core, {rows} rows", rows, core),
        ("core, disabled with replay", rows, lambda: _disabled(train, rows)),
        ("RecordEpisodeStatistics", rows, lambda: core(RecordEpisodeStatistics)),
        ("RecordRoutes", rows, lambda: core(RecordRoutes)),
        ("ToNumpy", rows, lambda: core(ToNumpy, _numpy_numbers)),
        ("Stable-Baselines3 RoutingVecEnv", rows, lambda: _sb3(train, rows)),
        ("TorchRL GymWrapper, disabled", rows, (lambda: _torchrl(train, rows)) if torchrl else None),
        ("PettingZoo parallel, batched", each * tasks, (lambda: _parallel(train, each)) if zoo else None),
        ("PettingZoo parallel", tasks, (lambda: _parallel(train, None)) if zoo else None),
        ("PettingZoo dispatched", 1, (lambda: _dispatched(train)) if zoo else None),
        ("Gymnasium single", 1, lambda: _single(train)),
    ]


def _core(train: bool, rows: int, **options: Any) -> Any:
    return gymnasium.make_vec(DEFAULT_ENV, num_envs=rows, train=train, device="cpu", **options)


def _choices(env: Any) -> int:
    return core_of(env).network.num_choices


def _step(env: Any, draw: Callable[[], Any], ended: Callable[[Any], bool] = lambda told: False, **seed: int) -> Step:
    """Return a step with random actions, after which an environment whose episodes have ended is reset."""
    env.reset(**seed)

    def step() -> None:
        if ended(env.step(draw())):
            env.reset()

    return step


def _torch_numbers(env: Any, rows: int) -> Callable[[], torch.Tensor]:
    return partial(torch.randint, _choices(env), (rows,), generator=torch.Generator().manual_seed(0))


def _numpy_numbers(env: Any, size: int | tuple[()] | None) -> Callable[[], Any]:
    return partial(np.random.default_rng(0).integers, 0, _choices(env), size)


def _core_step(
    train: bool, rows: int, wrapper: Callable[[Any], Any] = lambda core: core, numbers: Numbers = _torch_numbers
) -> Step:
    env = wrapper(_core(train, rows))
    return _step(env, numbers(env, rows), seed=0)


def _disabled(train: bool, rows: int) -> Step:
    env = _core(train, rows, autoreset_mode="disabled", replay=True)
    return _step(env, _torch_numbers(env, rows), lambda told: bool(told[2].all()), seed=0)


def _sb3(train: bool, rows: int) -> Step:
    from routing_gym.envs.sb3 import RoutingVecEnv

    env = RoutingVecEnv(_core(train, rows))
    return _step(env, _numpy_numbers(env.core, rows))


def _torchrl(train: bool, rows: int) -> Step:
    from torchrl.envs import GymWrapper

    core = _core(train, rows, autoreset_mode="disabled", replay=True)
    env = GymWrapper(core, categorical_action_encoding=True, convert_actions_to_numpy=False)
    env.auto_register_info_dict()
    state, draw = env.reset(), _torch_numbers(core, rows)

    def step() -> None:
        nonlocal state
        state["action"] = draw()
        _, state = env.step_and_maybe_reset(state)

    return step


def _parallel(train: bool, each: int | None) -> Step:
    import pettingzoo

    env = pettingzoo.make("parallel", DEFAULT_ENV, train=train, instances_per_agent=each, device="cpu")
    draw = _numpy_numbers(env, () if each is None else each)
    return _step(env, lambda: {agent: draw() for agent in env.agents}, lambda told: not env.agents, seed=0)


def _dispatched(train: bool) -> Step:
    import pettingzoo

    env = pettingzoo.make("aec", DEFAULT_ENV, train=train, device="cpu")
    draw, numbers = _numpy_numbers(env, None), np.random.default_rng(0)

    def act() -> int:
        if env.agent_selection == "dispatcher":  # its move is no step of the core
            env.step(int(numbers.integers(len(env.possible_agents) - 1)))
        return int(draw())

    return _step(env, act, lambda told: all(env.terminations.values()), seed=0)


def _single(train: bool) -> Step:
    env = gymnasium.make(DEFAULT_ENV, train=train, device="cpu")
    draw = _numpy_numbers(env, None)
    return _step(env, lambda: int(draw()), lambda told: told[2], seed=0)
