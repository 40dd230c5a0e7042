"""Adam, AdamW and SGD that move only what a batch has used, however it is stored.

PyTorch's optimisers leave a parameter without a gradient alone. A block that no row took has none where it is a module
of its own, but zeros where it is a slice of a stack, and zeros still move it: by momentum, and by weight decay. Here a
slice is treated as a parameter of its own, its count of steps for Adam's bias correction included.
"""

from __future__ import annotations

import dataclasses
import itertools
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from functools import cache, cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from routing_gym.blocks.base import PartlyUsed

FEW_RUNS, FEW_NUMBERS = 8, 2048
"""On a CPU, of more runs of slices than these, with fewer numbers each, going over the whole stack is cheaper."""

Options = dict[str, Any]


class Slices:
    """The k slices of some stacked parameters; `places` has each owner's parts and the slices that belong to these."""

    def __init__(self, count: int, places: dict[PartlyUsed, tuple[list[int], list[int]]]) -> None:
        self.count = count
        self._places = [
            (
                owner,
                torch.tensor(parts, device="cpu"),
                None if slices == list(range(count)) else torch.tensor(slices, device="cpu"),
            )
            for owner, (parts, slices) in places.items()
        ]

    def used(self, device: torch.device) -> Tensor | None:
        """Mask `(k,)` of the slices that have been used; None where all have, as far as the host can know it."""
        used = None
        for number, (owner, parts, slices) in enumerate(self._places):
            if owner.used is None:
                continue
            if parts.device != device:
                parts, slices = parts.to(device), None if slices is None else slices.to(device)
                self._places[number] = owner, parts, slices
            own = owner.used.index_select(0, parts)
            if slices is not None:  # some belong to no part, or to several
                own = torch.zeros(self.count, dtype=torch.int32, device=device).index_add_(0, slices, own.int()) > 0
            used = own if used is None else used & own
        return None if used is None or (device.type == "cpu" and used.numpy().all()) else used


@dataclasses.dataclass
class Plan:
    """Slices that take a step: the same for all stacks of these slices whose steps have been counted alike."""

    used: Tensor
    """`(k,)` bool, the slices."""
    steps: Tensor
    """`(k,)` float32, the steps that each slice has taken before."""
    factors: Any = None
    """Those of `UsedOnly.move_rows`, once somebody has worked them out."""

    @cached_property
    def runs(self) -> tuple[list[int], list[int], Tensor]:
        """Slices side by side that can be moved as one tensor: sizes of all runs, those used, and their steps."""
        steps, used = self.steps.numpy(), self.used.numpy()
        begins = np.ones(len(steps), dtype=bool)
        begins[1:] = (steps[1:] != steps[:-1]) | (used[1:] != used[:-1])
        starts = begins.nonzero()[0]
        chosen = used[starts].nonzero()[0]
        places = [*starts.tolist(), len(steps)]
        sizes = [after - before for before, after in zip(places, places[1:], strict=False)]
        return sizes, chosen.tolist(), torch.from_numpy(steps[starts[chosen]])


Plans = dict[Any, Plan]
Columns = list[list[Tensor]]
"""Parameters, or parts of them, that are moved alike; their gradients, moments, and, where counted, their steps."""


class UsedOnly(torch.optim.Optimizer):
    """An optimiser of a module's parameters that moves only what `PartlyUsed` modules in it have noted as used.

    With `decayed="weights"` the decay of weights spares biases and normalisations, a second group of parameters: all
    that have one axis, of stacks beside that of the slices.
    """

    counts: ClassVar[bool]
    """Whether it counts the steps of every parameter."""

    def __init__(self, module: nn.Module, decayed: str = "all", **defaults: Any) -> None:
        self._owners = [part for part in module.modules() if isinstance(part, PartlyUsed)]
        self._wholes, self._slices = _by_part(self._owners)
        groups: list[Options] = [{"params": list(module.parameters())}]
        if decayed == "weights":
            spared = [p.ndim - (p in self._slices) < 2 for p in groups[0]["params"]]
            parts = [[p for p, of in zip(groups[0]["params"], spared, strict=True) if of == kind] for kind in (0, 1)]
            groups = [{"params": parts[0]}, {"params": parts[1], "weight_decay": 0.0}]
        # PyTorch keeps the counts of what it calls fused beside the parameters.
        super().__init__(groups, {**defaults, "fused": True})

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs: PyTorch's optimisers know of nothing but their own."""
        own = {name: getattr(self, name) for name in ("_owners", "_wholes", "_slices")}
        return {**super().__getstate__(), **own}

    @staticmethod
    @abstractmethod
    def moments(group: Options) -> tuple[str, ...]:
        """Names of the running averages that are kept of every parameter of a group."""

    @abstractmethod
    def move(self, group: Options, columns: Columns) -> None:
        """Take a step with each of some tensors."""

    @abstractmethod
    def factors(self, group: Options, used: Tensor, step: Tensor) -> Any:
        """Factors of `move_rows`, given `(k, 1)` the rows to be moved and the number, from 1, of the step of each."""

    @abstractmethod
    def move_rows(self, group: Options, stacks: list[Tensor], factors: Any) -> None:
        """Take a step with some rows of parameter, gradient and moments `(k, n)`, without asking on the host which."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step, and forget what has been used."""
        if closure is not None:
            raise ValueError("these optimisers take no closure: compute the loss and its gradients, then call step()")
        used_of = cache(Slices.used)  # alike for all stacks of the same slices
        unused = self._unused()
        for group in self.param_groups:
            moments = self.moments(group)
            kept = (*moments, "step") if self.counts else moments
            columns: Columns = [[] for _ in ("parameter", "gradient", *kept)]
            plans: Plans = {}
            for parameter in group["params"]:
                if parameter.grad is None or parameter in unused:
                    continue
                slices, state = self._slices.get(parameter), self.state[parameter]
                if not state:
                    if self.counts:  # until some slices have been left out; then `(k,)`
                        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    state |= {name: torch.zeros_like(parameter) for name in moments}
                if parameter.grad.is_sparse:
                    assert slices is not None
                    self._move_few(group, columns, parameter, slices)
                    continue
                used = None if slices is None else used_of(slices, parameter.device)
                if slices is not None and (used is not None or (self.counts and state["step"].ndim)):
                    self._move_slices(group, columns, plans, parameter, slices, used)
                    continue
                tensors = parameter, parameter.grad, *map(state.__getitem__, kept)
                for column, tensor in zip(columns, tensors, strict=True):
                    column.append(tensor)
            if columns[0]:
                self.move(group, columns)
        for owner in self._owners:
            if owner.used is not None:
                owner.used = None

    def _unused(self) -> set[nn.Parameter]:
        """Parameters that belong as a whole to parts nobody has used: they may have gradients of zero."""
        noted = {owner: owner.used for owner in self._owners if owner.used is not None} if self._wholes else {}
        if not noted:
            return set()
        flat = iter(torch.cat(list(noted.values())).tolist())  # a GPU is waited for once
        used = {owner: list(itertools.islice(flat, len(own))) for owner, own in noted.items()}
        return {
            parameter
            for parameter, places in self._wholes.items()
            if any(owner in used and not any(map(used[owner].__getitem__, parts)) for owner, parts in places.items())
        }

    def form(self, saved: Any) -> dict[int, dict[str, Tensor]]:
        """Example of every parameter's state in `saved`, the `state_dict` of another optimiser, by its number there."""
        form = {}
        for group, theirs in zip(self.param_groups, saved["param_groups"], strict=True):
            for parameter, number in zip(group["params"], theirs["params"], strict=True):
                form[number] = state = dict.fromkeys(self.moments(theirs), parameter)
                if self.counts:
                    counted = getattr(saved["state"].get(number, {}).get("step"), "ndim", 0)
                    each = len(parameter) if counted and parameter in self._slices else ()
                    state["step"] = torch.zeros(each, dtype=torch.float32, device="cpu")
        return form

    def _move_slices(
        self, group: Options, columns: Columns, plans: Plans, parameter: Tensor, slices: Slices, used: Tensor | None
    ) -> None:
        """Enter those slices of a stack that have been used, as few tensors as can be, or move them at once."""
        state, count, device = self.state[parameter], slices.count, parameter.device
        steps = state["step"].expand(count) if self.counts else torch.zeros(count, device=device)
        # On a GPU nobody knows whether they were counted alike.
        key = (slices, steps.numpy().tobytes()) if device.type == "cpu" else parameter
        if key not in plans:
            plans[key] = Plan(torch.ones(count, dtype=torch.bool, device=device) if used is None else used, steps)
        plan = plans[key]
        assert parameter.grad is not None
        # Views of what is written to: a stack whose slices do not lie in one piece is refused, not moved in a copy.
        own, *moments = (tensor.view(count, -1) for tensor in (parameter, *map(state.get, self.moments(group))))
        stacks = [own, parameter.grad.reshape(count, -1), *moments]
        if own.is_cpu and (len(plan.runs[1]) <= FEW_RUNS or own.numel() >= FEW_NUMBERS * count):
            sizes, chosen, taken = plan.runs
            for column, stack in zip(columns, stacks, strict=False):
                column.extend(map(torch.split_with_sizes(stack, sizes).__getitem__, chosen))
            if self.counts:
                columns[-1].extend(taken.clone().unbind(0))
        else:
            if plan.factors is None:
                plan.factors = self.factors(group, plan.used.unsqueeze(1), plan.steps.unsqueeze(1) + 1)
            self.move_rows(group, stacks, plan.factors)
        if self.counts:  # in place where there are as many already, for whoever has captured this step
            counted = plan.steps + plan.used
            state["step"] = state["step"].copy_(counted) if state["step"].ndim and not own.is_cpu else counted

    def _move_few(self, group: Options, columns: Columns, parameter: Tensor, slices: Slices) -> None:
        """Enter the slices of a stack that a sparse gradient is of, or move them at once; nothing else is read."""
        state, grad, count = self.state[parameter], parameter.grad, slices.count
        assert grad is not None
        if not bool((grad._indices()[0].diff() > 0).all()):  # from several places; PyTorch forgets where not
            grad = grad.coalesce()
        rows, values = grad._indices()[0], grad._values().flatten(1)
        steps = state["step"].expand(count) if self.counts else torch.zeros(count, device="cpu")
        taken, kept = steps[rows], map(state.get, self.moments(group))
        stacks = [tensor.view(count, -1) for tensor in (parameter, *kept)]
        if parameter.numel() >= FEW_NUMBERS * count:
            slices_of = [map(stack.__getitem__, rows.tolist()) for stack in stacks]
            for column, part in zip(columns, (slices_of[0], values, *slices_of[1:], taken), strict=False):
                column.extend(part)
        else:
            own, *moments = moved = [stack.index_select(0, rows) for stack in stacks]
            whole = torch.ones(len(rows), 1, dtype=torch.bool, device="cpu")
            factors = self.factors(group, whole, taken.unsqueeze(1) + 1)
            self.move_rows(group, [own, values, *moments], factors)
            for stack, part in zip(stacks, moved, strict=True):
                stack.index_copy_(0, rows, part)
        if self.counts:
            state["step"] = steps.index_copy(0, rows, taken + 1)


class Adam(UsedOnly):
    """Adam (Kingma and Ba 2015), with L2 penalty or, as AdamW, decoupled weight decay; as `torch.optim.Adam`."""

    counts = True
    decoupled = False

    def __init__(
        self,
        module: nn.Module,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decayed: str = "all",
    ) -> None:
        super().__init__(module, decayed, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)

    @staticmethod
    def moments(group: Options) -> tuple[str, ...]:
        """Names of both averages."""
        return ("exp_avg", "exp_avg_sq")

    def move(self, group: Options, columns: Columns) -> None:
        """See `UsedOnly.move`."""
        parameters, grads, average, square, steps = columns
        options = {name: group[name] for name in ("lr", "weight_decay", "eps")} | {"amsgrad": False, "maximize": False}
        options["beta1"], options["beta2"] = group["betas"]
        options["decoupled_weight_decay"] = self.decoupled
        adam(parameters, grads, average, square, [], steps, fused=True, **options)

    def factors(self, group: Options, used: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        """Rates of both averages, size of the step, addend of the denominator, and decay; 0 or 1 if not used."""
        (beta1, beta2), lr = group["betas"], group["lr"]
        step = step.double()
        root = torch.pow(beta2, step).neg_().add_(1).sqrt_()
        size = torch.pow(beta1, step).neg_().add_(1).reciprocal_().mul_(root).mul_(used * -lr)
        decay = 1 - lr * group["weight_decay"] * used
        return (1 - beta1) * used, (1 - beta2) * used, size.float(), root.mul_(group["eps"]).float(), decay

    def move_rows(self, group: Options, stacks: list[Tensor], factors: Any) -> None:
        """See `UsedOnly.move_rows`."""
        (parameter, grad, average, square), (first, second, size, eps, decay) = stacks, factors
        if group["weight_decay"] and self.decoupled:
            parameter.mul_(decay)
        elif group["weight_decay"]:
            grad = grad.add(parameter, alpha=group["weight_decay"])
        average.lerp_(grad, first)
        square.lerp_(grad.square(), second)
        parameter.addcmul_(average.div(square.sqrt().add_(eps)), size)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); as `torch.optim.AdamW`."""

    decoupled = True


class SGD(UsedOnly):
    """Stochastic gradient descent with momentum and L2 penalty; as `torch.optim.SGD`."""

    counts = False

    def __init__(
        self,
        module: nn.Module,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        decayed: str = "all",
    ) -> None:
        super().__init__(module, decayed, lr=lr, weight_decay=weight_decay, momentum=momentum)

    @staticmethod
    def moments(group: Options) -> tuple[str, ...]:
        """Name of the average, if there is one."""
        return ("momentum_buffer",) if group["momentum"] else ()

    def move(self, group: Options, columns: Columns) -> None:
        """See `UsedOnly.move`."""
        parameters, grads, *moments = columns
        options = {name: group[name] for name in ("lr", "weight_decay", "momentum")}
        options |= {"dampening": 0.0, "nesterov": False, "maximize": False}
        sgd(parameters, grads, [*moments[0]] if moments else [None] * len(grads), fused=True, **options)

    def factors(self, group: Options, used: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Rows to be moved, and the size of the step, 0 if they are not."""
        return used, used * -group["lr"]

    def move_rows(self, group: Options, stacks: list[Tensor], factors: Any) -> None:
        """See `UsedOnly.move_rows`."""
        (parameter, grad, *moments), (used, size) = stacks, factors
        if group["weight_decay"]:
            grad = grad.add(parameter, alpha=group["weight_decay"])
        for buffer in moments:
            grad = buffer.copy_(torch.where(used, group["momentum"] * buffer + grad, buffer))
        parameter.addcmul_(grad, size)


def _by_part(
    owners: Iterable[PartlyUsed],
) -> tuple[dict[nn.Parameter, dict[PartlyUsed, list[int]]], dict[nn.Parameter, Slices]]:
    """Parts, by owner, of parameters that belong to parts as a whole; and stacks, those of the same parts share one."""
    wholes: dict[nn.Parameter, dict[PartlyUsed, list[int]]] = {}
    places: dict[nn.Parameter, dict[PartlyUsed, tuple[list[int], list[int]]]] = {}
    for owner in owners:
        for number, part in enumerate(owner.parts()):
            for owned in part:
                if owned.index is None:
                    wholes.setdefault(owned.parameter, {}).setdefault(owner, []).append(number)
                else:
                    parts, slices = places.setdefault(owned.parameter, defaultdict(lambda: ([], [])))[owner]
                    parts.append(number)
                    slices.append(owned.index)
    together: dict[Any, Slices] = {}
    stacks = {}
    for parameter, owned_by in places.items():
        key = len(parameter), tuple((id(owner), *map(tuple, columns)) for owner, columns in owned_by.items())
        stacks[parameter] = together.setdefault(key, Slices(len(parameter), owned_by))
    return wholes, stacks
