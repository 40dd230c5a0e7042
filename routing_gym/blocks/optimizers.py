"""Adam, AdamW and SGD that move only what a batch has used, however it is stored.

PyTorch's optimisers leave a parameter without a gradient alone. A block that no row took has none where it is a module
of its own, but zeros where it is a slice of a stack, and zeros still move it: by momentum, and by weight decay. Here a
slice is treated as a parameter of its own, its count of steps for Adam's bias correction included.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from routing_gym.blocks.ownership import PartlyUsed

FEW_NUMBERS = 2048
"""Numbers per slice below which, on a CPU, going over the whole stack is cheaper than a call per run of slices."""


class _Slices:
    """The slices of some stacked parameters, and the parts of modules that each belongs to.

    Args:
        count: How many slices a stack has.
        places: For each owner its parts, and the slices that belong to these.
    """

    def __init__(self, count: int, places: dict[PartlyUsed, tuple[list[int], list[int]]]) -> None:
        self.count = count
        self._places = [
            (owner, torch.tensor(parts), None if slices == list(range(count)) else torch.tensor(slices))
            for owner, (parts, slices) in places.items()
        ]

    def used(self, device: torch.device) -> Tensor | None:
        """Return `(count,)` bool: which slices have been used; None where nobody has noted anything."""
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
        return used


class _Moves(NamedTuple):
    """Parameters, or parts of them, that take one and the same kind of step: a list of tensors for each column."""

    parameters: list[Tensor]
    grads: list[Tensor]
    moments: list[list[Tensor]]
    steps: list[Tensor]


class UsedOnly(torch.optim.Optimizer):
    """An optimiser that moves only what has been used: see the module's text.

    Args:
        module: Whose parameters it moves; `PartlyUsed` modules in it say what of them has been used.
        moments: Names of the running averages it keeps of every parameter.
        defaults: Options of the optimiser.
    """

    counts: ClassVar[bool]
    """Whether it counts the steps of every parameter."""

    def __init__(self, module: nn.Module, moments: tuple[str, ...], **defaults: Any) -> None:
        # PyTorch keeps the counts of what it calls fused beside the parameters.
        super().__init__(list(module.parameters()), {**defaults, "fused": True})
        self._moments = moments
        self._owners = [part for part in module.modules() if isinstance(part, PartlyUsed)]
        self._slices = _stacks(self._owners)

    @abstractmethod
    def move(self, group: dict[str, Any], moves: _Moves) -> None:
        """Take a step with each of some tensors; `steps` count those before it, and are counted on."""

    @abstractmethod
    def move_rows(
        self, group: dict[str, Any], parameter: Tensor, grad: Tensor, moments: list[Tensor], step: Tensor, used: Tensor
    ) -> None:
        """Take a step with some rows of a stack, without asking on the host which.

        Args:
            group: Options.
            parameter: `(k, n)`.
            grad: `(k, n)`.
            moments: `(k, n)` each.
            step: `(k, 1)`, this step included.
            used: `(k, 1)` bool: the rows to be moved.
        """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step, and forget what has been used."""
        if closure is not None:
            raise ValueError("these optimisers take no closure: compute the loss and its gradients, then call step()")
        known: dict[_Slices, Tensor | None] = {}
        for group in self.param_groups:
            moves = _Moves([], [], [[] for _ in self._moments], [])
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                slices = self._slices.get(parameter)
                state = self._state_of(parameter, slices)
                moments = [state[name] for name in self._moments]
                if slices is None:
                    _enter(moves, parameter, parameter.grad, moments, state.get("step"))
                    continue
                if slices not in known:
                    known[slices] = slices.used(parameter.device)
                step = state["step"] if self.counts else torch.zeros(slices.count, device=parameter.device)
                self._enter_slices(group, moves, parameter, moments, step, known[slices])
            if moves.parameters:
                self.move(group, moves)
        for owner in self._owners:
            owner.used = None

    def _state_of(self, parameter: Tensor, slices: _Slices | None) -> dict[str, Tensor]:
        """Return a parameter's averages and counts of steps, `()` or one for each slice, zeros at first."""
        state = self.state[parameter]
        if not state:
            if self.counts:
                count = () if slices is None else (slices.count,)
                state["step"] = torch.zeros(count, dtype=torch.float32, device=parameter.device)
            for name in self._moments:
                state[name] = torch.zeros_like(parameter)
        return state

    def _enter_slices(
        self,
        group: dict[str, Any],
        moves: _Moves,
        parameter: nn.Parameter,
        moments: list[Tensor],
        step: Tensor,
        used: Tensor | None,
    ) -> None:
        """Enter those slices of a stack that have been used, as few tensors as can be, or move them at once."""
        assert parameter.grad is not None
        count = len(step)
        if parameter.device.type == "cpu":
            steps = step.numpy()
            which = np.ones(count, dtype=bool) if used is None else used.numpy()
            if which.all() and (steps == steps[0]).all():
                _enter(moves, parameter, parameter.grad, moments, step[0].clone())
                steps += 1
                return
            if parameter.numel() >= FEW_NUMBERS * count:
                # Slices side by side that have taken as many steps are one tensor.
                ends = np.flatnonzero((np.diff(steps) != 0) | (np.diff(which) != 0)) + 1
                starts = np.concatenate([[0], ends])
                sizes = np.diff(np.concatenate([starts, [count]])).tolist()
                chosen = np.flatnonzero(which[starts]).tolist()
                runs = [tensor.reshape(count, -1).split(sizes) for tensor in (parameter, parameter.grad, *moments)]
                taken = torch.from_numpy(steps[starts]).unbind(0)
                for run in chosen:
                    own, grad, *averages = (tensor[run] for tensor in runs)
                    _enter(moves, own, grad, averages, taken[run])
                steps += which
                return
        if used is None:
            used = torch.ones(count, dtype=torch.bool, device=parameter.device)
        step += used
        tensors = [tensor.reshape(count, -1) for tensor in (parameter, parameter.grad, *moments)]
        self.move_rows(group, tensors[0], tensors[1], tensors[2:], step.unsqueeze(1), used.unsqueeze(1))


def _enter(moves: _Moves, parameter: Tensor, grad: Tensor, moments: Iterable[Tensor], step: Tensor | None) -> None:
    moves.parameters.append(parameter)
    moves.grads.append(grad)
    for column, moment in zip(moves.moments, moments, strict=True):
        column.append(moment)
    if step is not None:
        moves.steps.append(step)


def _stacks(owners: Iterable[PartlyUsed]) -> dict[nn.Parameter, _Slices]:
    """Return the stacked parameters and what their slices belong to; those of the same parts share one object."""
    places: dict[nn.Parameter, dict[PartlyUsed, tuple[list[int], list[int]]]] = {}
    for owner in owners:
        for number, part in enumerate(owner.parts()):
            for owned in part:
                if owned.index is not None:
                    of_owner = places.setdefault(owned.parameter, defaultdict(lambda: ([], [])))
                    for column, value in zip(of_owner[owner], (number, owned.index), strict=True):
                        column.append(value)
    together: dict[Any, _Slices] = {}
    stacks = {}
    for parameter, owned_by in places.items():
        count = len(parameter)
        key = count, tuple((id(owner), *map(tuple, columns)) for owner, columns in owned_by.items())
        stacks[parameter] = together.setdefault(key, _Slices(count, owned_by))
    return stacks


class Adam(UsedOnly):
    """Adam (Kingma and Ba 2015), with L2 penalty or, as AdamW, decoupled weight decay; as `torch.optim.Adam`.

    Args:
        module: As in `UsedOnly`.
        lr: Step size.
        weight_decay: Weight of the penalty.
        betas: Rates of the running averages.
        eps: Added to the denominator.
    """

    counts = True
    decoupled = False

    def __init__(
        self,
        module: nn.Module,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(module, ("exp_avg", "exp_avg_sq"), lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)

    def move(self, group: dict[str, Any], moves: _Moves) -> None:
        """Take a step with each of some tensors."""
        average, square = moves.moments
        adam(
            moves.parameters,
            moves.grads,
            average,
            square,
            [],
            moves.steps,
            fused=True,
            decoupled_weight_decay=self.decoupled,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )

    def move_rows(
        self, group: dict[str, Any], parameter: Tensor, grad: Tensor, moments: list[Tensor], step: Tensor, used: Tensor
    ) -> None:
        """Take a step with some rows of a stack: what is not used has a step size and rates of 0."""
        (average, square), (beta1, beta2), lr, decay = moments, group["betas"], group["lr"], group["weight_decay"]
        if decay and self.decoupled:
            parameter.mul_(1 - lr * decay * used)
        elif decay:
            grad = grad.add(parameter, alpha=decay)
        average.lerp_(grad, (1 - beta1) * used)
        square.lerp_(grad.square(), (1 - beta2) * used)
        step = step.double().clamp(min=1)  # 1 where there was none: whatever it is, nothing moves
        root = (1 - beta2**step).sqrt()
        size = (used * -lr * root / (1 - beta1**step)).to(parameter.dtype)
        denominator = square.sqrt().add_((group["eps"] * root).to(parameter.dtype))
        parameter.addcmul_(average.div(denominator), size)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); as `torch.optim.AdamW`."""

    decoupled = True


class SGD(UsedOnly):
    """Stochastic gradient descent with momentum and L2 penalty; as `torch.optim.SGD`.

    Args:
        module: As in `UsedOnly`.
        lr: Step size.
        weight_decay: Weight of the penalty.
        momentum: Rate at which past gradients count.
    """

    counts = False

    def __init__(self, module: nn.Module, lr: float = 1e-3, weight_decay: float = 0.0, momentum: float = 0.0) -> None:
        moments = ("momentum_buffer",) if momentum else ()
        super().__init__(module, moments, lr=lr, weight_decay=weight_decay, momentum=momentum)

    def move(self, group: dict[str, Any], moves: _Moves) -> None:
        """Take a step with each of some tensors."""
        sgd(
            moves.parameters,
            moves.grads,
            list(moves.moments[0]) if moves.moments else [None] * len(moves.grads),
            fused=True,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
        )

    def move_rows(
        self, group: dict[str, Any], parameter: Tensor, grad: Tensor, moments: list[Tensor], step: Tensor, used: Tensor
    ) -> None:
        """Take a step with some rows of a stack."""
        if group["weight_decay"]:
            grad = grad.add(parameter, alpha=group["weight_decay"])
        for buffer in moments:
            grad = buffer.copy_(torch.where(used, group["momentum"] * buffer + grad, buffer))
        parameter.addcmul_(grad, -group["lr"] * used.to(grad.dtype))
