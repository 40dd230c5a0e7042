"""Gates: agents that act by weights and are trained by the blocks' own backward pass."""

from __future__ import annotations

from torch import Tensor

from routing_gym.agents.base.agent import Agent
from routing_gym.envs import Trajectory


class Gate(Agent):
    """An agent whose weights have a gradient: its parameters are trained together with the blocks, by Adam."""

    action_type = "weights"
    needs_gradients = True

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """Return what the routes are expected to cost, where multiply-accumulates have a price; mean over instances.

        The blocks' loss knows nothing of prices, and nothing else trains a gate.
        """
        if not self.env.rewards.priced:
            return None
        return (trajectory.price * trajectory.expected_macs).mean()
