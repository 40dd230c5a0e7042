"""Agents that do not learn: the static networks every routed one is compared with, and random routes."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from routing_gym.agents.base.agent import Agent
from routing_gym.agents.base.options import AgentConfig
from routing_gym.agents.parts.tables import legal_rows, look_up, sample, uniform_policy
from routing_gym.envs import Context, Observation


class FixedAgent(Agent):
    """Sends every instance of a task the same way, for ever."""

    max_tensors = None
    _routes: Tensor

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        routes = self.choose(self.env.network.masks)
        # One row more, for rows that have left.
        self.register_buffer("_routes", torch.cat([routes, torch.zeros_like(routes[:, :1])], 1))

    @abstractmethod
    def choose(self, masks: Tensor) -> Tensor:
        """Choices `(T, N, M)` int64 of each task at each decision for each tensor.

        Args:
            masks: `(N, M, A)` bool: what is legal.
        """

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Choices `(B, M)` of the tasks."""
        return look_up(self._routes, observation["task"], observation["depth"])

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Routes `(B, N, M)` of the tasks."""
        return self._routes[:, :-1].index_select(0, task)

    @property
    def sees_price(self) -> bool:
        """False: it does not look at the instance."""
        return False

    @property
    def routes(self) -> Tensor:
        """`(T, N)` int64, `(T, N, M)` where M > 1: the choice of each task at each decision."""
        routes = self._routes[:, :-1]
        return routes.squeeze(2) if self.num_tensors == 1 else routes

    def first_block(self, masks: Tensor) -> Tensor:
        """Choices `(T, N, M)`: the first legal one for every task."""
        return masks.to(torch.uint8).argmax(-1).repeat(self.num_tasks, 1, 1)

    def own_block(self, masks: Tensor) -> Tensor:
        """Choices `(T, N, M)`: for task t the t-th legal one.

        Raises:
            ValueError: A decision has fewer choices than there are tasks.
        """
        legal = masks.sum(-1)
        if int(legal.min()) < self.num_tasks:
            number = int(legal.amin(-1).argmin())
            raise ValueError(
                f"{type(self).__name__} needs a block for each of the {self.num_tasks} tasks, decision {number} "
                f"({self.env.network.decisions[number].name!r}) offers {int(legal.min())}"
            )
        # The t-th legal choice is where the running count of legal choices first reaches t + 1.
        rank = masks.cumsum(-1)
        wanted = torch.arange(1, self.num_tasks + 1, device=masks.device).view(-1, 1, 1, 1)
        return (rank < wanted).sum(-1)


class Shared(FixedAgent):
    """One path for all tasks: the first legal choice everywhere."""

    def choose(self, masks: Tensor) -> Tensor:
        """First legal choice everywhere."""
        return self.first_block(masks)


class SharedWithTask(Shared):
    """One path for all tasks, whose first routed layer is told the task: the baseline that keeps everyone honest."""

    env_kwargs = {"task_input": True}


class TaskSpecificAll(FixedAgent):
    """A path of its own for every task: task t takes the t-th choice everywhere (task-specific-all-fc)."""

    def choose(self, masks: Tensor) -> Tensor:
        """The task's own choice everywhere."""
        return self.own_block(masks)


class TaskSpecificLast(FixedAgent):
    """A shared path, and at the last decision a block of its own for every task (task-specific-1-fc)."""

    def choose(self, masks: Tensor) -> Tensor:
        """First legal choice, the task's own one at the last decision."""
        choice = self.first_block(masks)
        last = self.num_decisions - 1
        choice[:, last:] = self.own_block(masks[last:])
        return choice


class RandomFixed(FixedAgent):
    """Random paths, one per task, drawn once and kept."""

    def choose(self, masks: Tensor) -> Tensor:
        """Legal choices, drawn."""
        cumulative = masks.to(torch.float64).cumsum(-1).expand(self.num_tasks, *masks.shape)
        return sample(cumulative, self.generator)


@dataclasses.dataclass(frozen=True)
class FixedRoutesConfig(AgentConfig):
    """Options of given routes.

    Attributes:
        routes: For each task a list of its choices, one per decision; a list of lists where several tensors choose.
            By default the first legal choice everywhere.
    """

    routes: Sequence[Any] | None = None


class FixedRoutes(FixedAgent):
    """Routes that are given: by hand, or by what another agent has learned (`prune`)."""

    Config = FixedRoutesConfig
    config: FixedRoutesConfig

    def choose(self, masks: Tensor) -> Tensor:
        """Routes given.

        Raises:
            ValueError: Not one integer for each task and decision, or a choice that is not legal.
        """
        given = self.config.routes
        if given is None:
            return self.first_block(masks)
        shape = (self.num_tasks, self.num_decisions, *([self.num_tensors] if self.num_tensors > 1 else []))
        try:
            routes = torch.tensor(given, device=masks.device)
            fits = routes.shape == shape and routes.dtype == torch.int64
        except (ValueError, TypeError, RuntimeError):
            fits = False
        if not fits:
            raise ValueError(f"agent {self.name!r}: routes must be lists of integers of shape {shape}, got {given!r}")
        routes = routes.view(*shape[:2], -1)
        legal = torch.nn.functional.pad(masks, (0, 1))  # one choice more, which stands for all that do not exist
        known = torch.where((routes < 0) | (routes >= self.num_choices), self.num_choices, routes)
        wrong = ~legal.expand(self.num_tasks, -1, -1, -1).gather(-1, known.unsqueeze(-1)).squeeze(-1)
        if bool(wrong.any()):
            task, number, tensor = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"agent {self.name!r}: at decision {number} ({self.env.network.decisions[number].name!r}) task {task} "
                f"may choose from {masks[number, tensor].nonzero().flatten().tolist()}, got "
                f"{int(routes[task, number, tensor])}"
            )
        return routes


class RandomAgent(Agent):
    """A random legal choice for every instance at every decision, in evaluation too."""

    max_tensors = None

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.register_buffer("table", uniform_policy(legal_rows(self.env.network.masks), 1))

    table: Tensor

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Choices `(B, M)`, drawn."""
        nobody = torch.zeros_like(observation["depth"])
        probabilities = look_up(self.table, nobody, observation["depth"])
        if self.shares_wanted:
            context.record["probabilities"] = probabilities
        return sample(probabilities.cumsum(-1), self.generator)

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Routes `(B, N, M)`, drawn."""
        if self.shares_wanted:
            return None
        cumulative = self.table[:, :-1].cumsum(-1)
        return sample(cumulative.expand(len(task), *cumulative.shape[1:]), self.generator)

    @property
    def sees_price(self) -> bool:
        """False: it does not look at the instance."""
        return False
