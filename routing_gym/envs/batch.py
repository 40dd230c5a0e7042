"""A batch of instances on its way, the trajectory it leaves behind, and `rollout`, which drives it to the end."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.envs.rewards import Rewards
from routing_gym.envs.throughput import Throughput
from routing_gym.envs.turns import Asked, Decide, Manner, Observation, Router, Seen, Turn, along, drive, take_turn
from routing_gym.networks import Action, Exit, RoutedNetwork, RoutingState, accept_plan
from routing_gym.networks.actions import of_one_tensor
from routing_gym.ranks import Ranks

if TYPE_CHECKING:
    from routing_gym.envs.vector import RoutingVectorEnv

Watch = Callable[[Turn], None]
"""Called with every turn."""


@dataclasses.dataclass
class Step:
    """One decision of every instance of a batch, in the form of the agent that made it.

    Attributes:
        observation: Detached unless the environment is differentiable; without an `activation` that the agent has not
            looked at.
        decision: `(B,)` int64; N for rows that had left.
        active: `(B,)` bool: rows that decided here.
        choosing: `(B, M)` bool: the tensors that chose; none in rows that had left.
        action: Where masked choices are tolerated, after they were replaced.
        reach: `(B,)` share of the instance that was at its decision, 0 for rows that had left.
        rewards: `(B,)` for each term of the reward of the action itself, by name.
        carry: `Context.carry` when it was made.
        record: `Context.record`.
    """

    observation: Observation
    decision: Tensor
    active: Tensor
    choosing: Tensor
    action: Action
    reach: Tensor
    rewards: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    carry: Tensor | None = None
    record: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def reward(self) -> Tensor:
        """`(B,)` reward of the action itself, its terms summed anew: set it to replace them, do not write into it."""
        return sum(self.rewards.values(), start=torch.zeros_like(self.reach))

    @reward.setter
    def reward(self, value: Tensor) -> None:
        self.rewards = {"reward": value}

    def of_all_ranks(self, ranks: Ranks) -> Step:
        """This decision of a whole batch, without a graph."""

        def whole(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: whole(part) for name, part in value.items()}
            if isinstance(value, tuple):
                return tuple(map(whole, value))
            return None if value is None else ranks.gathered(value)

        return Step(**{field.name: whole(getattr(self, field.name)) for field in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class SettledExit(Exit):
    """An exit with its cross-entropy, `loss (r,)`, with graph while training."""

    loss: Tensor


@dataclasses.dataclass
class Trajectory:
    """A batch of whole episodes.

    Attributes:
        steps: The decisions in the order they were made, at most N.
        exits: Where the instances left.
        task: `(B,)` int64.
        instance: `(B,)` int64 row numbers in the data set.
        label: `(B,)` int64.
        price: `(B,)` cost of one multiply-accumulate.
        final_rewards: `(B,)` for each term of the reward for leaving, by name.
        correct: `(B,)` share of the instance that was classified right, 0 or 1 under hard routing.
        loss: `(B,)` cross-entropy, summed over exits by weight, detached.
        macs: `(B,)` executed multiply-accumulates.
        expected_macs: `(B,)`, with graph where weights have one.
    """

    steps: list[Step]
    exits: list[SettledExit]
    task: Tensor
    instance: Tensor
    label: Tensor
    price: Tensor
    final_rewards: dict[str, Tensor]
    correct: Tensor
    loss: Tensor
    macs: Tensor
    expected_macs: Tensor

    def __len__(self) -> int:
        return len(self.task)

    @property
    def final_reward(self) -> Tensor:
        """`(B,)` reward for leaving, the sum of its terms; whoever sets it replaces them."""
        first, *others = self.final_rewards.values()
        return sum(others, start=first)

    @final_reward.setter
    def final_reward(self, value: Tensor) -> None:
        self.final_rewards = {"reward": value}

    @property
    def rewards(self) -> dict[str, Tensor]:
        """`(B,)` of each term of the reward over the whole episode, by name."""
        total = dict(self.final_rewards)
        for step in self.steps:
            for name, reward in step.rewards.items():
                total[name] = total[name] + reward if name in total else reward
        return total

    def of_all_ranks(self, ranks: Ranks) -> Trajectory:
        """The episodes of all processes that share a batch, without graph and exits."""
        if ranks.count == 1:
            return self
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        final = {name: ranks.gathered(value) for name, value in self.final_rewards.items()}
        steps = [step.of_all_ranks(ranks) for step in self.steps]
        return Trajectory(steps, [], final_rewards=final, **{name: ranks.gathered(of) for name, of in own.items()})

    def reward(self) -> Tensor:
        """Sum of all rewards of each episode, `(B,)`."""
        return sum((step.reward for step in self.steps if step.rewards), start=self.final_reward)

    def returns(self, gamma: float = 1.0) -> Tensor:
        """Returns R_i = r_final + Σ_{j≥i} γ^{j−i} r_j, `(steps, B)` (Rosenbaum et al. 2018, Algorithm 3)."""
        if not any(step.rewards for step in self.steps):
            return self.final_reward.expand(len(self.steps), -1)
        rewards = torch.stack([step.reward for step in self.steps])
        for i in reversed(range(len(self.steps) - 1)):
            rewards[i] += gamma * rewards[i + 1]
        return self.final_reward + rewards


@dataclasses.dataclass(eq=False)
class Batch:
    """Instances that are routed together.

    Attributes:
        state: Where the instances stand.
        label: `(B,)` int64.
        augmentation: `(B, P)` on the CPU, parameters drawn for each, or None.
        throughput: Of every choice, if gradients are scaled by it.
        statistics: Running statistics as they were at the beginning, if the network trains.
        exits: Where the instances left.
        keeps_exits: Whether `exits` are kept; without a graph episodes that never end together would pile them up.
        watchers: Called with every turn.
        doubts: 0-dimensional bools, not read yet: something was not allowed.
    """

    network: RoutedNetwork
    state: RoutingState
    label: Tensor
    rewards: Rewards
    manner: Manner
    augmentation: Tensor | None
    throughput: Throughput | None
    statistics: Mapping[str, Tensor]
    keeps_exits: bool
    watchers: Sequence[Watch] = ()
    exits: list[SettledExit] = dataclasses.field(default_factory=list)
    doubts: list[Tensor] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        # Loss, correct, and the terms of the reward for leaving, in rows.
        form = 2 + len(self.rewards.at_exit), len(self.label)
        self._outcome = torch.zeros(form, dtype=torch.get_default_dtype(), device=self.label.device)

    @property
    def loss(self) -> Tensor:
        """`(B,)` cross-entropy, weighted over exits, detached."""
        return self._outcome[0]

    @property
    def correct(self) -> Tensor:
        """`(B,)` share of the instance that was classified right."""
        return self._outcome[1]

    @property
    def final_reward(self) -> Tensor:
        """`(B,)` reward for leaving."""
        return self._outcome[2] if len(self._outcome) == 3 else self._outcome[2:].sum(0)

    @property
    def doubtful(self) -> Tensor | None:
        """0-dimensional bool, whether something was not allowed; None where nobody doubts it."""
        return functools.reduce(torch.logical_or, self.doubts) if self.doubts else None

    def take(self, decide: Decide) -> tuple[Turn, dict[str, Tensor]]:
        """Let one decision be made for every row, see `take_turn`; the reward of its actions is `(B,)` by term."""
        turn = take_turn(self.network, self.state, decide, self.manner)
        return turn, self._settle(turn)

    def drive(self, decide: Decide) -> Iterator[tuple[Turn, dict[str, Tensor]]]:
        """Carry all rows out of the network, turn by turn, see `take`."""
        for turn in drive(self.network, self.state, decide, self.manner):
            yield turn, self._settle(turn)

    def follow(self, plan: Tensor, gates: Tensor | None = None) -> list[tuple[Turn, dict[str, Tensor]]] | None:
        """Carry all rows at once through a network that is `in_order`, by routes `(B, N)` known beforehand.

        The turns and rewards are those of `drive` with the same actions. None, and nothing done, where the plan is not
        legal: step by step it is refused with a reason.
        """
        network, manner = self.network, self.manner
        accepted = accept_plan(network, plan, first_legal=manner.first_legal, validate=manner.validate)
        if accepted is None:
            return None
        plan, doubtful = accepted
        manner.set_up(network)
        with manner.forward_pass(plan.device, manner.graph):
            after = network.follow(self.state, plan, gates)
        spent, choices, turns = network.route_macs(plan).unbind(1), plan.unsqueeze(2).unbind(1), []
        passed = Seen(network, self.state, manner).passed(len(spent))
        for seen, choice, macs in zip(passed, choices, spent, strict=True):
            exits = after.exits if seen is passed[-1] else ()
            turn = Turn(seen, choice, macs, exits, after, None, doubtful)
            turns.append((turn, self._settle(turn)))
        return turns

    def _settle(self, turn: Turn) -> dict[str, Tensor]:
        """Go on to where a turn has led; the reward of its actions, `(B,)` for each term."""
        # A term of the reward may be refused: nothing has changed until all are there.
        outcome, left = self._outcome, []
        for exit in turn.exits:
            own, loss = self._outcome_of(exit, turn)
            # Not in place: what was told about earlier steps stays as it was.
            outcome = outcome + own if exit.rows is None else outcome.index_add(1, exit.rows, own)
            left.append(SettledExit(**vars(exit), loss=loss))
        rewards = self.rewards.of_turn(turn, self.manner.validate) if self.rewards.of_actions else {}
        self._outcome = outcome
        if self.keeps_exits:
            self.exits += left
        self.state = dataclasses.replace(turn.after, exits=()) if turn.exits else turn.after
        if turn.doubtful is not None:
            self.doubts.append(turn.doubtful)
        if self.throughput is not None and self.manner.graph:
            self.throughput.note(turn)
        for watch in self.watchers:
            watch(turn)
        return rewards

    def _outcome_of(self, exit: Exit, turn: Turn) -> tuple[Tensor, Tensor]:
        """Loss, correct and terms of the reward of rows that have just left, `(.., r)`; and the loss with graph."""

        def own(column: Tensor) -> Tensor:
            return column if exit.rows is None else column.index_select(0, exit.rows)

        label, seen = own(self.label), turn.seen
        with torch.set_grad_enabled(self.manner.graph):
            loss = functional.cross_entropy(exit.logits, label, reduction="none")
        value = loss.detach()
        correct = classified_right(exit.logits.detach(), label).to(value.dtype)
        columns = {"macs": turn.after.macs, "task": seen.task, "depth": seen.decision, "price": seen.cost}
        wanted = {name for term in self.rewards.at_exit for name in term.wants}
        values = {name: own(columns[name].detach()) for name in columns.keys() & wanted}
        values |= {"loss": value, "correct": correct, "label": label}
        check = self.manner.validate
        terms = [term(values, len(value), check).to(value.dtype) for term in self.rewards.at_exit]
        return torch.stack([value, correct, *terms]).mul_(exit.weight.detach()), loss

    def restart(self, rows: Tensor, fresh: Batch) -> None:
        """Put the r instances of a fresh batch into some rows, `(r,)` int64."""
        self.state = self.state.restarted(rows, fresh.state)
        self.label = self.label.index_copy(0, rows, fresh.label)
        self._outcome = self._outcome.index_fill(1, rows, 0)
        gone = torch.zeros(len(self.label), dtype=torch.bool, device=rows.device)
        gone[rows] = True
        self.exits = [kept for kept in (_without(exit, gone) for exit in self.exits) if kept is not None]
        if self.augmentation is not None and fresh.augmentation is not None:
            self.augmentation = self.augmentation.index_copy(0, rows.cpu(), fresh.augmentation)

    def infos(self) -> dict[str, Tensor]:
        """Infos of instances that have left, `(B,)` each."""
        told = {"loss": self.loss, "correct": self.correct, "macs": self.state.macs.detach(), "label": self.label}
        return {name: value.clone() for name, value in {**told, "final_reward": self.final_reward}.items()}

    def trajectory(self, steps: list[Step]) -> Trajectory:
        """The whole episodes, given their decisions."""
        state = self.state
        return Trajectory(
            steps=steps,
            exits=list(self.exits),
            task=state.task,
            instance=state.instance,
            label=self.label,
            price=state.price,
            final_rewards={term.name: self._outcome[row] for row, term in enumerate(self.rewards.at_exit, 2)},
            correct=self.correct,
            loss=self.loss,
            macs=state.macs,
            expected_macs=state.expected_macs,
        )


def classified_right(logits: Tensor, label: Tensor) -> Tensor:
    """Whether the label's logit is larger than all others, `(r,)` bool; a tie counts as wrong, whatever the order."""
    own = label.unsqueeze(1)
    return logits.gather(1, own).squeeze(1) > logits.scatter(1, own, -torch.inf).amax(1)


def _without(exit: SettledExit, gone: Tensor) -> SettledExit | None:
    """Take rows, `(B,)` bool, out of an exit; None where nothing is left."""
    rows = torch.arange(len(gone), device=gone.device) if exit.rows is None else exit.rows
    kept = (~gone[rows]).nonzero().flatten()
    if not len(kept):
        return None
    parts = {name: getattr(exit, name)[kept] for name in ("logits", "loss", "weight")}
    return dataclasses.replace(exit, rows=rows[kept], **parts)


def rollout(
    router: Router, env: RoutingVectorEnv, *, instances: Tensor | None = None, deterministic: bool = False
) -> Trajectory:
    """Whole episodes of one batch of `env.num_envs` instances; those under way in the environment are given up.

    The graph, where one is kept, stays with `env` for `train_blocks`.

    Args:
        router: Whoever decides.
        env: The environment.
        instances: `(num_envs,)` rows of the data set, each as often as the environment augments it; drawn by default.
        deterministic: For the router.

    Raises:
        ValueError: An action that is not allowed. On a GPU it was replaced when it came, so as not to wait for it.
    """
    batch = env.begin(instances)
    plan = router.plan(batch.state.task, deterministic) if hasattr(router, "plan") else None
    asked, turns, gates = Asked(router, env.network, deterministic), None, None
    if isinstance(plan, tuple):
        plan, gates = plan
        _check_gates(gates, env)
    if plan is not None:
        plan = _whole(plan, env)
        turns = batch.follow(plan[..., 0], gates) if env.network.in_order else None
    steps = []
    for turn, rewards in turns or batch.drive(asked if plan is None else along(plan)):
        seen, action = turn.seen, of_one_tensor(turn.action) if asked.single else turn.action
        step = Step(seen, seen.decision, seen.active, seen.choosing, action, seen.reach, rewards)
        if plan is None:
            step.carry, step.record = asked.before, asked.context.record
        steps.append(step)
    if not batch.manner.graph and batch.doubts and bool(batch.doubtful):
        raise ValueError("an action of this batch was out of range, masked or not finite: its results are void")
    if env.rewards.of_probabilities:
        env.rewards.give_for_probabilities(steps)
    return batch.trajectory(steps)


def _check_gates(gates: Any, env: RoutingVectorEnv) -> None:
    """Refuse gates that come with a plan and are not ones `(B, N)`, or that a network step by step would not use."""
    wanted = (env.num_envs, len(env.network.decisions))
    if not isinstance(gates, Tensor) or not gates.is_floating_point() or tuple(gates.shape) != wanted:
        got = f"{gates.dtype} of shape {tuple(gates.shape)}" if isinstance(gates, Tensor) else type(gates).__name__
        raise ValueError(f"gates of a plan are floating-point ones of shape {wanted}, got {got}")
    if gates.is_cpu and not bool((gates.detach() == 1).all()):  # elsewhere it would wait for the device
        raise ValueError("gates of a plan are ones, whose gradient is that of weights; other weights are for act")
    if not env.network.in_order:
        raise ValueError("gates of a plan are for networks that are in_order; return None, so that act is asked")


def _whole(plan: Any, env: RoutingVectorEnv) -> Tensor:
    """A plan with the axis of tensors, `(B, N, M)`."""
    if not isinstance(plan, Tensor) or plan.is_floating_point() or plan.dtype == torch.bool:
        got = plan.dtype if isinstance(plan, Tensor) else type(plan).__name__
        raise ValueError(f"a plan is a tensor of integers, or None, got {got}")
    plan, whole = plan.to(torch.int64), (env.num_envs, len(env.network.decisions), env.network.num_tensors)
    if tuple(plan.shape) == whole[:2] and whole[2] == 1:
        return plan.unsqueeze(2)
    if tuple(plan.shape) != whole:
        raise ValueError(f"a plan has shape {whole if whole[2] > 1 else whole[:2]} here, got {tuple(plan.shape)}")
    return plan
