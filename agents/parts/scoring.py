"""Agents that decide by scores, and those whose scores are trained in the blocks' own backward pass."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from routing_gym.agents.base.agent import Agent, AgentConfig
from routing_gym.agents.parts.scores import Scores
from routing_gym.envs import Trajectory
from routing_gym.options import positive


class ScoringAgent(Agent):
    """An agent that decides by its `scores`; where they are None, without looking at the instance."""

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.scores: Any = None

    def macs(self, decision: int) -> float:
        """Multiply-accumulates of the scores."""
        return 0.0 if self.scores is None else self.scores.macs(decision)

    @property
    def sees_price(self) -> bool:
        """Whether the scores depend on the price."""
        return self.scores is not None and self.scores.sees_price


class Gate(ScoringAgent):
    """An agent whose weights have a gradient, with an optimiser of its own."""

    action_type = "weights"
    needs_gradients = True

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """Expected cost of computation, mean over instances, where that has a price: the blocks' loss knows of none."""
        return (trajectory.price * trajectory.expected_macs).mean() if self.env.rewards.priced else None


@dataclasses.dataclass(frozen=True)
class RouterConfig(AgentConfig):
    """Options of every agent that is one network with the blocks.

    Attributes:
        learning_rate: Step size of the scores, for good; by default that of the blocks, schedule included.
    """

    learning_rate: float | None = positive(None)


class RouterAgent(ScoringAgent):
    """An agent that is one network with the blocks, trained by an optimiser of the blocks' kind.

    The gradient of the scores goes on into the blocks that made what they see.
    """

    Config = RouterConfig
    config: RouterConfig
    needs_gradients = True
    env_kwargs = {"differentiable": True}

    def train_scores(self, scores: Scores) -> None:
        """Decide by scores, and make an optimiser for them."""
        self.scores = scores.to(self.env.device)
        optimization = self.env.trainer.optimization
        if self.config.learning_rate is not None:
            optimization = dataclasses.replace(optimization, learning_rate=self.config.learning_rate)
        self.optimizer = optimization.build(self.scores)

    def before_step(self, trajectory: Trajectory) -> None:
        """Follow the blocks' learning rate."""
        assert self.optimizer is not None
        if self.config.learning_rate is None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.env.trainer.rate
