"""Arrangements: one agent for all, one per task, or several and a dispatcher (Rosenbaum et al. 2018, Fig. 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from routing_gym.agents.parts.tables import legal_rows
from routing_gym.envs import RoutingVectorEnv


class Arrangement:
    """Which agent decides for which row, and the shape of tables and approximators that this asks for.

    Tables are `[agent, row, choice]`. Rows 0 to N − 1 are the network's decisions and row N is for instances that have
    left: what stands there does not matter, but can be looked up and written to like the others. Dispatching is one
    more decision, made before the first: row N + 1, whose choices are the agents.

    Args:
        env: The environment.
        kind: `"per_task"`, `"single"` or `"dispatched"`.
        representation: `"table"` or `"mlp"`.
        team: How many agents a dispatcher picks from; one per task by default.
        single: Whether they choose for one tensor, so that there is no axis M.

    Attributes:
        num_agents: First axis of tables.
        num_rows: Second axis.
        num_choices: Last axis.
        legal: `(rows, M, A)` bool, `(rows, A)` without the axis M.
        price: Whether the price of computation is seen.
        dispatch_row: The row of the dispatcher, None without one.
    """

    def __init__(
        self,
        env: RoutingVectorEnv,
        kind: str,
        representation: str = "table",
        team: int | None = None,
        *,
        single: bool = True,
    ) -> None:
        network, self.num_tasks = env.network, env.dataset.num_tasks
        self.kind, self.num_decisions, self.num_choices = kind, len(network.decisions), network.num_choices
        self.num_agents = 1 if kind == "single" else self.num_tasks
        self.legal, self.price = legal_rows(network.masks, single), env.config.price
        self.dispatch_row: int | None = None
        # A table can tell tasks apart only by a row of its own for each; an approximator is told the task.
        self._dispatches_by_task = representation == "table"
        if kind == "dispatched":
            team = team or self.num_tasks
            self.dispatch_row = self.num_decisions + 1
            self.num_agents = max(team, self.num_tasks) if self._dispatches_by_task else team
            self.num_choices = max(self.num_choices, team)
            legal = self.legal.new_zeros(self.num_decisions + 2, *self.legal.shape[1:-1], self.num_choices)
            legal[:-1, ..., : network.num_choices] = self.legal
            legal[-1, ..., :team] = True
            self.legal = legal
        self.num_rows = len(self.legal)

    @property
    def left_row(self) -> int:
        """The row for instances that have left."""
        return self.num_decisions

    def agent_of(self, task: Tensor) -> Tensor:
        """Agents `(B,)` that decide for instances of tasks, where no dispatcher has to be asked."""
        return task if self.kind == "per_task" else torch.zeros_like(task)

    def dispatcher_of(self, task: Tensor) -> Tensor:
        """First indices `(B,)` of the dispatcher's entries."""
        return task if self._dispatches_by_task else torch.zeros_like(task)
