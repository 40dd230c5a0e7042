"""The routed network: which decisions there are, and what a step computes."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.blocks import OwnedParameter, PartlyUsed, SortedRows, blocks_merge, every_block_runs, plain
from routing_gym.blocks.base import weighed
from routing_gym.networks import actions
from routing_gym.networks.actions import Action
from routing_gym.networks.state import EXIT, Activation, Decision, Exit, RoutingState, Waiting, legal_table


class RoutedNetwork(PartlyUsed, ABC):
    """A network in which an outside agent decides the route of every instance.

    `start` puts a batch at the first decision, `advance` carries each row from its decision to the next one or out;
    both return a new `RoutingState`. `routing_gym.envs.drive` calls them, and checks actions (`accept`) in between.

    A subclass implements `stem`, `readout`, `describe`, `parameters_of` and, for decisions that mix activations,
    `transition`; `enter` where arriving at a decision computes something.

    Args:
        decisions: In order; a choice leads to a later one or out.
        num_classes: Width of the logits.
        input_shape: `(C, H, W)` of an image; None where it does not matter.
        stem_macs: Multiply-accumulates of what runs before the first decision.
        masks: `(N, M, A)` bool, further restrictions of what is legal; None for none.

    Attributes:
        observation_size: D, the width of an observation.
        num_choices: A, the largest number of choices of a decision.
        costs: `(N, A)` multiply-accumulates of each choice; 0 where a decision has fewer.
        in_order: Whether every instance passes every decision, in order, as one tensor: then it can `follow` a route.
        num_tensors: M, the largest number of tensors that arrive at a decision.
        exists: `(N + 1, M)` bool, the tensors there are at each decision, none behind the last.
        is_outcome: `(N + 1,)` bool, the decisions that mix outcomes.
        shares_outcomes: Whether there is such a decision.
        nothing_masked: Whether every choice is legal everywhere.
        rejoining: Whether ways on meet again: then outcomes cannot be shared out.
        dense_backward: Whether every choice runs while training, so that unchosen weights have a gradient.
        merge_blocks: Whether weights mix the blocks' parameters instead of their outputs.
        batch: Another object for every batch that is begun to be trained on, by whichever environment.
    """

    def __init__(
        self,
        decisions: Sequence[Decision],
        *,
        num_classes: int,
        input_shape: Sequence[int] | None,
        stem_macs: float = 0.0,
        masks: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.stem_macs = num_classes, float(stem_macs)
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.dense_backward = self.merge_blocks = False
        self.batch = object()
        self.set_decisions(decisions, masks)

    def set_decisions(self, decisions: Iterable[Decision], masks: Tensor | None = None) -> None:
        """Take decisions, and further restrictions of what is legal, as the only ones."""
        self.decisions = tuple(decisions)
        table = legal_table(self.decisions, masks)
        self.num_tensors, self.num_choices = table.shape[1:]
        self.observation_size = max(decision.width for decision in self.decisions)
        self.nothing_masked = bool(table.all())  # one check less in every step
        costs = [[*decision.macs, *[0.0] * (self.num_choices - decision.n)] for decision in self.decisions]
        self._costs_alike = all(len(set(decision.macs)) == 1 for decision in self.decisions)
        tensors = torch.tensor([*(decision.m for decision in self.decisions), 0])
        outcome = torch.tensor([*(decision.mixing == "outcome" for decision in self.decisions), False])
        self.register_buffer("_masks", table, persistent=False)
        self.register_buffer("costs", torch.tensor(costs, dtype=torch.get_default_dtype()), persistent=False)
        self.register_buffer("exists", torch.arange(self.num_tensors) < tensors.unsqueeze(1), persistent=False)
        self.register_buffer("is_outcome", outcome, persistent=False)
        self.shares_outcomes = any(decision.mixing == "outcome" for decision in self.decisions)
        self.in_order = all(
            decision.mixing == "activation" and decision.m == 1 and decision.next[0] == target
            for decision, target in zip(self.decisions, [*range(1, len(self.decisions)), EXIT], strict=True)
        )
        arrivals = Counter(target for decision in self.decisions for target in decision.ways if target != EXIT)
        self.rejoining = max(arrivals.values(), default=0) > 1

    _masks: Tensor
    costs: Tensor
    exists: Tensor
    is_outcome: Tensor

    # ------------------------------------------------------------------------------------ what a subclass provides

    @abstractmethod
    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Activation at the first decision of images `(B, C, H, W)` and tasks `(B,)`."""

    @abstractmethod
    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Logits `(r, num_classes)` of rows that leave from a decision by a choice."""

    @abstractmethod
    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Observation `(r, width)` at a decision: the activation or a pooled descriptor of it."""

    def exit_logits(self, decision: int, seen: Tensor) -> Tensor:
        """Logits `(r, num_classes)` that rows would leave with by choice 0, from their observations `(r, width)`.

        For networks of early exits whose classifiers need no more than that; they cost what choice 0 costs.
        """
        raise NotImplementedError(f"{type(self).__name__} has no exit_logits()")

    @abstractmethod
    def parameters_of(self, decision: int, choice: int) -> list[OwnedParameter]:
        """Parameters that run only by this choice at this decision."""

    def readouts_by_task(self) -> Sequence[Sequence[OwnedParameter]]:
        """Parameters that only the logits of one task come from, whatever runs them, by task; by default none."""
        return ()

    def transition(self, decision: int, activation: Activation, action: Action, task: Tensor) -> Activation:
        """Activation of r rows of tasks `(r,)` behind a decision that mixes activations.

        The action is choices `(r,)`, weights `(r, n)` or a sparse pair; weights `(r, m, n)` where m tensors arrive
        (choices have been turned into 0 and 1, and tensors that are not alive weigh 0).
        """
        raise NotImplementedError(f"{type(self).__name__} mixes activations but has no transition()")

    def enter(self, decision: int, activation: Activation) -> Activation:
        """Activation after what is computed on arrival at a decision; by default as it is."""
        return activation

    def alive(self, decision: int, activation: Activation) -> Tensor | None:
        """Mask `(r, m)` of the tensors that carry something; None where all do."""
        return None

    # ------------------------------------------------------------------------------------------------------ running

    def let_blocks_merge(self, on: bool) -> None:
        """Let weights mix blocks' parameters instead of their outputs, or not; refused where there are no banks."""
        if on:
            raise ValueError(f"merge_blocks=True: {type(self).__name__} has no banks of blocks that could be merged")

    def start(
        self, images: Tensor, task: Tensor, *, instance: Tensor | None = None, price: Tensor | None = None
    ) -> RoutingState:
        """State of a batch at the first decision.

        Args:
            images: `(B, C, H, W)` floating point, normalised.
            task: `(B,)` int64.
            instance: `(B,)` int64 row numbers in the data set, -1 by default.
            price: `(B,)` cost of one multiply-accumulate; 0 by default.
        """
        expected = self.input_shape or tuple(images.shape[1:])
        if tuple(images.shape[1:]) != expected or images.ndim != 4 or task.shape != images.shape[:1]:
            raise ValueError(
                f"expected images of shape (B, {', '.join(map(str, self.input_shape or 'CHW'))}) and (B,) tasks, got "
                f"{tuple(images.shape)} and {tuple(task.shape)}"
            )
        macs = images.new_full(task.shape, self.stem_macs)
        arrived = Waiting(None, self.enter(0, self.stem(images, task)), torch.ones_like(macs))
        return RoutingState(
            task=task,
            instance=torch.full_like(task, -1) if instance is None else instance,
            price=torch.zeros_like(macs) if price is None else price,
            macs=macs,
            expected_macs=macs,
            waiting={0: arrived},
            exits=(),
            num_decisions=len(self.decisions),
        )

    def advance(self, state: RoutingState, action: Action) -> RoutingState:
        """State after every row has gone from its decision to the next, or out; its `exits` are those of this step.

        The action, choices `(B, M)`, weights `(B, M, A)` or a pair, is one that `accept` has let in.
        """
        waiting = dict(state.waiting)
        arrivals: dict[int, list[Waiting]] = defaultdict(list)
        exits: list[Exit] = []
        macs, expected = state.macs, state.expected_macs

        for number, group, later in state.acting:
            del waiting[number]
            if later is not None:
                waiting[number] = later
            decision = self.decisions[number]
            own = self._narrow(number, group, actions.take(action, group.rows))
            self.note_use(actions.taken(own, group.reach, decision.n), number * self.num_choices)
            executed, cost = self.macs(number, own)
            alike = cost is executed and expected is state.macs
            macs = _add(macs, group.rows, executed)
            expected = macs if alike else _add(expected, group.rows, group.reach * cost)
            if decision.mixing == "activation":
                with every_block_runs(self.dense_backward), blocks_merge(self.merge_blocks):
                    mixed = self.transition(number, group.activation, own, state.task_of(group.rows))
                leaving = [(0, Waiting(group.rows, mixed, group.reach))]
            else:
                leaving = self._share_out(number, group, own)
            for choice, moved in leaving:
                target = decision.next[choice]
                if target == EXIT:
                    logits = self.readout(number, choice, moved.activation, state.task_of(moved.rows))
                    exits.append(Exit(number, choice, moved.rows, logits.to(macs.dtype), moved.reach))
                else:
                    arrivals[target].append(moved)

        for target, groups in arrivals.items():
            arrived = Waiting.join(groups)
            arrived = dataclasses.replace(arrived, activation=self.enter(target, arrived.activation))
            waiting[target] = Waiting.join([waiting[target], arrived]) if target in waiting else arrived
        return dataclasses.replace(state, macs=macs, expected_macs=expected, waiting=waiting, exits=tuple(exits))

    def follow(self, state: RoutingState, plan: Tensor, gates: Tensor | None = None) -> RoutingState:
        """State in which all rows of a batch that `start` returned have left, in any order, by a plan.

        Does what `advance` does with the columns of the plan, legal choices `(B, N)` int64, one after the other, in a
        network that is `in_order`. Gates `(B, N)` are ones, whose gradient is that of weights of what was chosen.
        """
        last = len(self.decisions) - 1
        self.note_use(plan + torch.arange(0, self.num_parts, self.num_choices, device=plan.device))
        (waiting,) = state.waiting.values()
        gated = () if gates is None else (gates,)  # a user's `traverse` may take no gates
        activation = self.traverse(waiting.activation, plan, state.task, *gated)
        rows, task, weight = None, state.task, waiting.reach
        if len(activation) == 1 and isinstance(activation[0], SortedRows):
            # The few numbers that go with each row are moved instead of the rows.
            rows, activation = activation[0].back, (activation[0].rows,)
            task, weight = task.index_select(0, rows), weight.index_select(0, rows)
        exit = Exit(last, 0, rows, self.readout(last, 0, activation, task).to(weight.dtype), weight)
        macs = state.macs + self.route_macs(plan).sum(1)
        return dataclasses.replace(state, macs=macs, expected_macs=macs, waiting={}, exits=(exit,))

    def traverse(self, activation: Activation, plan: Tensor, task: Tensor, gates: Tensor | None = None) -> Activation:
        """Activation behind the last decision of rows that take routes `(B, N)`, in a network that is `in_order`."""
        for number, choice in enumerate(plan.unbind(1)):
            if number:
                activation = self.enter(number, activation)
            activation = self.transition(number, activation, choice, task)
            if gates is not None:
                activation = tuple(weighed(plain(part), gates[:, number]) for part in activation)
        return activation

    def route_macs(self, plan: Tensor) -> Tensor:
        """Multiply-accumulates `(B, N)` of each choice of routes `(B, N)`, in a network that is `in_order`."""
        if self._costs_alike:  # no need to look them up
            return self.costs[:, 0].expand_as(plan)
        return self.costs.gather(1, plan.t()).t()

    @property
    def num_parts(self) -> int:
        """Number of choices, `num_choices` for each decision."""
        return self.costs.numel()

    def parts(self) -> list[list[OwnedParameter]]:
        """Parameters of every choice, `num_choices` for each decision; none where it has fewer."""
        return [
            self.parameters_of(number, choice) if choice < decision.n else []
            for number, decision in enumerate(self.decisions)
            for choice in range(self.num_choices)
        ]

    def _narrow(self, number: int, group: Waiting, action: Action) -> Action:
        """Action of the network's full width cut down to what a decision needs."""
        decision = self.decisions[number]
        if isinstance(action, tuple):
            return action[0].clamp(max=decision.n - 1), action[1]  # what lies beyond has no weight
        if decision.m == 1:
            return action[:, 0, : decision.n] if action.is_floating_point() else action[:, 0]
        gates = actions.dense(action, self.num_choices)[:, : decision.m, : decision.n]
        alive = self.alive(number, group.activation)
        return gates if alive is None else gates * alive.unsqueeze(-1)

    def _share_out(self, number: int, group: Waiting, action: Action) -> list[tuple[int, Waiting]]:
        """Rows that leave an outcome decision by each choice: by the one they chose, or by all with a weight."""
        weights = actions.dense(action, self.decisions[number].n) if actions.is_weights(action) else None
        if weights is not None and (self.runs_all or (self.dense_backward and self.training)):
            shares = enumerate(weights.unbind(1))
            return [(choice, dataclasses.replace(group, reach=group.reach * share)) for choice, share in shares]
        if weights is not None:
            follows = weights.t().detach().ne(0)
        else:
            assert isinstance(action, Tensor)
            follows = action.eq(torch.arange(self.decisions[number].n, device=action.device).unsqueeze(1))
        leaving = []
        for choice, positions in enumerate(_positions(follows)):
            if not len(positions):
                continue
            whole = len(positions) == len(group)
            moved = group if whole else group.pick(positions)
            if weights is not None:
                share = weights[:, choice] if whole else weights[:, choice].index_select(0, positions)
                moved = dataclasses.replace(moved, reach=moved.reach * share)
            leaving.append((choice, moved))
        return leaving

    # ------------------------------------------------------------------------------------- what an agent needs to see

    def observe(self, state: RoutingState) -> Tensor:
        """Observations `(B, D)` of all rows at their decisions, zero-padded; zeros for rows that have left."""
        if state.sole is not None:
            return self._seen(state.sole, state.waiting[state.sole])
        observation = state.macs.new_zeros(len(state), self.observation_size)
        for number, group, _ in state.acting:
            seen = self._seen(number, group)
            observation = seen if group.rows is None else observation.index_copy(0, group.rows, seen)
        return observation

    def _seen(self, number: int, group: Waiting) -> Tensor:
        """Observations `(r, D)` at a decision, in the type of the images, whatever autocast makes of activations."""
        seen = self.describe(number, group.activation).to(group.reach.dtype)
        missing = self.observation_size - seen.shape[1]
        return functional.pad(seen, (0, missing)) if missing else seen

    def action_mask(self, state: RoutingState) -> Tensor:
        """Legal choices `(B, M, A)` bool; all True for rows that have left and tensors that are not there."""
        mask = self._masks.index_select(0, state.at)
        for own, alive in self._alive(state):
            mask[own, : alive.shape[1]] |= ~alive.unsqueeze(-1)
        return mask

    def choosing(self, state: RoutingState) -> Tensor:
        """Tensors that choose now, `(B, M)` bool; none in rows that have left."""
        choosing = self.exists.index_select(0, state.at)
        for own, alive in self._alive(state):
            choosing[own, : alive.shape[1]] &= alive
        return choosing

    def _alive(self, state: RoutingState) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Rows of each decision and which of their tensors carry something, `(r, m)`, where not all must."""
        if self.num_tensors > 1:
            for number, group, _ in state.acting:
                alive = self.alive(number, group.activation)
                if alive is not None:
                    yield slice(None) if group.rows is None else group.rows, alive

    @property
    def masks(self) -> Tensor:
        """Legal choices `(N, M, A)` bool of each tensor at each decision; at least one."""
        return self._masks[:-1]

    def macs(self, decision: int, action: Action) -> tuple[Tensor, Tensor]:
        """Executed and expected multiply-accumulates, `(r,)` each, of an action as `transition` takes it.

        Executed is the cost of every choice with non-zero weight; expected, differentiable, the sum of weight times
        cost. Where m tensors arrive both count the union of what they reach: expected takes gate entries for
        independent probabilities (Σ_j cost_j (1 − Π_i (1 − g_ij))).
        """
        if isinstance(action, Tensor) and action.ndim == 1:
            costs = self.costs[decision].index_select(0, action)
            return costs, costs
        # Of a sparse action: a choice listed twice runs once.
        action = actions.dense(action, self.decisions[decision].n)
        costs = self.costs[decision, : self.decisions[decision].n]
        used = action.detach() != 0
        if action.ndim == 3:
            reached = 1 - (1 - action.clamp(0, 1)).prod(1)
            return (used.any(1) * costs).sum(1), (reached * costs).sum(1)
        return (used * costs).sum(1), (action * costs).sum(1)  # no products of matrices: autocast would round them


def _add(total: Tensor, rows: Tensor | None, amount: Tensor) -> Tensor:
    """Sums `(B,)` of `total (B,)` and, in some rows (None: in all), `amount (r,)`."""
    return total + amount if rows is None else total.index_add(0, rows, amount)


def _positions(follows: Tensor) -> list[Tensor]:
    """Where each row of a mask `(n, r)` is True, in order; a GPU is waited for once."""
    if follows.is_cpu:
        return [own.nonzero().flatten() for own in follows]
    first = (~follows).to(torch.uint8).sort(dim=1, stable=True).indices
    return [own[:count] for own, count in zip(first, follows.sum(1).tolist(), strict=True)]
