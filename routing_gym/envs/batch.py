"""A batch of instances on its way: where they stand, where they left, their loss and reward."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.envs.drive import Decide, Manner, Seen, Turn, drive, take_turn
from routing_gym.envs.rewards import Rewards
from routing_gym.envs.rollout import SettledExit, Step, Trajectory
from routing_gym.envs.talr import Throughput
from routing_gym.networks import Exit, RoutedNetwork, RoutingState, accept_plan

Watch = Callable[[Turn], None]
"""Called with every turn."""


class Batch:
    """Instances that are routed together.

    Args:
        network: Routes them.
        state: Where they stand at the beginning.
        label: `(B,)` int64; rows may be restarted with others.
        rewards: Terms of the reward.
        manner: How the network is driven.
        augmentation: `(B, P)` on the CPU, parameters drawn for each, or None.
        throughput: Of every choice, if learning rates are adjusted to it.
        statistics: Running statistics as they were at the beginning, if the network trains.

    Attributes:
        state: Where the instances stand.
        exits: Where they left.
        keeps_exits: Whether `exits` are kept; without a graph episodes that never end together would pile them up.
        watchers: Called with every turn.
        doubts: 0-dimensional bools, not read yet: something was not allowed.
    """

    def __init__(
        self,
        network: RoutedNetwork,
        state: RoutingState,
        label: Tensor,
        rewards: Rewards,
        manner: Manner,
        augmentation: Tensor | None = None,
        throughput: Throughput | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.network, self.state, self.label, self.rewards, self.manner = network, state, label, rewards, manner
        self.augmentation, self._throughput = augmentation, throughput
        self.statistics: Mapping[str, Tensor] = statistics or {}
        self.exits: list[SettledExit] = []
        self.keeps_exits = manner.graph
        self.watchers: Sequence[Watch] = ()
        self.doubts: list[Tensor] = []
        # Loss, correct, and the terms of the reward for leaving, in rows.
        rows = 2 + len(rewards.names_at_exit)
        self._outcome = torch.zeros(rows, len(label), dtype=torch.get_default_dtype(), device=label.device)

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

    def seen(self) -> Seen:
        """Observation of the instances where they stand."""
        return Seen(self.network, self.state, self.manner)

    def take(self, decide: Decide) -> tuple[Turn, dict[str, Tensor]]:
        """Let one decision be made for every row; see `take_turn`.

        Returns:
            The turn, and the reward of its actions, `(B,)` for each term.
        """
        turn = take_turn(self.network, self.state, decide, self.manner)
        return turn, self._settle(turn)

    def drive(self, decide: Decide) -> Iterator[tuple[Turn, dict[str, Tensor]]]:
        """Carry all rows out of the network, turn by turn; yields what `take` returns."""
        for turn in drive(self.network, self.state, decide, self.manner):
            yield turn, self._settle(turn)

    def follow(self, plan: Tensor) -> list[tuple[Turn, dict[str, Tensor]]] | None:
        """Carry all rows at once through a network that is `in_order`, by routes known beforehand.

        Args:
            plan: `(B, N)` int64.

        Returns:
            The turns and rewards of `drive` with the same actions. None, and nothing done, where the plan is not legal:
            step by step it is refused with a reason.
        """
        network, manner = self.network, self.manner
        accepted = accept_plan(network, plan, first_legal=manner.first_legal, validate=manner.validate)
        if accepted is None:
            return None
        plan, doubtful = accepted
        with manner.forward_pass(plan.device, manner.graph):
            after = network.follow(self.state, plan)
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
        if self._throughput is not None and self.manner.graph:
            self._throughput.note(turn)
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
        values = {name: own(columns[name].detach()) for name in self.rewards.wanted_at_exit if name in columns}
        values |= {"loss": value, "correct": correct, "label": label}
        terms = self.rewards.at_exit(values, self.manner.validate)
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

    def block_loss(self) -> Tensor:
        """Mean over the batch of the cross-entropy, weighted over each instance's exits, with graph."""
        return batch_loss([exit.weight for exit in self.exits], [exit.loss for exit in self.exits], len(self.label))

    def infos(self) -> dict[str, Tensor]:
        """Infos of instances that have left, `(B,)` each."""
        told = {"loss": self.loss, "correct": self.correct, "macs": self.state.macs.detach(), "label": self.label}
        return told | {"final_reward": self.final_reward}

    def trajectory(self, steps: list[Step]) -> Trajectory:
        """The whole episodes, given their decisions."""
        state, names = self.state, self.rewards.names_at_exit
        return Trajectory(
            steps=steps,
            exits=list(self.exits),
            task=state.task,
            instance=state.instance,
            label=self.label,
            price=state.price,
            final_rewards={name: self._outcome[row] for row, name in enumerate(names, 2)},
            correct=self.correct,
            loss=self.loss,
            macs=state.macs,
            expected_macs=state.expected_macs,
        )


def classified_right(logits: Tensor, label: Tensor) -> Tensor:
    """Whether the label's logit is larger than all others, `(r,)` bool; a tie counts as wrong, whatever the order."""
    own = label.unsqueeze(1)
    return logits.gather(1, own).squeeze(1) > logits.scatter(1, own, -torch.inf).amax(1)


def batch_loss(weights: Iterable[Tensor], losses: Iterable[Tensor], batch: int) -> Tensor:
    """Mean over a batch of each instance's cross-entropy, weighted over its exits."""
    terms = [torch.dot(weight, loss) for weight, loss in zip(weights, losses, strict=True)]
    return sum(terms[1:], start=terms[0]) / batch


def _without(exit: SettledExit, gone: Tensor) -> SettledExit | None:
    """Take rows, `(B,)` bool, out of an exit; None where nothing is left."""
    rows = torch.arange(len(gone), device=gone.device) if exit.rows is None else exit.rows
    kept = (~gone[rows]).nonzero().flatten()
    if not len(kept):
        return None
    parts = {name: getattr(exit, name)[kept] for name in ("logits", "loss", "weight")}
    return dataclasses.replace(exit, rows=rows[kept], **parts)
