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

CALLS = 12
"""Calls per turn, so that each face runs from a warm cache as it would alone."""


def measure_faces(train: bool, rounds: int, rows: int = 256) -> list[Record]:
    """Time the core and all faces that are installed, on the CPU, with random actions, in turns.

    A step is one decision of one instance. Every face is compared with the core of 256 rows, and with a core of as many
    rows as its own. With training, the blocks learn from finished routes meanwhile. Means are taken, not medians,
    because only some calls train the blocks.

    Args:
        train: Whether the blocks learn.
        rounds: Turns of 12 calls timed of each.
        rows: Instances of those that take a batch.

    Returns:
        A record for each: `face`, `batch`, `blocks`, `train`, `transitions_per_second`, `share_of_core` and
        `share_of_core_of_as_many_rows`.
    """
    sizes: dict[str, int] = {}
    steps: dict[str, Step] = {}
    for name, size, make in faces(train, rows):
        if make is not None:
            sizes[name], steps[name] = size, make()
    for size in sorted(set(sizes.values()) - {rows}):
        sizes[f"core, {size} rows"], steps[f"core, {size} rows"] = size, _vector(_core(train, size), size)
    times = in_turns({name: partial(_several, step) for name, step in steps.items()}, rounds)
    speeds = {name: CALLS * sizes[name] / statistics.fmean(times[name]) for name in steps}
    alike = {size: f"core, {size} rows" for size in sizes.values()}
    blocks = _choices(_core(train, 1))
    return [
        {
            "face": name,
            "batch": sizes[name],
            "blocks": blocks,
            "train": train,
            "transitions_per_second": speed,
            "share_of_core": speed / speeds[f"core, {rows} rows"],
            "share_of_core_of_as_many_rows": speed / speeds[alike[sizes[name]]],
        }
        for name, speed in speeds.items()
    ]


def _several(step: Step) -> None:
    for _ in range(CALLS):
        step()


def faces(train: bool, rows: int) -> list[tuple[str, int, Callable[[], Step] | None]]:
    """Return name, rows and how to make a step of every face; None where its library is not installed."""
    tasks = core_of(_core(train, 1)).dataset.num_tasks
    each = rows // tasks
    zoo, torchrl = (importlib.util.find_spec(library) is not None for library in ("pettingzoo", "torchrl"))
    return [
        (f"core, {rows} rows", rows, lambda: _vector(_core(train, rows), rows)),
        ("core, disabled with replay", rows, lambda: _disabled(train, rows)),
        ("RecordEpisodeStatistics", rows, lambda: _vector(RecordEpisodeStatistics(_core(train, rows)), rows)),
        ("RecordRoutes", rows, lambda: _vector(RecordRoutes(_core(train, rows)), rows)),
        ("ToNumpy", rows, lambda: _vector(ToNumpy(_core(train, rows)), rows, numpy=True)),
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


def _vector(env: Any, rows: int, numpy: bool = False) -> Step:
    env.reset(seed=0)
    torch_numbers, numpy_numbers, choices = torch.Generator().manual_seed(0), np.random.default_rng(0), _choices(env)
    if numpy:
        return lambda: env.step(numpy_numbers.integers(0, choices, rows))
    return lambda: env.step(torch.randint(choices, (rows,), generator=torch_numbers))


def _disabled(train: bool, rows: int) -> Step:
    env = _core(train, rows, autoreset_mode="disabled", replay=True)
    env.reset(seed=0)
    numbers = torch.Generator().manual_seed(0)

    def step() -> None:
        left = env.step(torch.randint(_choices(env), (rows,), generator=numbers))[2]
        if bool(left.all()):
            env.reset()

    return step


def _sb3(train: bool, rows: int) -> Step:
    from routing_gym.envs.sb3 import RoutingVecEnv

    env = RoutingVecEnv(_core(train, rows))
    env.reset()
    numbers = np.random.default_rng(0)
    return lambda: env.step(numbers.integers(0, _choices(env.core), rows))


def _torchrl(train: bool, rows: int) -> Step:
    from torchrl.envs import GymWrapper

    core = _core(train, rows, autoreset_mode="disabled", replay=True)
    env = GymWrapper(core, categorical_action_encoding=True, convert_actions_to_numpy=False)
    env.auto_register_info_dict()
    state, numbers = env.reset(), torch.Generator().manual_seed(0)

    def step() -> None:
        nonlocal state
        state["action"] = torch.randint(_choices(core), (rows,), generator=numbers)
        _, state = env.step_and_maybe_reset(state)

    return step


def _parallel(train: bool, each: int | None) -> Step:
    import pettingzoo

    env = pettingzoo.make("parallel", DEFAULT_ENV, train=train, instances_per_agent=each, device="cpu")
    env.reset(seed=0)
    numbers, size = np.random.default_rng(0), () if each is None else each

    def step() -> None:
        env.step({agent: numbers.integers(0, _choices(env), size) for agent in env.agents})
        if not env.agents:
            env.reset()

    return step


def _dispatched(train: bool) -> Step:
    import pettingzoo

    env = pettingzoo.make("aec", DEFAULT_ENV, train=train, device="cpu")
    env.reset(seed=0)
    numbers = np.random.default_rng(0)

    def step() -> None:
        if env.agent_selection == "dispatcher":  # its move is no step of the core
            env.step(int(numbers.integers(len(env.possible_agents) - 1)))
        env.step(int(numbers.integers(_choices(env))))
        if all(env.terminations.values()):
            env.reset()

    return step


def _single(train: bool) -> Step:
    env = gymnasium.make(DEFAULT_ENV, train=train, device="cpu")
    env.reset(seed=0)
    numbers = np.random.default_rng(0)

    def step() -> None:
        ended = env.step(int(numbers.integers(_choices(env))))[2]
        if ended:
            env.reset()

    return step
