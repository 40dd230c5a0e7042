"""What algorithms derive from: agents that decide by scores, trained in the blocks' backward pass or by rewards."""

from __future__ import annotations

import dataclasses
import io
from abc import abstractmethod
from collections import ChainMap
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import Agent, AgentConfig
from routing_gym.agents.parts.draws import running_sums
from routing_gym.agents.parts.losses import joint_choice
from routing_gym.agents.parts.scores import ArrangedScores, Arrangement, Scores, TableScores, make_scores, sample
from routing_gym.blocks import SGD, Adam, share_statistics
from routing_gym.envs import Context, Known, Observation, Step, Trajectory
from routing_gym.options import count, positive, share


@dataclasses.dataclass(frozen=True)
class TrainedConfig(AgentConfig):
    """Options of every agent with an optimiser of its own.

    Attributes:
        optimizer: Of the agent's parameters: `"adam"`; or `"sgd"`, without momentum, as in Rosenbaum et al. (2018).
        learning_rate: Its step size; None for the agent's own with Adam, and with `"sgd"` for that of the blocks,
            schedule included.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float | None = positive(None)


class ScoringAgent(Agent):
    """An agent that decides by its `scores`; where they are None, without looking at the instance.

    Attributes:
        DEFAULT_RATES: Step sizes of Adam, by representation.
        follows_blocks: Whether its optimiser has the learning rate of the blocks', schedule included.
    """

    DEFAULT_RATES: ClassVar[dict[str, float]] = {"table": 0.1, "mlp": 0.003}
    follows_blocks = False

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.scores: Any = None

    def macs(self, decision: int) -> float:
        """Multiply-accumulates of the scores."""
        return 0.0 if self.scores is None else self.scores.macs(decision)

    @property
    def sees_price(self) -> bool:
        """Whether the scores depend on the price."""
        return self.scores is not None and self.scores.sees_price

    def train_by(self, module: nn.Module, rate: float) -> None:
        """Make the optimiser of a module, the one of `TrainedConfig`; the rate is Adam's if the options say none."""
        assert isinstance(self.config, TrainedConfig)
        asked = self.config.learning_rate
        if self.config.optimizer == "adam":
            self.optimizer = Adam(module, lr=asked or rate)
        else:
            self.optimizer, self.follows_blocks = SGD(module, lr=asked or self.env.trainer.rate), asked is None

    def before_step(self, trajectory: Trajectory) -> None:
        """See `follow_blocks`."""
        self.follow_blocks()

    def follow_blocks(self) -> None:
        """Follow the blocks' learning rate where that is asked for."""
        if self.follows_blocks:
            assert self.optimizer is not None
            for group in self.optimizer.param_groups:
                group["lr"] = self.env.trainer.rate


class SearchingAgent(Agent):
    """An agent that judges what it draws on a validation split before it trains the best.

    Attributes:
        STANDING: Names of the attributes that say where the search stands, `first` among them.
        first: What training began with; None when the search is over.

    Raises:
        ValueError: Nothing is held out for validation.
    """

    STANDING: ClassVar[tuple[str, ...]]
    first: dict[str, Any] | None

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        if "validation" not in self.env.datasets:
            raise ValueError(
                f"agent {self.name!r} judges its draws on a validation split, {self.env.dataset.name} has only "
                f"{', '.join(self.env.datasets)}: hold data out by an option of theirs"
            )

    def get_extra_state(self) -> bytes:
        """Where the search stands, as bytes: what it holds differs in form from one batch to the next."""
        out = io.BytesIO()
        torch.save((self.num_tasks, {name: getattr(self, name) for name in self.STANDING}), out)
        return out.getvalue()

    def set_extra_state(self, state: bytes) -> None:
        """Go on where the search stood; a `ValueError` where it goes on and there were other tasks."""
        tasks, known = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
        if known["first"] is not None and tasks != self.num_tasks:
            raise ValueError(f"agent {self.name!r} is still searching: tasks can be added when all draws were tried")
        for name in self.STANDING:
            setattr(self, name, known[name])


@dataclasses.dataclass(frozen=True)
class RouterConfig(AgentConfig):
    """Options of every agent that is one network with the blocks.

    Attributes:
        learning_rate: Step size of the scores, for good; by default that of the blocks, schedule included.
    """

    learning_rate: float | None = positive(None)


class RouterAgent(ScoringAgent):
    """An agent that is one network with the blocks, trained by an optimiser of the blocks' kind.

    The gradient of the scores goes on into the blocks that made what they see.
    """

    Config = RouterConfig
    config: RouterConfig
    needs_gradients = True
    env_kwargs = {"differentiable": True}

    def train_scores(self, scores: Scores) -> None:
        """Decide by scores, and make an optimiser for them."""
        self.scores = scores.to(self.env.device)
        if self.env.ranks.count > 1:
            share_statistics(self.scores, self.env.ranks, ())
        optimization = self.env.trainer.optimization
        if self.config.learning_rate is not None:
            optimization = dataclasses.replace(optimization, learning_rate=self.config.learning_rate)
        self.optimizer, self.follows_blocks = optimization.build(self.scores), self.config.learning_rate is None


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


class LearningAgent(ScoringAgent):
    """An agent that learns from rewards, in any arrangement.

    A subclass implements `learn_from` and, unless it prefers by scores alone, `preferences`; both speak of agents and
    rows (see `Arrangement`, of which `arrangement` is one) and need not know whether there is a dispatcher.
    """

    Config: ClassVar[type[AgentConfig]] = LearningConfig
    config: LearningConfig
    scores: ArrangedScores | None

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        kind = self.config.arrangement, self.config.representation, self.config.num_agents
        self.arrangement = Arrangement(self.env, *kind, single=self.max_tensors is not None)

    @abstractmethod
    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Learn from a batch of whole episodes, in which dispatching is the first step; `agent_at(step)` says who."""

    def preferences(self, observation: Observation, agent: Tensor) -> Tensor:
        """Preferences `(B, ..., A)` of agents, `(B,)`, the highest for the best choice; by default the scores.

        The observation's `depth` is the row of the arrangement.
        """
        assert self.scores is not None
        return self.scores(observation, agent)

    def preference_table(self, agent: Tensor | None = None) -> Tensor | None:
        """Preferences `(agents, rows, ..., A)`, of all or of some agents; None if they depend on the activation."""
        return self.scores.of_all_rows(agent) if isinstance(self.scores, TableScores) else None

    def chances(self, preferences: Tensor) -> Tensor:
        """Probabilities `(B, ..., A)` of choices while learning; by default the softmax."""
        return preferences.softmax(-1)

    @torch.no_grad()
    def choose(self, observation: Observation, agent: Tensor, context: Context) -> Tensor:
        """Choices `(B, ...)` of some agents, drawn; the best when deterministic."""
        preferences = self.preferences(observation, agent)
        if self.shares_wanted or not context.deterministic:
            chances = self.chances(preferences)
        if self.shares_wanted:
            context.record["probabilities"] = chances[..., : self.num_choices]
        return preferences.argmax(-1) if context.deterministic else sample(running_sums(chances), self.generator)

    @torch.no_grad()
    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Routes `(B, N, ...)` from a table, unless the collaboration reward needs the probabilities on the way."""
        agent = self.arrangement.agent_of(task)
        few = self.arrangement.num_agents <= len(task)  # so that what is done once per agent is not done once per row
        table = self.preference_table(None if few else agent)
        if table is None or self.shares_wanted or self.arrangement.dispatch_row is not None:
            return None
        table = table[:, : self.num_decisions]
        of_rows = table.argmax(-1) if deterministic else running_sums(self.chances(table))
        of_rows = of_rows.index_select(0, agent) if few else of_rows
        return of_rows if deterministic else sample(of_rows, self.generator)

    @torch.no_grad()
    def policy(self) -> Tensor | None:
        """Probabilities `(T, N, A)` of each task's agent, where they are in a table."""
        table = self.preference_table()
        if table is None or self.arrangement.dispatch_row is not None or self.num_tensors > 1:
            return None
        agent = self.arrangement.agent_of(torch.arange(self.num_tasks, device=table.device))
        policy = self.chances(table[:, : self.num_decisions]).index_select(0, agent)
        return policy.view(self.num_tasks, self.num_decisions, -1)

    def macs(self, decision: int) -> float:
        """Multiply-accumulates of the agent that decides, at the first decision of the dispatcher too."""
        return (2 if decision == 0 and self.arrangement.dispatch_row is not None else 1) * super().macs(decision)

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Choices `(B, ...)` of each row's agent, which a dispatcher picks where there is one."""
        if self.arrangement.dispatch_row is None:
            return self.choose(observation, self.arrangement.agent_of(observation["task"]), context)
        agent = context.record["agent"] = self._dispatched(observation, context)
        return self.choose(observation, agent, context)

    def _dispatched(self, observation: Observation, context: Context) -> Tensor:
        """Agents `(B,)`, carried on; of instances that are just beginning those that the dispatcher picks."""
        if context.carry is not None and context.begins is None:
            return context.carry
        question = Context(Known(context.active, context.mask), deterministic=context.deterministic)
        dispatcher = self.arrangement.dispatcher_of(observation["task"])
        agent = self.choose(self._dispatching(observation), dispatcher, question)
        agent = agent[:, 0] if self.max_tensors is None else agent
        if context.carry is not None and context.begins is not None:
            agent = torch.where(context.begins, agent, context.carry)
        context.carry = agent
        return agent

    def _dispatching(self, observation: Observation) -> Observation:
        """Observation of the dispatcher: the same, at a row of its own."""
        assert self.arrangement.dispatch_row is not None
        row = torch.full_like(observation["depth"], self.arrangement.dispatch_row)
        return ChainMap({"depth": row}, observation)  # type: ignore[arg-type]

    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Learn from detached observations, see `learn_from`."""
        return self.learn_from(self.as_seen(trajectory, self.env.config.differentiable))

    def as_seen(self, trajectory: Trajectory, detach: bool) -> Trajectory:
        """Trajectory with the dispatcher's choice, if there was one, before the others, and perhaps without a graph."""
        steps = trajectory.steps
        if detach:  # the blocks have used the graph up
            seen = [{key: value.detach() for key, value in step.observation.items()} for step in steps]
            steps = [dataclasses.replace(step, observation=of) for step, of in zip(steps, seen, strict=True)]
        if self.arrangement.dispatch_row is not None:
            steps = [self._dispatch_step(trajectory.task, steps[0]), *steps]
        return dataclasses.replace(trajectory, steps=steps)

    def _dispatch_step(self, task: Tensor, first: Step) -> Step:
        seen, chosen = self._dispatching(first.observation), first.record["agent"]
        choosing = torch.zeros_like(first.choosing)
        choosing[:, 0] = True
        if self.max_tensors is None:
            chosen = chosen.unsqueeze(1).expand(-1, self.num_tensors)
        record = {"agent": self.arrangement.dispatcher_of(task)}
        return dataclasses.replace(
            first, observation=seen, decision=seen["depth"], choosing=choosing, action=chosen, rewards={}, record=record
        )

    def agent_at(self, step: Step) -> Tensor:
        """Agents `(B,)` that decided at a step."""
        return step.record["agent"] if "agent" in step.record else self.arrangement.agent_of(step.observation["task"])

    def cells(self, trajectory: Trajectory) -> Tensor:
        """Flat numbers agent · rows + row of every decision, `(S, B)`."""
        agent = self.arrangement.agent_of(trajectory.task)
        if self.arrangement.dispatch_row is not None:
            agent = torch.stack([self.agent_at(step) for step in trajectory.steps])
        return stacked(trajectory.steps, "decision").add(agent, alpha=self.arrangement.num_rows)

    def scores_at(self, steps: Sequence[Step], scores: ArrangedScores | None = None) -> Tensor:
        """Scores `(S, B, ..., A)` of whoever decided at each step, or others like them, with graph, all at once."""
        scores = self.scores if scores is None else scores
        assert scores is not None
        seen = [step.observation for step in steps]
        together = {key: torch.cat([observation[key] for observation in seen]) for key in seen[0]}
        of_all = scores(together, torch.cat([self.agent_at(step) for step in steps]))
        return of_all.unflatten(0, (len(steps), -1))

    def descend(self, loss: Tensor) -> None:
        """Take one step down a loss."""
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(loss.new_full((), self.env.trainer.runs))
        self.follow_blocks()
        self.optimizer.step()


@dataclasses.dataclass(frozen=True)
class ScoredConfig(TrainedConfig, LearningConfig):
    """Options of agents that prefer by scores alone; Adam's step sizes are best on DIGITS-MTL's validation split."""


class ScoredAgent(LearningAgent):
    """An agent that prefers by scores alone; `rate` is its learning rate."""

    Config = ScoredConfig
    config: ScoredConfig
    scores: ArrangedScores

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.rate = self.config.learning_rate or self.DEFAULT_RATES[self.config.representation]
        self.scores = make_scores(self.arrangement, self.config.seed)
        self.train_by(self.scores, self.rate)

    def chosen(self, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
        """Log-probability of what was chosen and entropy of the policy, `(S, B)` each, recomputed with graph."""
        choosing = None if self.max_tensors is not None else stacked(steps, "choosing")
        return joint_choice(self.scores_at(steps).log_softmax(-1), stacked(steps, "action"), choosing)


def stacked(steps: Sequence[Step], field: str) -> Tensor:
    """A field of all steps, `(S, B, ...)`."""
    return torch.stack([getattr(step, field) for step in steps])


def mean_of_steps(values: Tensor, counting: Tensor) -> Tensor:
    """Mean over the steps of the mean over what counts there, 0-dimensional; both `(S, ...)`."""
    values, counting = (counting * values).flatten(1), counting.flatten(1)
    return (values.sum(1) / counting.sum(1).clamp(min=1)).mean()


def chosen_in(step: Step) -> Tensor:
    """Integer choices of a step."""
    assert isinstance(step.action, Tensor)
    return step.action
