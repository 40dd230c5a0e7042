"""Random search over fixed routes: the best of as many random draws as one learned run costs."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.base.learning import Report
from routing_gym.agents.fixed import RandomFixed
from routing_gym.agents.parts.bases import SearchingAgent
from routing_gym.envs import Trajectory, evaluate
from routing_gym.options import count

Held = dict[str, Any]
"""Routes, blocks and their optimiser, and the validation accuracy they were judged by."""


@dataclasses.dataclass(frozen=True)
class BestRandomConfig(AgentConfig):
    """Options of random search.

    Attributes:
        draws: Assignments of paths that are tried.
        passes: Passes over the split that the blocks are trained for on each.
    """

    draws: int = count(8)
    passes: int = count(10)


class BestRandom(SearchingAgent, RandomFixed):
    """Random paths, one per task, the best of several draws.

    Blocks are trained on every draw from the same first weights, with a fresh optimiser and schedule, and judged on the
    validation split; then those of the best draw, of equals the first, are trained on as `random-fixed` trains its own.
    Between two calls of `learn` the agent has the best blocks and routes so far, so that of a run that ends early these
    count; before the first draw has been judged, that one.
    """

    STANDING = ("first", "best", "trial", "draw", "trained")
    Config = BestRandomConfig
    config: BestRandomConfig
    uses_rewards = False

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.first: Held | None = self._held()  # None when the search is over
        self.best: Held | None = None
        self.trial: Held | None = None  # what is being tried, while the best so far stands in its place
        self.draw = self.trained = 0  # number of the draw, and instances that it was trained on

    def learn(self, env: Any, episodes: int, callback: Report | None = None) -> Self:
        """Train; see `Agent.learn`. Goes on with the draw that is being tried, and puts the best so far back."""
        if self.trial is not None:
            self._take(self.trial)
            self.trial = None
        try:
            return super().learn(env, episodes, callback)
        finally:
            if self.best is not None:
                self.trial = self._held()
                self._take(self.best)

    def update(self, trajectory: Trajectory) -> None:
        """Judge a draw that has had its passes, and go over to the next one, or in the end to the best."""
        if self.first is None or self.trial is not None:
            return
        self.trained += len(trajectory)
        if self.trained < self.config.passes * self.env.trainer.optimization.epoch:
            return
        accuracy = evaluate(self, self.env, split="validation").accuracy
        if self.best is None or accuracy > self.best["accuracy"]:
            self.best = self._held(accuracy)
        self.draw, self.trained = self.draw + 1, 0
        if self.draw < self.config.draws:
            self._take({**self.first, "routes": self.choose(self.env.network.masks)})
        else:
            self._take(self.best)
            self.first = self.best = None

    def _held(self, accuracy: float = 0.0) -> Held:
        return {"routes": self._routes[:, :-1].clone(), "blocks": self.env.trainer.state_dict(), "accuracy": accuracy}

    def _take(self, held: Held) -> None:
        self._routes[:, :-1] = held["routes"]
        self.env.trainer.take_back(held["blocks"])
