"""How much of a batch runs every block of a network, and gradients scaled by it: `TALR` and `OwnRows`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks import OwnedParameter
from routing_gym.envs.turns import Turn
from routing_gym.networks import RoutedNetwork, actions


class Factors:
    """Multiplies gradients between backward pass and step; what belongs to the same layers, by the same factor.

    A layer is parameters, or slices of stacks, each of which may belong to several layers.
    """

    def __init__(self, layers: Sequence[Sequence[OwnedParameter]]) -> None:
        self.layers = len(layers)
        places: dict[tuple[int, int | None], tuple[OwnedParameter, list[int]]] = {}
        for number, layer in enumerate(layers):
            for owned in layer:
                places.setdefault((id(owned.parameter), owned.index), (owned, []))[1].append(number)
        groups: dict[tuple[int, ...], int] = {}
        self._wholes: list[tuple[nn.Parameter, int]] = []
        slices: dict[nn.Parameter, dict[int, int]] = {}
        for owned, numbers in places.values():
            group = groups.setdefault(tuple(numbers), len(groups))
            if owned.index is None:
                self._wholes.append((owned.parameter, group))
            else:
                slices.setdefault(owned.parameter, {})[owned.index] = group
        # Where a group has fewer layers than another, or a slice belongs to none, the number is one too large.
        self._stacks = [
            (stack, torch.tensor([of.get(i, len(groups)) for i in range(len(stack))], device=stack.device))
            for stack, of in slices.items()
        ]
        most, device = max(map(len, groups), default=1), next((o.parameter.device for o, _ in places.values()), None)
        padded = [[*numbers, *[self.layers] * (most - len(numbers))] for numbers in groups]
        self._layers_of = torch.tensor(padded, dtype=torch.int64, device=device).view(len(groups), most)

    def of_groups(self, values: Tensor) -> Tensor:
        """Values `(..., groups, P)` of each group's layers, P at most, or 0, of those of all, `(..., layers)`."""
        if values.shape[-1] != self.layers:
            raise ValueError(f"expected the throughput of {self.layers} layers, got {tuple(values.shape)}")
        return functional.pad(values, (0, 1))[..., self._layers_of]

    @torch.no_grad()
    def multiply(self, factors: Tensor) -> None:
        """Multiply the gradients of groups by their factors, `(groups,)`, without asking a device for their values."""
        factors = functional.pad(factors, (0, 1), value=1.0)
        for parameter, group in self._wholes:
            if parameter.grad is not None:
                parameter.grad.mul_(factors[group])
        for parameter, groups in self._stacks:
            if parameter.grad is not None:
                parameter.grad.mul_(factors[groups].view(-1, *[1] * (parameter.ndim - 1)))


class TALR(Factors):
    """Wraps the step of an optimiser: the gradient of every layer is multiplied by 1 / √(mean over the batch of p²).

    p is the probability with which an instance is routed through the layer (McGill and Perona 2017, Eqs. 11-16), so
    that a layer all pass for certain keeps its rate. The paper prints 1 / ‖p‖; ours, for a batch of n instances, is
    √n / ‖p‖: their derivation is off by this factor, and as printed such a layer's rate would be divided by √n. However
    little a layer is used, its updates then vary as much as if all instances passed it. The gradients are scaled and
    not the rates, as in the authors' code: with momentum that is not quite the same, and optimisers that divide by the
    size of the gradient, as Adam does, undo it. A parameter may belong to several layers; every passage through one of
    them counts then.
    """

    def scale(self, throughput: Tensor) -> None:
        """Scale the gradients by a throughput `(layers,)`: means of p².

        Where it is 0 no instance passed, and there is no gradient to scale.
        """
        passed = self.of_groups(throughput).sum(-1)
        self.multiply(torch.where(passed > 0, passed, 1.0).rsqrt())


class OwnRows(Factors):
    """Wraps the step of an optimiser: the gradient of every layer is divided by the share of the batch that ran it.

    The loss is a mean over the batch, so a block that one of 20 tasks uses has a twentieth of the gradient of a shared
    one; Algorithm 2 of Rosenbaum et al. (2018) steps once per instance, where there is no such difference. Divided, it
    is the gradient of the mean over the block's own rows. The whole gradient is: that of auxiliary losses, too.

    A row that runs a layer several times counts once. Where instances weigh differently, the share is one of weight, as
    the mean is one over weights. What nobody ran has no gradient, and is left alone.
    """

    def scale(self, ran: Tensor, importance: Tensor | None) -> None:
        """Scale the gradients, given which instances ran which layers, `(B, layers)` of 0 and 1, and weigh `(B,)`."""
        own = self.of_groups(ran).amax(-1)
        share = own.mean(0) if importance is None else (importance.unsqueeze(1) * own).sum(0) / importance.sum()
        self.multiply(torch.where(share > 0, share, 1.0).reciprocal())


class Throughput:
    """Notes what every instance of a batch takes of every choice, and scales the gradients by it.

    By `TALR`, by how probable choices were; or by `OwnRows`, by who took them. To take a choice is to give it a weight
    other than 0: a dense mixture runs all blocks on all rows, and `dense_backward` does not count. Every choice is a
    layer of what it owns (`parameters_of`), of parallel paths the path and all predictions for it; what none owns, a
    trunk, say, is left alone. A readout is run by the instances of its task, as is the last layer of its column.
    """

    def __init__(self, network: RoutedNetwork, *, rows: bool) -> None:
        choices = [(d, c) for d, decision in enumerate(network.decisions) for c in range(decision.n)]
        layers, self._readouts = [network.parameters_of(*choice) for choice in choices], 0
        if rows:
            readouts = network.readouts_by_task()
            of_tasks = {(id(owned.parameter), owned.index) for readout in readouts for owned in readout}
            layers = [[o for o in layer if (id(o.parameter), o.index) not in of_tasks] for layer in layers]
            layers, self._readouts = [*layers, *map(list, readouts)], len(readouts)
        self.probable = not rows
        self._factors = OwnRows(layers) if rows else TALR(layers)
        self._form = (len(network.decisions) + 1, network.num_choices)
        flat = [decision * network.num_choices + choice for decision, choice in choices]
        self._flat = torch.tensor(flat, device=network.costs.device)
        self._passed: Tensor | None = None
        self._importance: Tensor | None = None
        self._task: Tensor | None = None

    def begin(self, rows: Tensor | None = None) -> None:
        """Forget the batch, or some rows of it, which begin anew."""
        if rows is None or self._passed is None:
            self._passed = None
        else:
            self._passed.index_fill_(0, rows, 0)

    @torch.no_grad()
    def note(self, turn: Turn) -> None:
        """Add a decision of every row: weights are probabilities; of M tensors any may take a choice."""
        seen = turn.seen
        if self._passed is None:
            self._passed = seen.reach.new_zeros(len(seen.reach), *self._form)
        weights, reach = actions.dense(turn.action, self._form[1]).detach().abs(), seen.reach
        if not self.probable:
            weights, reach = weights.ne(0).to(reach.dtype), reach.ne(0).to(reach.dtype)
        if weights.ndim == 3 and weights.shape[1] == 1:
            weights = weights[:, 0]
        elif weights.ndim == 3:
            weights = 1 - (1 - (weights * seen.choosing.unsqueeze(-1)).clamp(max=1)).prod(1)
        rows = torch.arange(len(weights), device=weights.device)
        passed = reach.unsqueeze(1) * weights.to(reach.dtype)
        self._passed.index_put_((rows, seen.decision), passed, accumulate=True)

    def weigh(self, importance: Tensor | None, task: Tensor) -> None:
        """Note what the instances of the whole batch weigh, `(B,)`, and their tasks, `(B,)`."""
        self._importance, self._task = importance, task

    def of_decisions(self) -> Tensor:
        """Mean over the batch of p², `(N,)`, p the probability with which an instance is at a decision."""
        assert self._passed is not None
        return self._passed[:, :-1].sum(-1).square().mean(0)

    def scale(self) -> None:
        """Scale the gradients of the network by this batch's throughput."""
        assert self._passed is not None
        passed = self._passed.flatten(1).index_select(1, self._flat)
        if isinstance(self._factors, TALR):
            self._factors.scale(passed.square().mean(0))
            return
        if self._readouts:
            assert self._task is not None
            passed = torch.cat([passed, functional.one_hot(self._task, self._readouts).to(passed.dtype)], 1)
        self._factors.scale(passed, self._importance)
