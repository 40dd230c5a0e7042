"""Throughput-adjusted learning rates (McGill and Perona 2017, section 4.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from routing_gym.blocks import OwnedParameter
from routing_gym.envs.turns import Turn
from routing_gym.networks import RoutedNetwork, actions


class TALR:
    """Wraps the step of an optimiser: the gradient of every layer is multiplied by 1 / √(mean over the batch of p²).

    p is the probability with which an instance is routed through the layer (Eqs. 11-16, divided by the batch's size: a
    layer that all pass for certain keeps its rate). However little a layer is used, its updates then vary as much as if
    all instances passed it. Optimisers that divide by the size of the gradient, as Adam does, undo this.

    The gradients are scaled and not the rates, as in the authors' code: with momentum that is not quite the same.

    A parameter may belong to several layers; every passage through one of them counts then.
    """

    def __init__(self, layers: Sequence[Sequence[OwnedParameter]]) -> None:
        places: dict[tuple[int, int | None], tuple[OwnedParameter, list[int]]] = {}
        for number, layer in enumerate(layers):
            for owned in layer:
                places.setdefault((id(owned.parameter), owned.index), (owned, []))[1].append(number)
        self._shape = (len(layers),)
        # Parameters of the same layers are scaled by the same number.
        together: dict[tuple[int, ...], list[OwnedParameter]] = {}
        for owned, numbers in places.values():
            together.setdefault(tuple(numbers), []).append(owned)
        self._groups = list(together.items())

    @torch.no_grad()
    def scale(self, throughput: Tensor) -> None:
        """Scale the gradients, between the backward pass and the step, by a throughput `(layers,)`.

        It is the mean over the batch of p². Where it is 0 no instance passed, and there is no gradient to scale.
        """
        if throughput.shape != self._shape:
            raise ValueError(f"expected the throughput of {self._shape[0]} layers, got {tuple(throughput.shape)}")
        for numbers, owned in self._groups:
            passed = throughput[list(numbers)].sum()
            factor = torch.where(passed > 0, passed, torch.ones_like(passed)).rsqrt()
            for parameter in owned:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)


class Throughput:
    """Notes with what probability every instance of a batch takes every choice, and scales gradients by it.

    Parameters that belong to no choice run for all and keep their rate.
    """

    def __init__(self, network: RoutedNetwork) -> None:
        choices = [(d, c) for d, decision in enumerate(network.decisions) for c in range(decision.n)]
        self._talr = TALR([network.parameters_of(*choice) for choice in choices])
        self._decision, self._choice = map(list, zip(*choices, strict=True))
        self._form = (len(network.decisions) + 1, network.num_choices)
        self._passed: Tensor | None = None

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
        weights = actions.dense(turn.action, self._form[1]).detach().abs()
        if weights.ndim == 3 and weights.shape[1] == 1:
            weights = weights[:, 0]
        elif weights.ndim == 3:
            weights = 1 - (1 - (weights * seen.choosing.unsqueeze(-1)).clamp(max=1)).prod(1)
        rows = torch.arange(len(weights), device=weights.device)
        passed = seen.reach.unsqueeze(1) * weights.to(seen.reach.dtype)
        self._passed.index_put_((rows, seen.decision), passed, accumulate=True)

    def of_decisions(self) -> Tensor:
        """Mean over the batch of p², `(N,)`, p the probability with which an instance is at a decision."""
        assert self._passed is not None
        return self._passed[:, :-1].sum(-1).square().mean(0)

    def scale(self) -> None:
        """Scale the gradients of the network by this batch's throughput."""
        assert self._passed is not None
        self._talr.scale(self._passed.square().mean(0)[self._decision, self._choice])
