"""How many steps per second each face of the environment keeps of the core's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from statistics import fmean
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

    A step is one decision of one instance. With training, the blocks learn from finished routes meanwhile. Means are
    taken, not medians, because only some calls train the blocks.

    Returns:
        A record for each: `face`, `batch`, `blocks`, `train`, `transitions_per_second`; `share_of_core`, of the core of
        256 rows, and `share_of_core_of_as_many_rows`.
    """
    core = partial(gymnasium.make_vec, DEFAULT_ENV, train=train, device="cpu")
    blocks = core_of(core(num_envs=1)).network.num_choices
    faces = {name: (size, step) for name, size, step in _faces(train, rows, blocks)}
    for size in sorted({size for size, _ in faces.values()}):
        draw = partial(torch.randint, blocks, (size,), generator=torch.Generator().manual_seed(0))
        faces[f"core, {size} rows"] = size, _step(core(num_envs=size), draw)
    times = in_turns({name: partial(_several, step) for name, (_, step) in faces.items()}, rounds)
    speeds = {name: CALLS * size / fmean(times[name]) for name, (size, _) in faces.items()}
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
        for name, (size, _) in faces.items()
    ]


def _several(step: Step) -> None:
    for _ in range(CALLS):
        step()


def _step(env: Any, draw: Callable[[], Any], ended: Callable[[Any], bool] = lambda told: False) -> Step:
    """Return a step with random actions, after which an environment whose episodes have ended is reset."""
    env.reset()

    def step() -> None:
        if ended(env.step(draw())):
            env.reset()

    return step


def _faces(train: bool, rows: int, blocks: int) -> Iterator[tuple[str, int, Step]]:
    """Yield name, rows and a step of every face whose library is installed."""
    from routing_gym.envs.sb3 import RoutingVecEnv

    options: dict[str, Any] = {"train": train, "device": "cpu"}
    core = partial(gymnasium.make_vec, DEFAULT_ENV, num_envs=rows, **options)
    disabled = partial(core, autoreset_mode="disabled", replay=True)
    tensors = partial(torch.randint, blocks, (rows,), generator=torch.Generator().manual_seed(0))
    arrays = partial(np.random.default_rng(0).integers, 0, blocks)
    yield "core, disabled with replay", rows, _step(disabled(), tensors, lambda told: bool(told[2].all()))
    yield "RecordEpisodeStatistics", rows, _step(RecordEpisodeStatistics(core()), tensors)
    yield "RecordRoutes", rows, _step(RecordRoutes(core()), tensors)
    yield "ToNumpy", rows, _step(ToNumpy(core()), partial(arrays, rows))
    yield "Stable-Baselines3 RoutingVecEnv", rows, _step(RoutingVecEnv(core()), partial(arrays, rows))
    if find_spec("torchrl"):
        yield "TorchRL GymWrapper, disabled", rows, _torchrl(disabled(), tensors)
    if find_spec("pettingzoo"):
        import pettingzoo

        for name, each in (("PettingZoo parallel, batched", rows // 10), ("PettingZoo parallel", None)):
            env = pettingzoo.make("parallel", DEFAULT_ENV, instances_per_agent=each, **options)
            draw = partial(lambda env, size: {agent: arrays(size) for agent in env.agents}, env, each or ())
            step = _step(env, draw, partial(lambda env, told: not env.agents, env))
            yield name, len(env.possible_agents) * (each or 1), step
        yield "PettingZoo dispatched", 1, _dispatched(pettingzoo.make("aec", DEFAULT_ENV, **options), arrays)
    single = gymnasium.make(DEFAULT_ENV, **options)
    yield "Gymnasium single", 1, _step(single, lambda: int(arrays()), lambda told: told[2])


def _torchrl(core: Any, draw: Callable[[], Any]) -> Step:
    from torchrl.envs import GymWrapper

    env = GymWrapper(core, categorical_action_encoding=True, convert_actions_to_numpy=False)
    env.auto_register_info_dict()
    state = env.reset()

    def step() -> None:
        nonlocal state
        state["action"] = draw()
        _, state = env.step_and_maybe_reset(state)

    return step


def _dispatched(env: Any, draw: Callable[..., Any]) -> Step:
    def act() -> int:
        if env.agent_selection == "dispatcher":  # its move is no step of the core
            env.step(int(draw()) % (len(env.possible_agents) - 1))
        return int(draw())

    return _step(env, act, lambda told: all(env.terminations.values()))
