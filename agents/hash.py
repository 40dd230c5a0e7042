"""Hash routing (Roller et al. 2021): routes that are random, balanced and for ever."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import Agent, AgentConfig
from routing_gym.agents.parts.scores import legal_rows
from routing_gym.envs import Context, Observation


@dataclasses.dataclass(frozen=True)
class HashConfig(AgentConfig):
    """Options of hash routing; `seed` chooses the hash.

    Attributes:
        by: What is hashed: the `"task"`, of which every choice gets equally many as far as that goes; or the
            `"instance"`, by all that is seen of it at the first decision.
    """

    by: Literal["task", "instance"] = "task"


class Hash(Agent):
    """Hash routing: at every decision a fixed random function of task or instance says which block it takes.

    Nothing is learned, so that nothing has to be explored and nothing collapses: whatever a learned router is worth, it
    is worth more than this. By task every decision deals the tasks out anew, as evenly as they go into its legal
    choices (balanced hashing, Roller et al. 2021, section 3.1). By instance the bits of what is seen are hashed: two
    images that differ anywhere have nothing to do with each other, an image and what augmentation makes of it included.

    Raises:
        ValueError: By instance, where a trained part comes before the first decision: routes would change as it learns.
    """

    Config = HashConfig
    config: HashConfig
    sees_price = False

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        network, by_instance = self.env.network, self.config.by == "instance"
        if by_instance and network.stem_macs:
            raise ValueError(
                f"agent {self.name!r}: this network computes what is seen at the first decision by parameters that "
                "learn, so that the hash of an instance would change: take by='task'"
            )
        numbers = torch.Generator().manual_seed(self.config.seed)
        legal = legal_rows(network.masks, single=True)
        # The legal choices of every decision, each repeated until there are as many as tasks, in an order of its own.
        dealt = torch.zeros(self.num_tasks, len(legal), dtype=torch.int64)
        for number, row in enumerate(legal.cpu()):
            choices = row.nonzero().flatten()
            choices = choices[torch.randperm(len(choices), generator=numbers)]
            order = torch.randperm(self.num_tasks, generator=numbers)
            dealt[order, number] = choices.repeat(self.num_tasks)[: self.num_tasks]
        self._dealt = nn.Buffer(dealt)
        self._legal = nn.Buffer(legal, persistent=False)
        width = network.observation_size if by_instance else 1
        odd = torch.randint(2**62, (2, max(width, len(legal))), generator=numbers) * 2 + 1
        self._salt = nn.Buffer(odd)

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Routes `(B, N)` of tasks."""
        return self._dealt[:, :-1].index_select(0, task) if self.config.by == "task" else None

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Choices `(B,)`."""
        depth, task = observation["depth"], observation["task"]
        if self.config.by == "task":
            return self._dealt[task, depth]
        code, begins = context.carry, context.begins
        if code is None:
            code = self.code(observation["activation"])
        elif begins is not None:
            code = torch.where(begins, self.code(observation["activation"]), code)
        context.carry = code
        mixed = _mixed(code * self._salt[1].index_select(0, depth))
        legal = self._legal.index_select(0, depth)
        place = mixed.remainder(legal.sum(-1)) + 1
        return (legal.cumsum(-1) < place.unsqueeze(-1)).sum(-1)

    def code(self, activation: Tensor) -> Tensor:
        """Hashes `(B,)` int64 of activations `(B, D)`: sums of their bits times odd numbers, modulo 2⁶⁴."""
        form = {2: torch.int16, 4: torch.int32, 8: torch.int64}[activation.itemsize]
        bits = activation.detach().contiguous().view(form)
        return _mixed((bits.long() * self._salt[0, : bits.shape[1]]).sum(-1))


def _mixed(code: Tensor) -> Tensor:
    """Hashes whose upper bits have gone into the lower ones."""
    return (code ^ (code >> 29)) * 0x5851F42D4C957F2D >> 16
