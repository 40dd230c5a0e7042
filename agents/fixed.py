"""Agents that do not learn: the static networks every routed one is compared with, and random routes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import Agent, AgentConfig
from routing_gym.agents.parts.draws import running_sums
from routing_gym.agents.parts.scores import legal_rows, look_up, sample, uniform_policy
from routing_gym.envs import Context, Observation, Trajectory


class FixedAgent(Agent):
    """Sends every instance of a task the same way, for ever.

    At the decisions `own` task t takes the t-th legal choice; at the others all tasks take the first.
    """

    max_tensors = None
    sees_price = False
    own: ClassVar[slice] = slice(0)

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        routes = self.choose(self.env.network.masks)
        # One row more, for rows that have left.
        self._routes = nn.Buffer(torch.cat([routes, torch.zeros_like(routes[:, :1])], 1))

    def choose(self, masks: Tensor) -> Tensor:
        """Choices `(T, N, M)` int64 of the tasks, by masks `(N, M, A)` of what is legal; by default as `own` says.

        Raises:
            ValueError: A decision has fewer choices than there are tasks to take one each.
        """
        wanted = torch.zeros(self.num_tasks, len(masks), 1, 1, dtype=torch.int64, device=masks.device)
        wanted[:, self.own] = torch.arange(self.num_tasks, device=masks.device).view(-1, 1, 1, 1)
        for number in range(len(masks))[self.own]:
            if (least := int(masks[number].sum(-1).min())) < self.num_tasks:
                raise ValueError(
                    f"agent {self.name!r} needs a block for each of the {self.num_tasks} tasks, decision {number} "
                    f"({self.env.network.decisions[number].name!r}) offers {least}: make the environment with "
                    "block_per_task=True, or hand over a network that has them"
                )
        # The t-th legal choice, from 0, is where the running count of legal choices first passes t.
        return (masks.cumsum(-1) <= wanted).sum(-1)

    def for_many(self, env: Any) -> Agent:
        """Agent for routes that are given later on."""
        return FixedRoutes(env)

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Choices `(B, M)` of the tasks."""
        return look_up(self._routes, observation["task"], observation["depth"])

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Routes `(B, N, M)` of the tasks."""
        return self._routes[:, :-1].index_select(0, task)

    @property
    def routes(self) -> Tensor:
        """Choices `(T, N)` int64 of each task at each decision, `(T, N, M)` where M > 1."""
        routes = self._routes[:, :-1]
        return routes.squeeze(2) if self.num_tensors == 1 else routes


class Shared(FixedAgent):
    """One path for all tasks: the first legal choice everywhere."""

    by_task = capturable = True


class SharedWithTask(FixedAgent):
    """One path for all tasks, whose first routed layer is told the task: the baseline that keeps everyone honest."""

    by_task = capturable = True
    env_kwargs = {"task_input": True}


class TaskSpecific(FixedAgent):
    """A fixed agent that needs a block for each task at some decision; environments are made with as many."""

    env_kwargs: ClassVar[Mapping[str, Any]] = {"block_per_task": True}

    def fits(self, option: str, value: Any) -> bool:
        """Whether an option may have a value: any, since the network itself is looked at."""
        return True


class TaskSpecificAll(TaskSpecific):
    """A path of its own for every task: task t takes the t-th choice everywhere (task-specific-all-fc)."""

    by_task = capturable = True
    own = slice(None)


class TaskSpecificLast(TaskSpecific):
    """A shared path, and at the last decision a block of its own for every task (task-specific-1-fc)."""

    by_task = capturable = True
    own = slice(-1, None)


class SingleTask(TaskSpecificAll):
    """A network entirely of its own for every task: the yardstick of multi-task learning."""

    by_task = capturable = True
    env_kwargs = {"network_per_task": True}

    def choose(self, masks: Tensor) -> Tensor:
        """Choices of the tasks; refuses a network in which tasks would have a parameter in common."""
        if self.num_tensors > 1:
            raise ValueError(f"agent {self.name!r} routes one tensor: columns hand each other their activations")
        routes, network = super().choose(masks), self.env.network
        readouts, owner = network.readouts_by_task(), dict[tuple[int, int | None], int]()
        ways = enumerate(routes[..., 0].tolist())
        own = [(task, network.parameters_of(*at)) for task, route in ways for at in enumerate(route)]
        for task, parameters in (*own, *enumerate(readouts)):
            for of in parameters:
                if (other := owner.setdefault((id(of.parameter), of.index), task)) != task:
                    raise ValueError(f"agent {self.name!r}: tasks {other} and {task} would share a block")
        owned = {id(of.parameter) for part in (*network.parts(), *readouts) for of in part}
        if shared := [name for name, parameter in network.named_parameters() if id(parameter) not in owned]:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            raise ValueError(
                f"agent {self.name!r}: tasks would share what belongs to no block ({shared[0]}{more}): make the "
                "environment with network_per_task=True, which simple-convnet can do, or route these layers too"
            )
        return routes


class RandomFixed(FixedAgent):
    """Random paths, one per task, drawn once and kept."""

    by_task = capturable = True

    def choose(self, masks: Tensor) -> Tensor:
        """Legal choices, drawn."""
        cumulative = masks.to(torch.float64).cumsum(-1).expand(self.num_tasks, *masks.shape)
        return sample(cumulative, self.generator)


@dataclasses.dataclass(frozen=True)
class FixedRoutesConfig(AgentConfig):
    """Options of given routes.

    Attributes:
        routes: For each task a list of its choices, one per decision, or of lists where several tensors choose; by
            default the first legal choice everywhere.
    """

    routes: Sequence[Any] | None = None


class FixedRoutes(FixedAgent):
    """Routes that are given: by hand, or by what another agent has learned (`prune`)."""

    by_task = capturable = True
    Config = FixedRoutesConfig
    config: FixedRoutesConfig

    def choose(self, masks: Tensor) -> Tensor:
        """Routes given; refuses all but one integer, a legal choice, for each task, decision and tensor."""
        given = self.config.routes
        if given is None:
            return super().choose(masks)
        shape = (self.num_tasks, self.num_decisions, *([self.num_tensors] if self.num_tensors > 1 else []))
        try:
            routes = torch.tensor(given, device=masks.device)
            fits = routes.shape == shape and routes.dtype == torch.int64
        except (ValueError, TypeError, RuntimeError):
            fits = False
        if not fits:
            raise ValueError(f"agent {self.name!r}: routes must be lists of integers of shape {shape}, got {given!r}")
        routes = routes.view(*shape[:2], -1)
        if (wrong := first_illegal(routes, masks)) is not None:
            task, number, tensor = wrong
            raise ValueError(
                f"agent {self.name!r}: at decision {number} ({self.env.network.decisions[number].name!r}) task {task} "
                f"may choose from {masks[number, tensor].nonzero().flatten().tolist()}, got "
                f"{int(routes[task, number, tensor])}"
            )
        return routes


def first_illegal(routes: Tensor, masks: Tensor) -> tuple[int, int, int] | None:
    """Task, decision and tensor of the first choice in routes `(T, N, M)` that masks `(N, M, A)` do not offer."""
    choices = torch.arange(masks.shape[-1], device=masks.device)
    illegal = (~((routes.unsqueeze(-1) == choices) & masks).any(-1)).nonzero()
    return tuple(illegal[0].tolist()) if len(illegal) else None


class Oracle(FixedAgent):
    """The best routing, where it is known: at each of L depths the task's planted block, then the L-th.

    Where what is planted changes during training, it is what is planted in the rows that may be drawn at the time. So a
    block is never trained on instances of two computations, which costs it more than routes that change.
    """

    by_task = capturable = True
    uses_rewards = False

    def for_many(self, env: Any) -> Agent:
        """Agent for routes that are given later on; where they change refused."""
        if len(self.env.dataset.phases) > 1:
            raise ValueError(f"agent {self.name!r} cannot learn side by side with others where its routes change")
        return super().for_many(env)

    def choose(self, masks: Tensor) -> Tensor:
        """Choices planted in the data.

        Raises:
            ValueError: Data without anything planted, or in which it depends on more than the task; or a decision
                that offers no such block.
        """
        data = self.env.dataset
        if data.planted is None:
            raise ValueError(
                f"agent {self.name!r} needs data whose best routing is known (MultiTaskDataset.planted), {data.name} "
                "has none"
            )
        planted = data.planted.new_zeros(data.num_tasks, data.planted.shape[1])
        planted[data.task] = data.planted  # of tasks, too, that come later
        now = data.rows_at(self.env.trainer.passes).to(data.device)
        planted[data.task[now]] = data.planted[now]
        if not torch.equal(planted[data.task[now]], data.planted[now]):
            raise ValueError(
                f"agent {self.name!r} routes by the task, but what is planted in {data.name} differs within one: make "
                "the environment with told=True where it has that option, by which it is the task"
            )
        depths = torch.arange(self.num_decisions, device=planted.device).clamp(max=planted.shape[1] - 1)
        routes = planted[:, depths].unsqueeze(2).expand(-1, -1, self.num_tensors)
        if (wrong := first_illegal(routes, masks)) is not None:
            task, number, tensor = wrong
            raise ValueError(
                f"agent {self.name!r} needs {int(routes.max()) + 1} blocks, one for each computation that is planted, "
                f"decision {number} ({self.env.network.decisions[number].name!r}) has no block "
                f"{int(routes[task, number, tensor])}"
            )
        return routes.contiguous()

    def update(self, trajectory: Trajectory) -> None:
        """Follow what is planted, where it changes during training."""
        if len(self.env.dataset.phases) > 1:
            self._routes[:, :-1] = self.choose(self.env.network.masks)


class RandomAgent(Agent):
    """A random legal choice for every instance at every decision, in evaluation too."""

    max_tensors = None
    sees_price = False

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.table = nn.Buffer(uniform_policy(legal_rows(self.env.network.masks), 1))

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Choices `(B, M)`, drawn."""
        probabilities = self.noted(self.table[0].index_select(0, observation["depth"]), context)
        return sample(running_sums(probabilities), self.generator)

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Routes `(B, N, M)`, drawn."""
        if self.shares_wanted:
            return None
        cumulative = running_sums(self.table[:, :-1])
        return sample(cumulative.expand(len(task), *cumulative.shape[1:]), self.generator)
