"""One instance at a time, in numpy: the face `gymnasium.make` gives."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from routing_gym.envs.accept import accept_reset_options
from routing_gym.envs.config import PlainSpec
from routing_gym.envs.vector import RoutingVectorEnv


class RoutingEnv(gymnasium.Env[dict[str, Any], Any]):
    """One instance on its way through a routed network: a view of `RoutingVectorEnv` with a single row, see there.

    ## Action Space
    `Discrete(A)` (`MultiDiscrete` or `Box` as in `RoutingVectorEnv`). `action_masks()` gives the mask too.

    ## Observation Space
    `Dict(activation=Box(D,), task=Discrete(T), depth=Discrete(N + 1))`, and `price=Box(1,)` where `EnvConfig` says so.

    ## Starting State
    One instance, drawn uniformly from the split.

    ## Episode End
    `terminated` when the instance leaves the network.

    ## Arguments
    `core`, a `RoutingVectorEnv` of one row in mode `"same_step"`.

    ## Vectorized
    `RoutingVectorEnv`: use it for anything that should be fast.

    ## Version History
    * v0: first version.
    """

    metadata: dict[str, Any] = RoutingVectorEnv.metadata
    spec: Any = PlainSpec()

    def __init__(self, core: RoutingVectorEnv) -> None:
        if core.num_envs != 1 or core.metadata["autoreset_mode"] is not gymnasium.vector.AutoresetMode.SAME_STEP:
            raise ValueError(
                "one instance is the view of a RoutingVectorEnv with num_envs=1 and autoreset_mode='same_step', got "
                f"num_envs={core.num_envs} and {core.config.autoreset_mode!r}: leave them out, or use make_vec"
            )
        self.core = core
        self.render_mode = core.render_mode
        self.observation_space = core.single_observation_space
        self.action_space = core.single_action_space
        self._task = core.dataset.task.cpu()
        self._mask: np.ndarray | None = None
        self._ended = True

    @property
    def network(self) -> torch.nn.Module:
        """The routed network."""
        return self.core.network

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw an instance from `np_random`; `options={"instances": [row]}` takes a given one."""
        accept_reset_options({} if options is None else options, self.core)  # before anything has changed
        if seed is None and self._np_random is None and self.spec is not None and "seed" in self.spec.kwargs:
            seed = self.core.config.seed % 2**64  # one that was not asked for is the system's, as everywhere
        super().reset(seed=seed)
        config, task = self.core.config, self._task
        rows = config.drawn_of(task, self.core.dataset.rows_at(self.core.trainer.passes))
        if config.balance_tasks:
            tasks = task[rows].unique()
            rows = rows[task[rows] == tasks[self.np_random.integers(len(tasks))]]
        instance = [int(rows[self.np_random.integers(len(rows))])]
        core_seed = int(self.np_random.integers(2**31))  # for the augmentation
        observation, info = self.core.reset(seed=core_seed, options={"instances": instance, **(options or {})})
        self._ended = False
        return self._observation(observation), self._info(info)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take one decision."""
        if self._ended:
            raise gymnasium.error.ResetNeeded("the episode is over, or has not begun: call reset()")
        observation, reward, terminated, _, info = self.core.step(np.asarray(action)[None])
        self._ended = bool(terminated[0])
        if self._ended:
            observation = info["final_obs"]
        return self._observation(observation), float(reward[0]), self._ended, False, self._info(info)

    def action_masks(self) -> np.ndarray:
        """Legal choices, bool, flattened over tensors (the form sb3-contrib asks for)."""
        if self._mask is None:
            raise gymnasium.error.ResetNeeded("call reset() first")
        return self._mask.astype(bool).reshape(-1)

    def _observation(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        rows = to_numpy(batch).items()
        return {key: column[0].astype(np.int64 if column.ndim == 1 else np.float32) for key, column in rows}

    def _info(self, batch: dict[str, Any]) -> dict[str, Any]:
        mask = batch["action_mask"][0]
        # Of the instance that has just left, everything is legal and ignored.
        self._mask = (mask | self._ended).to(torch.int8).cpu().numpy()
        told = batch.get("final_info", {}) if self._ended else {}
        if "illegal_action" in batch:
            told = {"illegal_action": batch["illegal_action"], **told}
        return {"action_mask": for_sampling(self._mask), **{key: value[0].item() for key, value in told.items()}}

    def render(self) -> Any:
        """Route as a line (`"ansi"`) or the routing map so far (`"rgb_array"`)."""
        frames = self.core.render()
        return None if frames is None else frames[0]


def for_sampling(mask: np.ndarray) -> Any:
    """A mask in the form `sample` takes: `(A,)`, or tuples of such where many choices are one action."""
    return mask if mask.ndim == 1 else tuple(map(for_sampling, mask))


def to_numpy(value: Any) -> Any:
    """Tensors, in dicts and tuples too, as numpy arrays on the CPU; masks as int8, which `Discrete.sample` takes."""
    if isinstance(value, Tensor):
        value = value.float() if value.dtype == torch.float64 else value  # which no space has
        return value.detach().cpu().numpy()
    if isinstance(value, dict):
        return {key: to_numpy(part.to(torch.int8) if key == "action_mask" else part) for key, part in value.items()}
    return tuple(map(to_numpy, value)) if isinstance(value, tuple) else value
