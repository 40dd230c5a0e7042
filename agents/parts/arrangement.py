"""Who decides: one agent for all, one per task, or several and a dispatcher (Rosenbaum et al. 2018, Fig. 3)."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections import ChainMap
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from routing_gym.agents.base.agent import Agent
from routing_gym.agents.base.options import AgentConfig
from routing_gym.agents.parts.tables import legal_rows, sample
from routing_gym.envs import Context, Known, Observation, RoutingVectorEnv, Step, Trajectory
from routing_gym.options import count, share


@dataclasses.dataclass(frozen=True)
class LearningConfig(AgentConfig):
    """Options of every agent that learns from rewards.

    Attributes:
        arrangement: `"per_task"`, one agent per task; `"single"`, one for all; or `"dispatched"`, where a dispatcher,
            trained by the same algorithm, picks the agent that then routes the whole instance.
        num_agents: How many agents a dispatcher picks from; one per task by default.
        representation: `"table"`, or `"mlp"`, two-layer approximators that see activation and task.
        gamma: Discount.
    """

    arrangement: Literal["per_task", "single", "dispatched"] = "per_task"
    num_agents: int | None = count(None)
    representation: Literal["table", "mlp"] = "table"
    gamma: float = share(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_agents is not None and self.arrangement != "dispatched":
            raise ValueError(f"{self.owner()}num_agents is for arrangement='dispatched', got {self.arrangement!r}")


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
        """Return `(B,)`: who decides for instances of a task, where no dispatcher has to be asked."""
        return task if self.kind == "per_task" else torch.zeros_like(task)

    def dispatcher_of(self, task: Tensor) -> Tensor:
        """Return `(B,)`: the first index of the dispatcher's entries."""
        return task if self._dispatches_by_task else torch.zeros_like(task)


class LearningAgent(Agent):
    """An agent that learns from rewards, in any arrangement.

    A subclass says what it prefers and how it learns; both speak of agents and rows (see `Arrangement`) and need not
    know whether there is a dispatcher.

    Attributes:
        arrangement: Who decides.
    """

    Config = LearningConfig
    config: LearningConfig

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        options = self.config
        self.arrangement = Arrangement(
            self.env,
            options.arrangement,
            options.representation,
            options.num_agents,
            single=self.max_tensors is not None,
        )

    # ------------------------------------------------------------------------------------- what a subclass implements

    @abstractmethod
    def preferences(self, observation: Observation, agent: Tensor) -> Tensor:
        """Return what is thought of every choice, `(B, choices)`, `(B, M, choices)` where M > 1: the best is highest.

        Args:
            observation: As in `act`; `depth` is the row of the tables.
            agent: `(B,)` int64, who decides.
        """

    def preference_table(self) -> Tensor | None:
        """Return `(agents, rows, ..., choices)`, the same for all there is; None if it depends on the activation."""
        return None

    def chances(self, preferences: Tensor) -> Tensor:
        """Return how likely each choice is while learning; by default the softmax."""
        return preferences.softmax(-1)

    @abstractmethod
    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Learn from a batch of whole episodes, in which dispatching is the first step; `agent_at(step)` says who."""

    def preference_macs(self) -> float:
        """Return the multiply-accumulates of one row's preferences; 0 for tables."""
        return 0.0

    @property
    def sees_price(self) -> bool:
        """An approximator does, a table does not."""
        return self.config.representation != "table" and super().sees_price

    # ------------------------------------------------------------------------------------------------ what it inherits

    @torch.no_grad()
    def choose(self, observation: Observation, agent: Tensor, context: Context) -> Tensor:
        """Sample a choice for every row; take the best when deterministic."""
        preferences = self.preferences(observation, agent)
        if self.shares_wanted or not context.deterministic:
            chances = self.chances(preferences)
        if self.shares_wanted:
            context.record["probabilities"] = chances[..., : self.num_choices]
        return preferences.argmax(-1) if context.deterministic else sample(chances.cumsum(-1), self.generator)

    @torch.no_grad()
    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Choose whole routes from a table, if nobody asks for the probabilities on the way."""
        if self.shares_wanted or self.arrangement.dispatch_row is not None:
            return None
        table = self.preference_table()
        if table is None:
            return None
        agent, table = self.arrangement.agent_of(task), table[:, : self.num_decisions]
        if deterministic:
            return table.argmax(-1).index_select(0, agent)
        return sample(self.chances(table).cumsum(-1).index_select(0, agent), self.generator)

    @torch.no_grad()
    def policy(self) -> Tensor | None:
        """Return `(T, N, A)`: the chances of each task's agent, where they are in a table."""
        table = self.preference_table()
        if table is None or self.arrangement.dispatch_row is not None or self.num_tensors > 1:
            return None
        agent = self.arrangement.agent_of(torch.arange(self.num_tasks, device=table.device))
        policy = self.chances(table[:, : self.num_decisions]).index_select(0, agent)
        return policy.view(self.num_tasks, self.num_decisions, -1)

    def macs(self, decision: int) -> float:
        """Return what the agent that decides costs, at the first decision the dispatcher too."""
        asked = 2 if decision == 0 and self.arrangement.dispatch_row is not None else 1
        return asked * self.preference_macs()

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Find out who decides, and let them choose."""
        if self.arrangement.dispatch_row is None:
            return self.choose(observation, self.arrangement.agent_of(observation["task"]), context)
        agent = self._dispatched(observation, context)
        context.record["agent"] = agent
        return self.choose(observation, agent, context)

    def _dispatched(self, observation: Observation, context: Context) -> Tensor:
        """Return `(B,)` agents, asking the dispatcher for instances that are just beginning; they are carried on."""
        if context.carry is not None and context.begins is None:
            return context.carry
        task = observation["task"]
        question = Context(Known(context.active, context.mask), deterministic=context.deterministic)
        agent = self.choose(self._dispatching(observation), self.arrangement.dispatcher_of(task), question)
        agent = agent[:, 0] if self.max_tensors is None else agent
        if context.carry is not None and context.begins is not None:
            agent = torch.where(context.begins, agent, context.carry)
        context.carry = agent
        return agent

    def _dispatching(self, observation: Observation) -> Observation:
        """Return what the dispatcher sees: the same, at a row of its own."""
        assert self.arrangement.dispatch_row is not None
        row = torch.full_like(observation["depth"], self.arrangement.dispatch_row)
        return ChainMap({"depth": row}, observation)  # type: ignore[arg-type]

    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Put the dispatcher's choice, if there was one, before the others, and learn from detached observations."""
        if self.env.config.differentiable:
            steps = [dataclasses.replace(step, observation=_detached(step.observation)) for step in trajectory.steps]
            trajectory = dataclasses.replace(trajectory, steps=steps)
        if self.arrangement.dispatch_row is not None:
            trajectory = dataclasses.replace(trajectory, steps=[self._dispatch_step(trajectory), *trajectory.steps])
        return self.learn_from(trajectory)

    def _dispatch_step(self, trajectory: Trajectory) -> Step:
        first = trajectory.steps[0]
        seen = self._dispatching(first.observation)
        chosen = first.record["agent"]
        choosing = torch.zeros_like(first.choosing)
        choosing[:, 0] = True
        if self.max_tensors is None:
            chosen = chosen.unsqueeze(1).expand(-1, self.num_tensors)
        return Step(
            observation=seen,
            decision=seen["depth"],
            active=torch.ones_like(first.active),
            choosing=choosing,
            action=chosen,
            reach=torch.ones_like(first.reach),
            record={"agent": self.arrangement.dispatcher_of(trajectory.task)},
        )

    def agent_at(self, step: Step) -> Tensor:
        """Return `(B,)`: who decided at a step."""
        return step.record["agent"] if "agent" in step.record else self.arrangement.agent_of(step.observation["task"])

    def cells(self, trajectory: Trajectory) -> Tensor:
        """Return the flat number agent · rows + row of every decision, `(steps, B)`."""
        row = stacked(trajectory.steps, "decision")
        if self.arrangement.dispatch_row is None:
            agent = self.arrangement.agent_of(trajectory.task)
        else:
            agent = torch.stack([self.agent_at(step) for step in trajectory.steps])
        return row.add(agent, alpha=self.arrangement.num_rows)


def stacked(steps: Sequence[Step], field: str) -> Tensor:
    """A field of all steps, `(S, B, ...)`."""
    return torch.stack([getattr(step, field) for step in steps])


def mean_of_steps(values: Tensor, counting: Tensor) -> Tensor:
    """Mean over the steps of the mean over what counts there, 0-dimensional; both `(S, ...)`."""
    values, counting = (counting * values).flatten(1), counting.flatten(1)
    return (values.sum(1) / counting.sum(1).clamp(min=1)).mean()


def _detached(observation: Observation) -> dict[str, Tensor]:
    """Return an observation without the graph a differentiable environment keeps: the blocks have used it up."""
    return {key: value.detach() for key, value in observation.items()}


def chosen_in(step: Step) -> Tensor:
    """Return the integer choices of a step."""
    assert isinstance(step.action, Tensor)
    return step.action
