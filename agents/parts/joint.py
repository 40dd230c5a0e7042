"""Agents whose scores are trained in the blocks' own backward pass."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from routing_gym.agents.base.options import AgentConfig
from routing_gym.agents.parts.scores import Scores, ScoringAgent
from routing_gym.envs import Trajectory
from routing_gym.options import positive


class Gate(ScoringAgent):
    """An agent whose weights have a gradient, with an optimiser of its own."""

    action_type = "weights"
    needs_gradients = True

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """Expected cost of computation, mean over instances, where multiply-accumulates have a price.

        The blocks' loss knows nothing of prices, and nothing else trains a gate.
        """
        if not self.env.rewards.priced:
            return None
        return (trajectory.price * trajectory.expected_macs).mean()


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
            rate = self.env.trainer.rate
            for group in self.optimizer.param_groups:
                group["lr"] = rate
