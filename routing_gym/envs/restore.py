"""An environment that goes on from a saved state."""

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
    """Put the saved blocks, their optimiser and running shares back into an environment.

    Options of the optimisation that were given to this environment stay, the others become those of the state; a
    warning tells what differs.

    Args:
        env: The environment.
        state: What its `state_dict` gave.
        given: The options it was given when it was made; who gives a `schedule` gives its `schedule_epochs`.

    Returns:
        Its options and its order of instances from here on.

    Raises:
        ValueError: A state of the wrong form, or of another network, optimiser or data set; or options that do not go
            together. Nothing has changed then.
    """
    check_form(state, {"blocks": dict, "stream": dict, "share": env.rewards.share.total}, "env")
    saved, config = state["blocks"].get("optimization"), env.config
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
    config = dataclasses.replace(config, **taken)
    stream = copy.deepcopy(env.stream)
    stream.load_state_dict(state["stream"])
    env.trainer.load_state_dict(state["blocks"], config.optimization(len(env.dataset), env.num_envs))
    env.rewards.share.total = state["share"].to(env.device, copy=True)
    if told:
        warnings.warn(f"the blocks go on with {'; '.join(told)}", stacklevel=3)
    return config, stream


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
