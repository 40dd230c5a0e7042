"""A small network of its own for every decision, and what agents that score by them have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import Agent
from routing_gym.agents.base.options import AgentConfig
from routing_gym.blocks import allow_small_groups, count_macs, first_weights
from routing_gym.envs import Context, Observation, Trajectory
from routing_gym.networks import RoutedNetwork
from routing_gym.options import positive


class Routers(nn.Module):
    """Scores of every choice.

    Args:
        network: Says how wide a decision's observation is, and how many choices it has.
        make: Builds the router of a decision, given its number and the width of what it sees.
        price: Whether the price of computation joins what is seen, in front.
        seed: Of the first weights.
        outputs: How many numbers there are for a row; by default one for each choice.

    Attributes:
        of: The router of each decision.
    """

    def __init__(
        self,
        network: RoutedNetwork,
        make: Callable[[int, int], nn.Module],
        *,
        price: bool,
        seed: int,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.outputs, self.price = outputs or network.num_choices, price
        self.widths = [decision.width for decision in network.decisions]
        with first_weights(seed):
            self.of = nn.ModuleList(make(number, width + price) for number, width in enumerate(self.widths))
        allow_small_groups(self)
        self._macs = [
            count_macs(router, torch.zeros(1, width + price))
            for router, width in zip(self.of, self.widths, strict=True)
        ]

    def forward(self, observation: Observation, context: Context) -> Tensor:
        """Return `(B, outputs)` scores; 0 for choices that a decision does not have, and for rows that have left.

        Args:
            observation: `activation`, `depth` and, where it is seen, `price`.
            context: Says which rows decide. No other row is looked at.
        """
        seen, depth = observation["activation"], observation["depth"]
        if self.price:
            seen = torch.cat([observation["price"].to(seen.dtype), seen], 1)
        if context.sole is not None:
            return self._scores(context.sole, seen)
        active, scores = context.active, seen.new_zeros(len(seen), self.outputs)
        here = depth[active]
        if not len(here):
            return scores
        first, last = torch.stack(here.aminmax()).tolist()
        if first == last and len(here) == len(depth):
            return self._scores(first, seen)
        for number in range(first, last + 1):
            rows = (active & (depth == number)).nonzero().flatten()
            if len(rows):
                scores = scores.index_copy(0, rows, self._scores(number, seen.index_select(0, rows)))
        return scores

    def _scores(self, number: int, seen: Tensor) -> Tensor:
        scores = self.of[number](seen[:, : self.widths[number] + self.price])
        return nn.functional.pad(scores, (0, self.outputs - scores.shape[1]))

    def macs(self, number: int) -> float:
        """Return the multiply-accumulates of the router of a decision."""
        return self._macs[number]


@dataclasses.dataclass(frozen=True)
class RouterConfig(AgentConfig):
    """Options of every agent with routers.

    Attributes:
        learning_rate: Step size of the routers, for good; by default that of the blocks, schedule included, since both
            are one network in the papers.
    """

    learning_rate: float | None = positive(None)


class RouterAgent(Agent):
    """An agent whose routers are trained in the blocks' own backward pass, by an optimiser of the blocks' kind.

    The gradient of their scores goes on into the blocks that made what they see. A subclass sets `routers` by
    `train_routers`.

    Attributes:
        routers: The scores.
        passes: How often it has gone through the split it was trained on, which may have grown meanwhile (`add_task`).
            A fraction: of floats, nine ninths are less than 1, and what begins after a pass begins a batch late.
    """

    Config = RouterConfig
    config: RouterConfig
    needs_gradients = True
    env_kwargs = {"differentiable": True}

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.passes = Fraction(0)

    def train_routers(self, routers: nn.Module) -> None:
        """Take over routers, with an optimiser for them."""
        self.routers = routers.to(self.env.device)
        optimization = self.env.trainer.optimization
        if self.config.learning_rate is not None:
            optimization = dataclasses.replace(optimization, learning_rate=self.config.learning_rate)
        self.optimizer = optimization.build(self.routers)

    def get_extra_state(self) -> Tensor:
        """Return how far it has come, for a checkpoint."""
        return torch.tensor(self.passes.as_integer_ratio())

    def set_extra_state(self, state: Tensor) -> None:
        """Take over how far it has come."""
        self.passes = Fraction(*state.tolist())

    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Count how far it has come; all learning is in the joint backward pass."""
        self.passes += Fraction(len(trajectory), self.env.trainer.optimization.epoch)
        return {}

    def before_step(self, trajectory: Trajectory) -> None:
        """Give the routers the blocks' learning rate."""
        assert self.optimizer is not None
        if self.config.learning_rate is None:
            rate = self.env.trainer.rate
            for group in self.optimizer.param_groups:
                group["lr"] = rate
