"""The face for Stable-Baselines3, which knows vector environments of its own kind only.

Not imported by `routing_gym`, because Stable-Baselines3 takes its time and brings pandas: import it from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from routing_gym.envs.evaluation import EVALUATION_BATCH
from routing_gym.envs.single import to_numpy
from routing_gym.envs.vector import core_of

Indices = None | int | Iterable[int]


class RoutingVecEnv(VecEnv):
    """`RoutingVectorEnv` as Stable-Baselines3 wants it: numpy, and a dictionary of infos for each row.

    Rows are restarted as they finish (mode `"same_step"`), and the blocks are trained by replaying finished routes.
    `infos[i]` holds `illegal_action` (1 where a masked choice was replaced by the first legal one) and, of an instance
    that has left, `loss`, `correct`, `macs`, `label`, `final_reward` and `terminal_observation`. Masks for sb3-contrib
    are given by `action_masks()`.

    Args:
        env: An id, or an environment of routing_gym in mode `"same_step"`, or a face of one.
        num_envs: Instances routed together, where an id is given, as are `options` of the environment.

    Attributes:
        core: The environment this is a face of.
        spec: Its `EnvSpec`, if it was made by an id.

    Raises:
        ValueError: An environment in another mode, whose actions are weights, or that is not of routing_gym; or options
            beside an environment.
    """

    def __init__(self, env: Any, num_envs: int | None = None, **options: Any) -> None:
        if isinstance(env, str):
            env = gymnasium.make_vec(env, num_envs=1 if num_envs is None else num_envs, **options)
        elif num_envs is not None or options:
            raise ValueError("num_envs and options are for ids: an environment that is handed over has its own already")
        self.core = core = core_of(env)
        if (mode := core.config.autoreset_mode) != "same_step":
            raise ValueError(f"RoutingVecEnv needs an environment made with autoreset_mode='same_step', got {mode!r}")
        if core.config.action_type != "discrete":
            raise ValueError(f"RoutingVecEnv is for action_type='discrete', got {core.config.action_type!r}")
        self.spec = core.spec
        super().__init__(core.num_envs, core.single_observation_space, core.single_action_space)
        self._actions: Any = None

    def reset(self) -> dict[str, np.ndarray]:
        """Draw new instances: in a new order after `seed(seed)`, and with the core's reset options, if any were set."""
        observation, _ = self.core.reset(seed=self._seeds[0], options=self._options[0])
        self._reset_seeds()
        self._reset_options()
        return to_numpy(observation)

    def set_options(self, options: Any = None) -> None:
        """Set the options of the next reset, those of `RoutingVectorEnv.reset`; they are of all rows together."""
        if not (options is None or isinstance(options, dict)):
            raise ValueError(f"options must be one dictionary for all rows, got {type(options).__name__}")
        self._options = [dict(options or {})] * self.num_envs

    def step_async(self, actions: np.ndarray) -> None:
        """Note the choices of all rows."""
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take one decision per row; rows that leave are restarted. Rewards `(num_envs,)` are float32."""
        observation, reward, terminated, _, info = self.core.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if "illegal_action" in info:
            for row, illegal in zip(infos, info["illegal_action"].tolist(), strict=True):
                row["illegal_action"] = illegal
        if "final_info" in info:
            terminal = to_numpy(info["final_obs"])
            columns = {key: value.tolist() for key, value in info["final_info"].items()}
            for number in terminated.nonzero().flatten().tolist():
                infos[number] |= {key: column[number] for key, column in columns.items()}
                infos[number]["TimeLimit.truncated"] = False
                infos[number]["terminal_observation"] = {key: value[number] for key, value in terminal.items()}
        return to_numpy(observation), reward.cpu().numpy(), terminated.cpu().numpy(), infos

    def action_masks(self) -> np.ndarray:
        """Legal choices, bool, `(num_envs, A)`, `(num_envs, M * A)` where M tensors choose."""
        return self.core.action_mask().reshape(self.num_envs, -1).cpu().numpy()

    def eval_env(self, split: str = "test", num_envs: int | None = None) -> VecMonitor:
        """An environment over the same network for `evaluate_policy` and `EvalCallback`, which trains no blocks.

        Every reset begins the split in the same order, so that `n_eval_episodes=len(eval_env.core.dataset)` judges each
        instance once where all leave at the same depth. There is no collaboration reward. `num_envs` is the largest
        divisor of the split's size up to 1024 by default.
        """
        size = len(self.core.datasets[split]) if split in self.core.datasets else 1
        if num_envs is None:
            num_envs = next(rows for rows in range(min(size, EVALUATION_BATCH), 0, -1) if size % rows == 0)
        options = {"train": False, "precision": "float32", "rho": 0.0, "draw_tasks": None, "balance_tasks": False}
        return VecMonitor(_EvalVecEnv(self.core.sibling(num_envs, split=split, **options)))

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Value of an attribute, once for each row asked for: rows have nothing of their own."""
        owner = self if attr_name == "action_masks" else self.core
        return [getattr(owner, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the environment, of all rows together."""
        if len(self._rows(indices)) != self.num_envs:
            raise ValueError(f"rows have no attributes of their own: set {attr_name!r} for all of them")
        setattr(self.core, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any) -> list:
        """Call `action_masks` or `render`, row by row."""
        if method_name not in ("action_masks", "render"):
            raise AttributeError(
                f"rows have the methods 'action_masks' and 'render', got {method_name!r}: what concerns all rows is a "
                "method of RoutingVecEnv.core"
            )
        results = self.action_masks() if method_name == "action_masks" else self._pictures()
        return [results[row] for row in self._rows(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Indices = None) -> list[bool]:
        """False: rows are not wrapped."""
        return [False] * len(self._rows(indices))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The routing map, which is one for all rows."""
        return list(self._pictures()[:1])

    def close(self) -> None:
        """Close the core."""
        self.core.close()

    def _pictures(self) -> Sequence[Any]:
        return self.core.render() or (None,) * self.num_envs

    def _rows(self, indices: Indices) -> list[int]:
        return list(self._get_indices(indices))


class _EvalVecEnv(RoutingVecEnv):
    """Every evaluation sees the same instances in the same order."""

    def reset(self) -> dict[str, np.ndarray]:
        if self._seeds[0] is None:
            self.seed(self.core.config.seed)
        return super().reset()
