"""Wrappers for vector environments: they record in torch, on the device; the last one gives numpy.

They see what is stepped through them; `agent.learn` and `evaluate` go to the core.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from torch import Tensor

from routing_gym.envs.routes import RouteLog, taken
from routing_gym.envs.single import to_numpy
from routing_gym.envs.turns import Turn
from routing_gym.envs.vector import core_of


class _PerEpisode(VectorWrapper, ABC):
    """Knows which rows have just ended an episode, and which begin one; its environment's step returns tensors."""

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.core = core_of(env)
        # Rows that wait for a reset: in mode "disabled", where they go on being `terminated`, and in "next_step".
        self._idle = torch.zeros(self.num_envs, dtype=torch.bool, device=self.core.device)

    @abstractmethod
    def _begin(self, rows: Tensor) -> None:
        """Forget rows, `(num_envs,)` bool, which begin anew."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all rows, or those of `options["reset_mask"]`."""
        returned = super().reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        rows = torch.ones_like(self._idle) if mask is None else torch.as_tensor(mask, device=self.core.device)
        self._idle = self._idle & ~rows
        self._begin(rows)
        return returned

    def _note_end(self, terminated: Tensor) -> Tensor:
        """Rows whose episode has ended in this step, `(num_envs,)` bool."""
        ended = terminated & ~self._idle
        if self.core.autoreset_mode is AutoresetMode.DISABLED:
            self._idle = self._idle | ended
        if self.core.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._begin(self._idle)  # they have begun anew in this step
            self._idle = ended
        return ended


class RecordEpisodeStatistics(_PerEpisode):
    """Return, length and time of every episode when it ends, on a `RoutingVectorEnv` whose step returns tensors.

    As Gymnasium's wrapper of this name, on the device: `info["episode"]` holds `r`, the sum of rewards, `l`, the number
    of decisions, and `t`, the seconds since the episode began, `(num_envs,)` each, zeros in rows that did not end;
    `info["_episode"]` says which did.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self._return = torch.zeros(self.num_envs, device=self.core.device)
        self._length = torch.zeros(self.num_envs, dtype=torch.int64, device=self.core.device)
        self._since = torch.zeros(self.num_envs, dtype=torch.float64, device=self.core.device)

    def _begin(self, rows: Tensor) -> None:
        self._return = self._return.masked_fill(rows, 0)
        self._length = self._length.masked_fill(rows, 0)
        self._since = self._since.masked_fill(rows, time.perf_counter())

    def step(self, actions: Any) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step, and add `episode` and `_episode` to the infos if an episode has ended."""
        observation, reward, terminated, truncated, infos = super().step(actions)
        self._return = self._return + reward
        self._length = self._length + (~self._idle).to(torch.int64)
        ended = self._note_end(terminated)
        if "loss" in infos:  # an episode has ended: known without asking the device
            values = {"r": self._return, "l": self._length, "t": time.perf_counter() - self._since}
            infos["episode"] = {key: torch.where(ended, value, 0) for key, value in values.items()}
            infos["_episode"] = ended
            if self.core.autoreset_mode is AutoresetMode.SAME_STEP:
                self._begin(ended)
        return observation, reward, terminated, truncated, infos


class RecordRoutes(_PerEpisode):
    """Choices that the instances of each task took in episodes that have ended; `routing_map(counts)` draws them.

    Args:
        env: A `RoutingVectorEnv`, possibly wrapped, whose step still returns tensors.
        keep: Keep every route in `routes` as well, which copies it to the host.

    Attributes:
        counts: `(T, N, A)` int64, instances of each task by decision and choice; of weights, their sum.
        routes: `(task, [(decision, action), ...])` of every episode in the order in which they ended.
    """

    def __init__(self, env: VectorEnv, keep: bool = False) -> None:
        super().__init__(env)
        network, weights = self.core.network, self.core.config.action_type == "weights"
        places = len(network.decisions) + 1, network.num_choices  # the last for rows that have left
        dtype = torch.get_default_dtype() if weights else torch.int64
        self._under_way = torch.zeros(self.num_envs, *places, dtype=dtype, device=self.core.device)
        self._counts = self._under_way.new_zeros(self.core.dataset.num_tasks, *places)
        self._row = torch.arange(self.num_envs, device=self.core.device)
        self._turn: Turn | None = None
        self._log = RouteLog(network, self.num_envs, weights, self.core.device) if keep else None
        self.routes: list[tuple[int, list[tuple[int, Any]]]] = []

    @property
    def counts(self) -> Tensor:
        """`(T, N, A)`."""
        return self._counts[:, :-1]

    def clear(self) -> None:
        """Forget all episodes that have ended."""
        self._counts.zero_()
        self.routes = []

    def _watch(self, turn: Turn) -> None:
        self._turn = turn

    def _begin(self, rows: Tensor) -> None:
        self._under_way.masked_fill_(rows.view(-1, 1, 1), 0)
        if self._log is not None:
            self._log.clear(rows.nonzero().flatten())

    def step(self, actions: Any) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step, and count the choices; where masked ones are replaced, what they were replaced by."""
        self.core.watchers.append(self._watch)  # now alone: a turn of a batch that is trained holds its graph
        try:
            observation, reward, terminated, truncated, infos = super().step(actions)
        finally:
            self.core.watchers.remove(self._watch)
            turn, self._turn = self._turn, None
        if turn is None:  # all rows have begun anew
            self._note_end(terminated)
            return observation, reward, terminated, truncated, infos
        self._under_way[self._row, turn.seen.decision] += taken(turn).to(self._under_way.dtype)
        if self._log is not None:
            self._log.write(turn)
        ended = self._note_end(terminated)
        if "loss" in infos:
            self._counts.index_add_(0, turn.seen.task, self._under_way * ended.view(-1, 1, 1))
            if self._log is not None:
                tasks, routes = turn.seen.task.tolist(), self._log.routes()
                self.routes += [(tasks[row], routes[row]) for row in ended.nonzero().flatten().tolist()]
            self._begin(ended)
        return observation, reward, terminated, truncated, infos


class ToNumpy(VectorWrapper):
    """Gives numpy arrays and takes them, so that Gymnasium's own vector wrappers can go on top, see `to_numpy`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; observations and infos in numpy."""
        return to_numpy(super().reset(seed=seed, options=options))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step; all that comes back in numpy."""
        return to_numpy(super().step(actions))
