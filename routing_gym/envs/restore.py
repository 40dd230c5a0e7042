"""Going on from a saved state: what is taken from it, and what the environment was asked for."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from routing_gym.envs.config import EnvConfig
from routing_gym.envs.training import OF_OPTIMIZATION
from routing_gym.forms import check_form
from routing_gym.tasks import ShuffledStream

if TYPE_CHECKING:
    from routing_gym.envs.vector import RoutingVectorEnv


def restored(env: RoutingVectorEnv, state: Any, given: Collection[str]) -> tuple[EnvConfig, ShuffledStream]:
    """Put the saved blocks, their optimiser and what is counted back into an environment; nothing if anything is wrong.

    Args:
        env: The environment.
        state: What its `state_dict` gave.
        given: The options it was given when it was made.

    Returns:
        Its options and its order of instances from here on.

    Raises:
        ValueError: The state is of another network, optimiser or data set. Nothing has changed then.
    """
    check_form(state, {"blocks": dict, "stream": dict, "share": env.rewards.share.total}, "env")
    config, told = settled(env.config, state["blocks"].get("optimization"), given)
    stream = copy.deepcopy(env.stream)
    stream.load_state_dict(state["stream"])
    env.trainer.load_state_dict(state["blocks"], config.optimization(len(env.dataset), env.num_envs))
    env.rewards.share.total = state["share"].to(env.device, copy=True)
    if told:
        warnings.warn(f"the blocks go on with {'; '.join(told)}", stacklevel=3)
    return config, stream


def settled(config: EnvConfig, saved: Any, given: Collection[str]) -> tuple[EnvConfig, list[str]]:
    """Settle how blocks go on learning: as the environment was asked to, else as they have learned before.

    Args:
        config: The options of the environment.
        saved: How the blocks were trained, the options `OF_OPTIMIZATION`.
        given: Which options the environment was given; who gives a `schedule` gives its `schedule_epochs`.

    Returns:
        The options from here on, and in words each that differs.

    Raises:
        ValueError: Options of the wrong form, of another optimiser, or that do not go together.
    """
    check_form(saved, dict.fromkeys(OF_OPTIMIZATION, object), "blocks.optimization")
    try:
        before = EnvConfig.of("the environment", dict(saved))
    except (ValueError, TypeError) as error:
        raise ValueError(f"blocks.optimization: {error}") from error
    if before.optimizer != config.optimizer:
        raise ValueError(
            f"the blocks were trained with optimizer={before.optimizer!r}, here it is {config.optimizer!r}: make the "
            f"environment with optimizer={before.optimizer!r}"
        )
    bound = {*given, "schedule_epochs"} if "schedule" in given else given
    taken, told = {}, []
    for option in OF_OPTIMIZATION:
        here, there = (_as_tuple(getattr(part, option)) for part in (config, before))
        if here != there and option in bound:
            told.append(f"{option}={here!r}, as asked for here, instead of {there!r}, as saved")
        elif here != there:
            taken[option] = there
            told.append(f"{option}={there!r}, as saved, instead of {here!r}, the default")
    return dataclasses.replace(config, **taken), told


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
