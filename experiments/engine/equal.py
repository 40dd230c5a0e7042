"""Static rows at equal cost: the width that gives a fixed agent's network the parameters, or the MACs, of another's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rich.console import Console

from routing_gym.agents import FixedAgent, FixedRoutes, Oracle, RandomAgent, RandomFixed, agent_class
from routing_gym.envs import evaluate
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import say
from routing_gym.experiments.engine.metrics import count_parameters
from routing_gym.experiments.engine.settings import TrainingSettings, build_agent, filled_up, resolved_env_options
from routing_gym.experiments.engine.training import few_of
from routing_gym.networks import BankedNetwork

NETWORKS = ("mlp", "simple-convnet")  # whose option `width` is that of their blocks

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
    kinds = {name: agent_class(name) for name in rows}
    learned = next((name for name, kind in kinds.items() if not issubclass(kind, FixedAgent | RandomAgent)), None)
    if learned is None:
        raise UsageError("--equal compares with the first of --agents that learns, and none of them does")
    most, found = cost_of(cost, learned, *rows[learned]), dict(rows)
    for name, kind in kinds.items():
        if not issubclass(kind, FixedAgent) or issubclass(kind, FixedRoutes | Oracle):
            continue
        training, options = rows[name]
        training = with_options(training, equal_form(cost, most, name, training, options))
        found[name] = training, options
        form = " ".join(option for option in training.env_options if option.startswith(("width=", "num_blocks=")))
        say(console, f"{name} with {form} has {cost_of(cost, name, *found[name]):,.0f} {cost}, {learned} {most:,.0f}")
    return found


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


def cost_of(cost: str, name: str, training: TrainingSettings, options: tuple[str, ...] = ()) -> float:
    """Parameters or multiply-accumulates of an agent and its network, before training."""
    agent = build_agent(name, training.make_env(name, 0), 0, options)
    if cost == "parameters":
        return count_parameters(agent)
    agent.env.datasets["test"] = few_of(agent.env.datasets["test"])
    return evaluate(agent, agent.env).macs


def with_options(training: TrainingSettings, options: Sequence[str]) -> TrainingSettings:
    """The same training with other options of the environment, as NAME=VALUE."""
    return dataclasses.replace(training, env_options=filled_up(options, training.env_options))


def equal_form(
    cost: str, most: float, name: str, training: TrainingSettings, options: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Options, `width` and where it matters `num_blocks`, of a fixed agent's widest network that costs up to `most`.

    Raises:
        UsageError: A network without such a width, or a cost that does not depend on it.
    """
    asked, kind, blocks = resolved_env_options(training.env, training.env_options), agent_class(name), []
    assert issubclass(kind, FixedAgent)
    if asked["network"] not in NETWORKS:
        raise UsageError(f"--equal searches the width of {' or '.join(NETWORKS)}, the network is {asked['network']}")
    if not issubclass(kind, RandomFixed):
        env = training.make_env(name, 0)
        assert isinstance(env.network, BankedNetwork)
        counts = [1] * len(env.network.banks)
        counts[kind.own] = [env.dataset.num_tasks] * len(counts[kind.own])
        blocks = [f"num_blocks={counts if len(set(counts)) > 1 else counts[0]}"]

    def cost_at(width: int) -> float:
        return cost_of(cost, name, with_options(training, (f"width={width}", *blocks)), options)

    return f"width={widest(cost_at, most, asked['width'], name)}", *blocks
