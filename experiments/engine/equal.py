"""Static rows at equal cost: the width that gives a fixed agent's network the parameters, or the MACs, of another's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from rich.console import Console

from routing_gym.agents import FixedAgent, FixedRoutes, Oracle, RandomAgent, RandomFixed, agent_class
from routing_gym.envs import evaluate
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import say
from routing_gym.experiments.engine.metrics import count_parameters
from routing_gym.experiments.engine.settings import TrainingSettings, build_agent, filled_up, resolved_env_options
from routing_gym.experiments.engine.training import few_of
from routing_gym.networks import BankedNetwork

NETWORKS = ("mlp", "simple-convnet")
"""Networks whose option `width` is that of their blocks."""
COSTS = ("parameters", "macs")

Rows = dict[str, tuple[TrainingSettings, tuple[str, ...]]]
"""How every agent is trained, and its options, by its name."""


def at_equal(cost: str, rows: Rows, console: Console) -> Rows:
    """Rows in which the networks of static agents cost as much as that of the first agent that learns.

    An agent that needs a block per task somewhere has as many there, and one elsewhere; random paths go through the
    blocks there are. The width is the largest at which a network does not cost more, 1 where all do. Costs are the
    metrics `parameters` and `macs` before training, of the first seed.

    Raises:
        UsageError: No agent learns, a network without such a width, or a cost that does not depend on it.
    """
    if cost not in COSTS:
        raise UsageError(f"--equal must be {' or '.join(COSTS)}, got {cost!r}")
    learned = next((name for name in rows if not issubclass(agent_class(name), FixedAgent | RandomAgent)), None)
    if learned is None:
        raise UsageError("--equal compares with the first of --agents that learns, and none of them does")
    most, found = _cost(cost, learned, *rows[learned]), dict(rows)
    for name in filter(is_static, rows):
        training, options = rows[name]
        blocks, width = _form(name, training)
        wide = partial(_with_width, training, blocks)
        width = widest(lambda width: _cost(cost, name, wide(width), options), most, width, name)  # noqa: B023
        found[name] = wide(width), options
        has = f"{_cost(cost, name, *found[name]):,.0f} {cost}"
        say(console, f"{name} with {' '.join((f'width={width}', *blocks))} has {has}, {learned} {most:,.0f}")
    return found


def is_static(name: str) -> bool:
    """Whether an agent is a static row of comparisons: its routes are neither learned, nor given, nor known."""
    kind = agent_class(name)
    return issubclass(kind, FixedAgent) and not issubclass(kind, FixedRoutes | Oracle)


def widest(cost: Callable[[int], float], most: float, width: int, name: str) -> int:
    """Largest width that does not cost more than `most`, by doubling and bisection; 1 where all do."""
    low, high = 0, width
    while (here := cost(high)) <= most:
        if low and here == cost(low):
            raise UsageError(f"--equal: what {name!r} costs does not depend on the width of its network's layers")
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= most else (low, middle)
    return max(low, 1)


def _with_width(training: TrainingSettings, blocks: tuple[str, ...], width: int) -> TrainingSettings:
    return dataclasses.replace(training, env_options=filled_up((f"width={width}", *blocks), training.env_options))


def _cost(cost: str, name: str, training: TrainingSettings, options: tuple[str, ...]) -> float:
    agent = build_agent(name, training.make_env(name, 0), 0, options)
    if cost == "parameters":
        return float(count_parameters(agent))
    agent.env.datasets["test"] = few_of(agent.env.datasets["test"])
    return evaluate(agent, agent.env).macs


def _form(name: str, training: TrainingSettings) -> tuple[tuple[str, ...], int]:
    """Option for the blocks that a static agent uses, none where it may use all; and the width to begin with."""
    kind, asked = agent_class(name), resolved_env_options(training.env, training.env_options)
    if asked["network"] not in NETWORKS:
        raise UsageError(f"--equal searches the width of {' or '.join(NETWORKS)}, the network is {asked['network']}")
    if not issubclass(kind, FixedAgent) or issubclass(kind, RandomFixed):
        return (), asked["width"]
    env = training.make_env(name, 0)
    assert isinstance(env.network, BankedNetwork)
    counts = [1] * len(env.network.banks)
    counts[kind.own] = [env.dataset.num_tasks] * len(counts[kind.own])
    return (f"num_blocks={counts if len(set(counts)) > 1 else counts[0]}",), asked["width"]
