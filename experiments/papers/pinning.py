"""Options that protocols leave to their defaults, as these were when the protocol was written."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.records import write_text
from routing_gym.experiments.engine.run import Run
from routing_gym.experiments.engine.settings import (
    TrainingSettings,
    config_text,
    filled_up,
    from_toml,
    parse_options,
)

PINNED = Path(__file__).with_name("pinned.toml")


@functools.cache
def known() -> dict[str, Any]:
    """Options by environment and network, and by agent."""
    return from_toml(tomllib.loads(PINNED.read_text(encoding="utf-8")))


def pinned(
    env: str, env_options: tuple[str, ...], agent: str, agent_options: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Options of environment and agent as NAME=VALUE, those that are not given as they were pinned."""
    decided = TrainingSettings(env, env_options=_last(env_options)).decided_by(agent)
    of_agent = known().get("agent", {}).get(agent, {})
    env_options = _last(env_options)
    for _ in range(2):  # the second time under the name of the network, where the first has pinned that
        of_env = known().get("env", {}).get(_place(env, env_options), {})
        env_options = filled_up(env_options, {name: value for name, value in of_env.items() if name not in decided})
    return env_options, filled_up(_last(agent_options), of_agent)


def pin(runs: Iterable[Run]) -> int:
    """Pin what runs leave to defaults and is not pinned yet; return how many options that were."""
    tables: dict[str, dict[str, dict[str, Any]]] = known()
    added = 0
    for run in runs:
        training, asked = run.training, run.asked
        for kind, place, given, options in (
            ("env", _place(training.env, training.env_options), training.env_options, asked["env_options"]),
            ("agent", run.agent, run.agent_options, asked["agent_options"]),
        ):
            table = tables[kind].setdefault(place, {})
            decided = {*parse_options(kind, given), *(training.decided_by(run.agent) if kind == "env" else ())}
            for name in sorted(options.keys() - decided - table.keys()):
                table[name] = options[name]
                added += 1
    write_text(PINNED, config_text(tables))
    known.cache_clear()
    return added


def _place(env: str, env_options: tuple[str, ...]) -> str:
    """Where options of an environment are pinned: under its name and that of its network, where one is named."""
    network = parse_options("env_options", _last(env_options)).get("network", "")
    if not isinstance(network, str):
        raise UsageError(f"a protocol names its network, got {network!r}")
    return f"{env} {network}".strip()


def _last(options: tuple[str, ...]) -> tuple[str, ...]:
    """Leave of options of one name the last."""
    return tuple({option.partition("=")[0]: option for option in options}.values())
