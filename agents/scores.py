"""A score for every choice, from a table or from an approximator; what gradient-trained agents decide by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents.tabular import agents_of, look_up
from routing_gym.blocks import LinearBlocks
from routing_gym.envs import Observation, RoutingVectorEnv

REPRESENTATIONS = ("table", "mlp")
HIDDEN = 64


class Scores(nn.Module, ABC):
    """Scores `(B, A)` of what is legal, −inf for the rest.

    Args:
        env: The environment.
        arrangement: `"per_task"` or `"single"`.
    """

    def __init__(self, env: RoutingVectorEnv, arrangement: str) -> None:
        super().__init__()
        network = env.network
        self.arrangement, self.num_tasks, self.num_decisions = (
            arrangement,
            env.dataset.num_tasks,
            len(network.decisions),
        )
        self.num_agents = self.num_tasks if arrangement == "per_task" else 1
        masks = network.masks[:, 0]
        # One row more, for rows that have left: everything is legal there, and ignored.
        self.register_buffer("_legal", torch.cat([masks, torch.ones_like(masks[:1])]), persistent=False)

    _legal: Tensor

    def forward(self, observation: Observation) -> Tensor:
        """Return `(B, A)`."""
        scores = self.raw(observation, agents_of(observation, self.arrangement))
        return scores.masked_fill(~self._legal.index_select(0, observation["depth"]), -torch.inf)

    @abstractmethod
    def raw(self, observation: Observation, agent: Tensor) -> Tensor:
        """Return `(B, A)` without regard to what is legal."""

    def macs(self, decision: int) -> float:
        """Return the multiply-accumulates of one row."""
        return 0.0


class TableScores(Scores):
    """One number per (agent, decision, choice), 0 at first."""

    def __init__(self, env: RoutingVectorEnv, arrangement: str) -> None:
        super().__init__(env, arrangement)
        self.table = nn.Parameter(torch.zeros(self.num_agents, self.num_decisions + 1, env.network.num_choices))

    def raw(self, observation: Observation, agent: Tensor) -> Tensor:
        """Look up."""
        return look_up(self.table, agent, observation["depth"])

    def of_all_decisions(self, task: Tensor) -> Tensor:
        """Return `(B, N, A)`: the scores of every decision, for rows of known tasks."""
        agent = agents_of({"task": task}, self.arrangement)
        return self.table[:, :-1].index_select(0, agent).masked_fill(~self._legal[:-1], -torch.inf)


class MLPScores(Scores):
    """Two layers, 64 hidden, one network per (agent, decision), fed with concat(v, one-hot t) (Appendix 7.3).

    All networks are stacked and run as one grouped call, like the blocks: agents per task cost one call, not T.
    """

    def __init__(self, env: RoutingVectorEnv, arrangement: str) -> None:
        super().__init__(env, arrangement)
        inputs = env.network.observation_size + self.num_tasks
        networks = self.num_agents * (self.num_decisions + 1)
        self.hidden = LinearBlocks(networks, inputs, HIDDEN, relu=True)
        self.output = LinearBlocks(networks, HIDDEN, env.network.num_choices)

    def raw(self, observation: Observation, agent: Tensor) -> Tensor:
        """Run each row through the network of its agent and decision."""
        task = functional.one_hot(observation["task"], self.num_tasks).to(observation["activation"].dtype)
        x = torch.cat([observation["activation"], task], 1)
        which = agent * (self.num_decisions + 1) + observation["depth"]
        return self.output(self.hidden(x, which), which)

    def macs(self, decision: int) -> float:
        """Return what two layers cost."""
        return self.hidden.macs[0] + self.output.macs[0]


def make_scores(representation: str, env: RoutingVectorEnv, arrangement: str, seed: int) -> Any:
    """Build scores; the first weights of an approximator come from a seed of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TableScores(env, arrangement) if representation == "table" else MLPScores(env, arrangement)
