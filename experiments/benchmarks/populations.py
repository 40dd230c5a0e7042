"""Seeds of an agent side by side, against the same runs one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from routing_gym.agents import Agent, Population
from routing_gym.experiments.benchmarks.timing import in_turns
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.engine.settings import TrainingSettings, build_agent

SEEDS, BATCHES = 10, 20


def measure_population(name: str, options: Sequence[str], batch: int, rounds: int) -> list[Record]:
    """Return a record of ten seeds on DIGITS-MTL, three layers of ten blocks, 48 wide, twenty batches at a time."""

    def made() -> list[Agent]:
        settings = TrainingSettings(batch_size=batch, device="cpu")
        return [build_agent(name, settings.make_env(name, seed), seed, tuple(options)) for seed in range(SEEDS)]

    alone = made()
    try:
        together = Population(made())
    except ValueError as error:
        raise UsageError(str(error)) from error

    def one_after_the_other() -> None:
        for agent in alone:
            agent.learn(agent.env, BATCHES * batch)

    steps = {"alone": one_after_the_other, "together": lambda: together.learn(BATCHES * batch)}
    seconds = in_turns(steps, -(-rounds // 10))  # a step is twenty batches of ten runs
    ratio = median(theirs / ours for theirs, ours in zip(seconds["alone"], seconds["together"], strict=True))
    of_one = {f"{way}_ms": 1000 * median(times) / SEEDS / BATCHES for way, times in seconds.items()}
    return [{"agent": name, "agent_options": list(options), "seeds": SEEDS, "batch": batch, "speedup": ratio, **of_one}]
