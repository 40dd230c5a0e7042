"""A batch of instances on its way: where they stand, what becomes of them, what they earn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.envs.drive import Decide, Manner, Seen, Turn, drive, take_turn
from routing_gym.envs.rewards import Rewards
from routing_gym.envs.talr import Throughput
from routing_gym.envs.trajectory import SettledExit, Step, Trajectory
from routing_gym.networks import Exit, RoutedNetwork, RoutingState, accept_plan

Watch = Callable[[Turn], None]
"""Called with every turn: what there was to see, and what was done."""


class Batch:
    """Instances that are routed together.

    Args:
        network: Routes them.
        state: Where they stand: at the beginning.
        label: `(B,)` int64.
        rewards: What they earn.
        manner: How they are driven.
        augmentation: `(B, P)` on the CPU, what was drawn for each, or None.
        throughput: Writes down what passes where, if learning rates are adjusted to it.
        keep_exits: Keep where instances left; without a graph only for those who ask, since episodes that never end
            together would pile them up.
        watchers: Called with every turn.

    Attributes:
        state: Where the instances stand.
        label: As given; rows may be restarted with others.
        exits: Where instances left, as far as that is kept.
        doubtful: 0-dimensional bool: something of this batch was not allowed; None where nobody doubts it.
    """

    def __init__(
        self,
        network: RoutedNetwork,
        state: RoutingState,
        label: Tensor,
        rewards: Rewards,
        manner: Manner,
        *,
        augmentation: Tensor | None = None,
        throughput: Throughput | None = None,
        keep_exits: bool = True,
        watchers: Sequence[Watch] = (),
    ) -> None:
        self.network, self.state, self.label, self.rewards, self.manner = network, state, label, rewards, manner
        self.augmentation, self._throughput = augmentation, throughput
        self._keep_exits, self._watchers = keep_exits or manner.graph, watchers
        self.exits: list[SettledExit] = []
        self.doubtful: Tensor | None = None
        self._names = ("loss", "correct", *rewards.names_at_exit)
        self._fared = torch.zeros(len(self._names), len(label), dtype=torch.get_default_dtype(), device=label.device)

    @property
    def loss(self) -> Tensor:
        """`(B,)` cross-entropy, weighted over exits, detached."""
        return self._fared[0]

    @property
    def correct(self) -> Tensor:
        """`(B,)` share of the instance that was classified right."""
        return self._fared[1]

    @property
    def final_rewards(self) -> dict[str, Tensor]:
        """`(B,)` of each term of the reward for leaving, by name."""
        return dict(zip(self._names[2:], self._fared[2:].unbind(0), strict=True))

    @property
    def final_reward(self) -> Tensor:
        """`(B,)` reward for leaving."""
        return self._fared[2] if len(self._fared) == 3 else self._fared[2:].sum(0)

    def seen(self) -> Seen:
        """Return what there is to see now."""
        return Seen(self.network, self.state, self.manner)

    def doubt(self, doubtful: Tensor) -> None:
        """Remember for the end of the batch that something may not have been allowed, 0-dimensional bool."""
        self.doubtful = doubtful if self.doubtful is None else self.doubtful | doubtful

    # ---------------------------------------------------------------------------------------------------------- turns

    def take(self, decide: Decide) -> tuple[Turn, dict[str, Tensor]]:
        """Let one decision be made for every row; see `take_turn`.

        Returns:
            The turn, and what the actions have earned, `(B,)` for each term.
        """
        turn = take_turn(self.network, self.state, decide, self.manner)
        return turn, self._take_over(turn)

    def drive(self, decide: Decide) -> Iterator[tuple[Turn, dict[str, Tensor]]]:
        """Carry all rows out of the network, turn by turn; yields what `take` returns."""
        for turn in drive(self.network, self.state, decide, self.manner):
            yield turn, self._take_over(turn)

    def follow(self, plan: Tensor) -> Iterator[tuple[Turn, dict[str, Tensor]]] | None:
        """Carry all rows at once through a network that is `in_order`, by routes known beforehand.

        Args:
            plan: `(B, N)` int64.

        Returns:
            What `drive` yields with the same actions; None, and nothing done, where the plan is not legal: who follows
            step by step finds out what is wrong.
        """
        network, before = self.network, self.state
        accepted = accept_plan(network, plan, first_legal=self.manner.first_legal, validate=self.manner.validate)
        if accepted is None:
            return None
        plan, doubtful = accepted
        with self.manner.forward_pass(plan.device, self.manner.graph):
            after = network.follow(before, plan)
        return self._turns(before, plan, after, doubtful)

    def _turns(
        self, before: RoutingState, plan: Tensor, after: RoutingState, doubtful: Tensor | None
    ) -> Iterator[tuple[Turn, dict[str, Tensor]]]:
        """Yield the turns of a plan that has been followed at once; the last of them lets the rows out."""
        spent = self.network.route_macs(plan).unbind(1)
        begun, seen = dataclasses.replace(before, waiting={}), None  # what waited can go
        for number, (choice, macs) in enumerate(zip(plan.unbind(1), spent, strict=True)):
            seen = Seen.passed(self.network, begun, self.manner, number, seen)
            exits = after.exits if number == len(spent) - 1 else ()
            turn = Turn(seen, choice.unsqueeze(1), macs, exits, after, None, doubtful)
            yield turn, self._take_over(turn)

    def _take_over(self, turn: Turn) -> dict[str, Tensor]:
        """Go on to where a turn has led, settle the rows that have left, and return what the actions have earned."""
        self.state = dataclasses.replace(turn.after, exits=()) if turn.after.exits else turn.after
        if turn.doubtful is not None:
            self.doubt(turn.doubtful)
        for exit in turn.exits:
            self._settle(exit, turn.seen)
        if self._throughput is not None and self.manner.graph:
            self._throughput.note(turn)
        for watch in self._watchers:
            watch(turn)
        return self.rewards.of_turn(turn, self.manner.validate) if self.rewards.of_actions else {}

    def _settle(self, exit: Exit, seen: Seen) -> None:
        """Work out what rows that have just left earn."""

        def own(column: Tensor) -> Tensor:
            return column if exit.rows is None else column.index_select(0, exit.rows)

        label = own(self.label)
        with torch.set_grad_enabled(self.manner.graph):
            loss = functional.cross_entropy(exit.logits, label, reduction="none")
        value = loss.detach()
        correct = classified_right(exit.logits.detach(), label).to(value.dtype)

        def told(name: str) -> Tensor:
            if name in ("loss", "correct", "label"):
                return {"loss": value, "correct": correct, "label": label}[name]
            columns = {"macs": self.state.macs.detach(), "task": seen.task, "depth": seen.decision, "price": seen.cost}
            return own(columns[name])

        earned = self.rewards.at_exit(told, len(label), self.manner.validate)
        fared = torch.stack([value, correct, *(reward.to(value.dtype) for reward in earned)])
        fared.mul_(exit.weight.detach())
        # What was told about earlier steps stays as it was.
        self._fared = self._fared + fared if exit.rows is None else self._fared.index_add(1, exit.rows, fared)
        if self._keep_exits:
            self.exits.append(SettledExit(exit.decision, exit.choice, exit.rows, exit.logits, loss, exit.weight))

    # ------------------------------------------------------------------------------------------------------- and after

    def restart(self, rows: Tensor, fresh: Batch) -> None:
        """Put other instances into some rows.

        Args:
            rows: `(r,)` int64.
            fresh: A batch of r instances at the beginning.
        """
        self.state = self.state.restarted(rows, fresh.state)
        self.label = self.label.index_copy(0, rows, fresh.label)
        self._fared = self._fared.index_fill(1, rows, 0)
        gone = torch.zeros(len(self.label), dtype=torch.bool, device=rows.device)
        gone[rows] = True
        self.exits = [kept for kept in (_without(exit, gone) for exit in self.exits) if kept is not None]
        if self.augmentation is not None and fresh.augmentation is not None:
            self.augmentation = self.augmentation.index_copy(0, rows.cpu(), fresh.augmentation)

    def block_loss(self) -> Tensor:
        """Return the mean over the batch of the cross-entropy, weighted over each instance's exits, with graph."""
        return batch_loss([exit.weight for exit in self.exits], [exit.loss for exit in self.exits], len(self.label))

    def infos(self) -> dict[str, Tensor]:
        """Return what is told about instances that have left, `(B,)` each."""
        return {
            "loss": self.loss,
            "correct": self.correct,
            "macs": self.state.macs.detach(),
            "label": self.label,
            "final_reward": self.final_reward,
        }

    def check(self) -> None:
        """Read whether every action was allowed.

        Raises:
            ValueError: One was not. On a GPU it was replaced when it came, so as not to wait for the device.
        """
        if self.doubtful is not None and bool(self.doubtful):
            raise ValueError("an action of this batch was out of range, masked or not finite: its results are void")

    def trajectory(self, steps: list[Step]) -> Trajectory:
        """Return the whole episodes, given their decisions."""
        state = self.state
        return Trajectory(
            steps=steps,
            exits=list(self.exits),
            task=state.task,
            instance=state.instance,
            label=self.label,
            price=state.price,
            final_rewards=self.final_rewards,
            correct=self.correct,
            loss=self.loss,
            macs=state.macs,
            expected_macs=state.expected_macs,
        )


def classified_right(logits: Tensor, label: Tensor) -> Tensor:
    """Return `(r,)` bool: the label's logit is larger than all others; a tie counts as wrong, whatever the order."""
    own = label.unsqueeze(1)
    return logits.gather(1, own).squeeze(1) > logits.scatter(1, own, -torch.inf).amax(1)


def batch_loss(weights: Iterable[Tensor], losses: Iterable[Tensor], batch: int) -> Tensor:
    """Return the mean over a batch of each instance's cross-entropy, weighted over its exits."""
    terms = [torch.dot(weight, loss) for weight, loss in zip(weights, losses, strict=True)]
    return sum(terms[1:], start=terms[0]) / batch


def _without(exit: SettledExit, gone: Tensor) -> SettledExit | None:
    """Take rows, `(B,)` bool, out of an exit; None where nothing is left."""
    rows = torch.arange(len(gone), device=gone.device) if exit.rows is None else exit.rows
    kept = (~gone[rows]).nonzero().flatten()
    if not len(kept):
        return None
    return dataclasses.replace(
        exit, rows=rows[kept], logits=exit.logits[kept], loss=exit.loss[kept], weight=exit.weight[kept]
    )
