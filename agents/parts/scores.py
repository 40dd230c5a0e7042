"""A number for every choice, from a table or from an approximator; what gradient-trained agents decide by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents.parts.arrangement import Arrangement
from routing_gym.agents.parts.tables import look_up
from routing_gym.blocks import LinearBlocks, OwnedParameter, PartlyUsed, first_weights, plain, run_chain
from routing_gym.envs import Observation

HIDDEN = 64


class Scores(nn.Module, ABC):
    """Numbers for every (agent, row) of an arrangement.

    Args:
        arrangement: Who decides, and what is legal where.
        outputs: How many numbers; by default one per choice of every tensor, −inf where it is not legal.

    Attributes:
        shape: The shape of one row's numbers: `(A,)`, `(M, A)` where M > 1 tensors choose; `(outputs,)` where given.
    """

    def __init__(self, arrangement: Arrangement, outputs: int | None = None) -> None:
        super().__init__()
        self.num_agents, self.num_rows = arrangement.num_agents, arrangement.num_rows
        self.shape = tuple(arrangement.legal.shape[1:]) if outputs is None else (outputs,)
        self.register_buffer("_legal", arrangement.legal if outputs is None else None, persistent=False)
        left = torch.arange(self.num_agents, device=arrangement.legal.device) * self.num_rows + arrangement.left_row
        self.register_buffer("_left", left, persistent=False)

    _legal: Tensor | None
    _left: Tensor

    def forward(self, observation: Observation, agent: Tensor) -> Tensor:
        """Return `(B, *shape)` for rows with an agent, `(B,)`, each."""
        return self._masked(self.raw(observation, agent), observation["depth"])

    def _masked(self, scores: Tensor, row: Tensor) -> Tensor:
        return scores if self._legal is None else scores.masked_fill(~self._legal.index_select(0, row), -torch.inf)

    def _note(self, layer: LinearBlocks, which: Tensor) -> None:
        """Note which networks have been asked; those for rows that have left never learn, so that they may count, too.

        Otherwise there would be no batch in which all are used, which is the fastest to learn from.
        """
        layer.note_use(which)
        layer.note_use(self._left)

    @abstractmethod
    def raw(self, observation: Observation, agent: Tensor) -> Tensor:
        """Return `(B, *shape)` without regard to what is legal."""

    def macs(self) -> float:
        """Return the multiply-accumulates of one row."""
        return 0.0


class TableScores(PartlyUsed, Scores):
    """A number of its own for each (agent, row), of each `shape`; 0 at first. An agent that is not asked keeps its."""

    def __init__(self, arrangement: Arrangement, outputs: int | None = None) -> None:
        super().__init__(arrangement, outputs)
        self.table = nn.Parameter(torch.zeros(self.num_agents, self.num_rows, *self.shape))

    def raw(self, observation: Observation, agent: Tensor) -> Tensor:
        """Look up."""
        self.note_use(agent)
        return look_up(self.table, agent, observation["depth"])

    @property
    def num_parts(self) -> int:
        """How many agents there are."""
        return self.num_agents

    def parts(self) -> list[list[OwnedParameter]]:
        """Return the table of every agent."""
        return [[OwnedParameter(self.table, agent)] for agent in range(self.num_agents)]

    def of_all_rows(self) -> Tensor:
        """Return the whole table, `(agents, rows, *shape)`, −inf where a choice is not legal."""
        return self.table if self._legal is None else self.table.masked_fill(~self._legal, -torch.inf)


class MLPScores(Scores):
    """Two layers, 64 hidden, one network per (agent, row), fed with concat(v, one-hot t) (Appendix 7.3).

    Where the environment shows the price of computation it stands behind v. Where several tensors choose, v describes
    them all, and one network gives the numbers of all of them.

    All networks are stacked and run as one grouped call, like the blocks: agents per task cost one call, not T.

    Args:
        arrangement: As in `Scores`.
        outputs: As in `Scores`.
        inputs: Width of the observed activation.
    """

    def __init__(self, arrangement: Arrangement, outputs: int | None, inputs: int) -> None:
        super().__init__(arrangement, outputs)
        self.num_tasks, self.price = arrangement.num_tasks, arrangement.price
        networks = self.num_agents * self.num_rows
        self.hidden = LinearBlocks(networks, inputs + self.price + self.num_tasks, HIDDEN, relu=True)
        self.output = LinearBlocks(networks, HIDDEN, math.prod(self.shape))

    def raw(self, observation: Observation, agent: Tensor) -> Tensor:
        """Run each row through the network of its agent and decision."""
        seen = with_price(observation) if self.price else observation["activation"]
        x = torch.cat([seen, functional.one_hot(observation["task"], self.num_tasks).to(seen.dtype)], 1)
        which = agent * self.num_rows + observation["depth"]
        for layer in (self.hidden, self.output):
            self._note(layer, which)
        links = [self.hidden.link(), self.output.link()]
        return plain(run_chain(links, x, which.unsqueeze(1).expand(-1, 2))).view(-1, *self.shape)

    def macs(self) -> float:
        """Return what two layers cost."""
        return self.hidden.macs[0] + self.output.macs[0]


class LinearScores(Scores):
    """One linear layer without bias per (agent, row), on the observed activation alone: x·W.

    Where the environment shows the price of computation it stands behind x. Stacked and run as one grouped call, as
    `MLPScores` are.

    Args:
        arrangement: As in `Scores`.
        outputs: As in `Scores`.
        inputs: Width of the observed activation.
    """

    def __init__(self, arrangement: Arrangement, outputs: int | None, inputs: int) -> None:
        super().__init__(arrangement, outputs)
        self.price = arrangement.price
        self.layer = LinearBlocks(self.num_agents * self.num_rows, inputs + self.price, math.prod(self.shape))
        nn.init.zeros_(self.layer.bias).requires_grad_(False)

    def raw(self, observation: Observation, agent: Tensor) -> Tensor:
        """Run each row through the layer of its agent and decision."""
        seen = with_price(observation) if self.price else observation["activation"]
        which = agent * self.num_rows + observation["depth"]
        self._note(self.layer, which)
        return self.layer(seen, which).view(-1, *self.shape)

    def macs(self) -> float:
        """Return what the layer costs."""
        return self.layer.macs[0]


def with_price(observation: Observation) -> Tensor:
    """Return `(B, D + 1)`: the activation and, behind it, the price of computation."""
    activation = observation["activation"]
    return torch.cat([activation, observation["price"].to(activation.dtype)], 1)


def make_scores(
    representation: str, arrangement: Arrangement, inputs: int, seed: int, outputs: int | None = None
) -> TableScores | MLPScores | LinearScores:
    """Build scores; the first weights of an approximator come from a seed of their own."""
    with first_weights(seed):
        if representation == "table":
            return TableScores(arrangement, outputs).to(arrangement.legal.device)
        if representation == "linear":
            return LinearScores(arrangement, outputs, inputs).to(arrangement.legal.device)
        return MLPScores(arrangement, outputs, inputs).to(arrangement.legal.device)
