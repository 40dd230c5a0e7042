"""One-shot architecture search (Bender et al. 2018): the best of many static mixtures, judged by blocks they share."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import SearchingAgent
from routing_gym.agents.parts.scores import legal_rows, look_up
from routing_gym.envs import Context, Observation, Trajectory, evaluate
from routing_gym.options import count, rate


@dataclasses.dataclass(frozen=True)
class OneShotConfig(AgentConfig):
    """Options of one-shot search.

    Attributes:
        passes: Passes over the split that the blocks shared by all architectures are trained for.
        draws: Architectures that are judged then.
        keep: Chance of every choice to be part of an architecture that is drawn; one at least is, everywhere.
    """

    passes: int = count(10)
    draws: int = count(16)
    keep: float = rate(0.5)


class OneShot(SearchingAgent):
    """One-shot architecture search: train everything at once, keep what does best without the rest, train that anew.

    An architecture is a set of choices for every task, decision and tensor, whose outputs are averaged. First the
    blocks learn with all of them on, and ever more left out at random, another architecture for each batch (path
    dropout, whose rate rises in a straight line to 1 - `keep`). Then `draws` architectures are judged on the validation
    split with these blocks; each task takes that which it is classified best with, of equals the first. With it the
    blocks are trained once more, from their first weights, with a fresh optimiser and schedule.

    Source: Bender et al., "Understanding and Simplifying One-Shot Architecture Search", ICML 2018, the static network
    in Table 4 of Ramachandran and Le (2019). They add outputs up, search for one task, and retrain several.

    Attributes:
        trained: Instances that the blocks were trained on before the search.
    """

    STANDING = ("first", "trained")
    Config = OneShotConfig
    config: OneShotConfig
    action_type = "weights"
    uses_rewards = False
    max_tensors = None

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.in_one_process("draws an architecture for a whole batch")
        self._legal = nn.Buffer(legal_rows(self.env.network.masks), persistent=False)  # also for rows that have left
        self._kept = nn.Buffer(self._legal.repeat(self.num_tasks, 1, 1, 1))
        self.first = self.env.trainer.state_dict()
        self.trained = 0

    @property
    def architecture(self) -> Tensor:
        """Choices `(T, N, M, A)` bool that are on; all that are legal while the search goes on."""
        return self._kept[:, :-1]

    @property
    def progress(self) -> float:
        """How much of the training before the search is done, 0 to 1."""
        return self.trained / (self.config.passes * self.env.trainer.optimization.epoch)

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Weights `(B, M, A)`, equal for all choices that are on; what is on is drawn while the search goes on."""
        searching = self.first is not None and not context.deterministic
        kept = self._drawn(1 - (1 - self.config.keep) * self.progress) if searching else self._kept
        weights = look_up(kept, observation["task"], observation["depth"]).to(observation["activation"].dtype)
        return weights / weights.sum(-1, keepdim=True)

    def update(self, trajectory: Trajectory) -> None:
        """Search once the blocks have had their passes, and begin anew with what was found."""
        if self.first is None:
            return
        self.trained += len(trajectory)
        if self.progress < 1:
            return
        found, best = self._kept.clone(), torch.full((self.num_tasks,), -torch.inf)
        for _ in range(self.config.draws):
            self._kept.copy_(self._drawn(self.config.keep))
            accuracy = torch.tensor(evaluate(self, self.env, split="validation").task_accuracy)
            better = accuracy > best
            best[better], found[better] = accuracy[better], self._kept[better]
        self._kept.copy_(found)
        self.env.trainer.take_back(self.first)
        self.first = None

    def _drawn(self, keep: float) -> Tensor:
        """Architecture `(T, N + 1, M, A)` in which every choice is on with a chance; where none would be, one."""
        numbers = torch.rand(self._kept.shape, generator=self.generator, device=self._kept.device)
        numbers = numbers.masked_fill(~self._legal, torch.inf)
        return (numbers < keep) | (numbers == numbers.amin(-1, keepdim=True))
