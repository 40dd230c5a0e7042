"""Rows sorted by their block, and linear blocks run one after the other on them, as one function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from routing_gym.blocks.fast.groups import Groups, group_plan, on_host
from routing_gym.blocks.fast.products import GROUPED_DTYPES, affine, outer_products, products

ZERO_BLOCK = (0, 0, 0, 0, 0, 1)
"""Padding of stacked weights by one more block, of zeros."""


class SortedRows:
    """Rows `(B, ...)` left in the order of the blocks that made them, until someone asks for them in their own.

    The next layer gathers its rows from wherever they stand, so that between two layers rows move once, not twice. Row
    i stands at `rows[place[i]]`; `place` is `(B,)` int64, and `back` its inverse.
    """

    def __init__(self, rows: Tensor, place: Tensor, back: Tensor) -> None:
        self.rows, self.place, self.back = rows, place, back

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Some rows, as of `Tensor.index_select` along the first axis."""
        return self.rows.index_select(dim, self.place.index_select(0, index))


def plain(rows: Tensor | SortedRows) -> Tensor:
    """Rows in their own order."""
    if isinstance(rows, SortedRows):
        rows = _Permute.apply(rows.rows, rows.place, rows.back)
        assert isinstance(rows, Tensor)
    return rows


class _Permute(torch.autograd.Function):
    """Reorder rows; going back is reordering them the other way, without the scattered sum of `index_select`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return rows.index_select(0, place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.index_select(0, ctx.back), None, None


class Link(NamedTuple):
    """One bank of linear blocks in a chain, of weights `(k, in_features, out_features)` and biases `(k, out_features)`.

    `passes` says whether there is one more choice, k, that leaves a row as it is; inputs are as wide as outputs then.
    """

    weight: Tensor
    bias: Tensor
    relu: bool
    passes: bool


def run_chain(links: Sequence[Link], x: Tensor | SortedRows, plan: Tensor, gates: Tensor | None = None) -> SortedRows:
    """Outputs `(B, out_features)` of linear blocks run one after the other.

    `plan` has the choices `(B, L)` int64 of each row in each of L links, each as wide as the outputs of the one before.
    `gates` `(B, L)` are ones: their gradient is that of factors of every link's outputs.
    """
    links, x = autocast(links, x)
    layers = group_plan(plan, [len(link.weight) + link.passes for link in links])
    rows, place, back = (x.rows, x.place, x.back) if isinstance(x, SortedRows) else (x, None, None)
    steps = []
    for link, groups in zip(links, layers, strict=True):
        # From where the rows stand now to the order of the blocks, and back; None where they stand right already.
        if place is None or back is None:
            move: tuple[Tensor, Tensor] | None = (groups.order, groups.inverse)
        elif back is groups.order:
            move = None
        else:
            move = (place.index_select(0, groups.order), groups.inverse.index_select(0, back))
        steps.append(Step(groups, move, link.relu, link.passes))
        place, back = groups.inverse, groups.order
    y = _Chain.apply(rows, gates, steps, *(tensor for link in links for tensor in (link.weight, link.bias)))
    assert isinstance(y, Tensor)
    return SortedRows(y, layers[-1].inverse, layers[-1].order)


def autocast(links: Sequence[Link], x: Tensor | SortedRows) -> tuple[Sequence[Link], Tensor | SortedRows]:
    """Blocks and rows in the type that autocast, where it is on, gives to PyTorch's own products."""
    device, dtype = links[0].weight.device.type, links[0].weight.dtype
    if not torch.is_autocast_enabled(device) or dtype not in GROUPED_DTYPES:
        return links, x
    wanted = torch.get_autocast_dtype(device)
    dtype = wanted if wanted in GROUPED_DTYPES else dtype
    links = [link._replace(weight=link.weight.to(dtype), bias=link.bias.to(dtype)) for link in links]
    return links, SortedRows(x.rows.to(dtype), x.place, x.back) if isinstance(x, SortedRows) else x.to(dtype)


class Step(NamedTuple):
    """One link of a chain without its tensors, its groups, and the move of the rows before it, see `run_chain`."""

    groups: Groups
    move: tuple[Tensor, Tensor] | None
    relu: bool
    passes: bool


class _Chain(torch.autograd.Function):
    """Layer by layer: gather rows by block, multiply every run by its block's weight, add bias and rectify.

    As one function so that going back is one permutation and two grouped products per layer, without the zero-filled
    buffers and scattered additions that differentiating an `index_select` would cost, and so that of every layer only
    its gathered input is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor | None, steps: list[Step], *parameters: Tensor) -> Tensor:
        inputs, outputs, gated = [], [], gates is not None
        for number, step in enumerate(steps):
            x = x if step.move is None else x.index_select(0, step.move[0])
            inputs.append(x)
            x = apply_link(x, parameters[2 * number], parameters[2 * number + 1], step)
            # What is rectified is the next layer's input too, gathered; rows that passed have to be told apart.
            last = number + 1 == len(steps)
            outputs.append(x if (step.relu or gated) and (last or step.passes) else None)
        ctx.save_for_backward(*inputs, *outputs, *parameters[::2])
        ctx.steps = steps
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        steps, saved = ctx.steps, ctx.saved_tensors
        count = len(steps)
        inputs, outputs, weights = saved[:count], saved[count : 2 * count], saved[2 * count :]
        wanted, gated = ctx.needs_input_grad[3:], ctx.needs_input_grad[1]
        to_parameters: list[Tensor | None] = [None] * (2 * count)
        grad = grad.contiguous()
        to_gates = [_of_factors(grad, outputs[-1], steps[-1])] if gated else []
        for number in reversed(range(count)):
            own, step = slice(2 * number, 2 * number + 2), steps[number]
            further = ctx.needs_input_grad[0] or any(wanted[: own.start]) or (gated and number > 0)
            kept = inputs[number], outputs[number] if step.relu else None, weights[number]
            to_parameters[own], to_input = go_back(grad, *kept, step, wanted[own], further)
            del grad  # one tensor less at the peak
            if to_input is None:
                return None, torch.stack(to_gates, 1) if gated else None, None, *to_parameters
            if gated and number:  # the input is the output of the link before, gathered
                to_gates.insert(0, _of_factors(to_input, inputs[number], step))
            if number and steps[number - 1].relu and not steps[number - 1].passes:
                # The input is the rectified output of the layer before, gathered.
                torch.ops.aten.threshold_backward.grad_input(to_input, inputs[number], 0, grad_input=to_input)
            grad = to_input if step.move is None else to_input.index_select(0, step.move[1])
            del to_input
        return grad, torch.stack(to_gates, 1) if gated else None, None, *to_parameters


def _of_factors(grad: Tensor, x: Tensor, step: Step) -> Tensor:
    """Gradient `(B,)` of factors of rows that stand in the order of a link's groups, by the gradient of the rows."""
    dtype = torch.promote_types(grad.dtype, torch.float32)  # in bfloat16 sums would soon stop growing
    return torch.linalg.vecdot(grad.to(dtype), x.to(dtype)).index_select(0, step.groups.inverse)


def apply_link(x: Tensor, weight: Tensor, bias: Tensor, step: Step) -> Tensor:
    """Outputs of one layer for rows sorted by their choice."""
    if not step.passes:
        y = affine(x, weight, bias, step.groups)
        return y.relu_() if step.relu else y
    if on_host(x):
        running, step = _running(step, len(weight))
        return torch.cat([apply_link(x[:running], weight, bias, step), x[running:]])
    # Without knowing how many rows pass: they meet a block of zeros, and are put back.
    y = affine(x, functional.pad(weight, ZERO_BLOCK), functional.pad(bias, (0, 0, 0, 1)), step.groups)
    return torch.where(_runs_a_block(step.groups, weight), y.relu_() if step.relu else y, x)


def go_back(
    grad: Tensor, x: Tensor, y: Tensor | None, weight: Tensor, step: Step, wanted: Sequence[bool], further: bool
) -> tuple[list[Tensor | None], Tensor | None]:
    """Gradients of weight and bias, where they are wanted, and of the input, where it goes further."""
    if step.passes and on_host(x):
        running, step = _running(step, len(weight))
        y = None if y is None else y[:running]
        own, to_input = go_back(grad[:running], x[:running], y, weight, step, wanted, further)
        return own, None if to_input is None else torch.cat([to_input, grad[running:]])
    if step.passes:
        runs, step = _runs_a_block(step.groups, weight), step._replace(passes=False)
        to_blocks = torch.where(runs, grad if y is None else torch.ops.aten.threshold_backward(grad, y, 0), 0)
        own, to_input = go_back(to_blocks, x, None, functional.pad(weight, ZERO_BLOCK), step, wanted, further)
        own = [None if part is None else part[:-1] for part in own]
        return own, None if to_input is None else torch.where(runs, to_input, grad)
    grad = grad if y is None else torch.ops.aten.threshold_backward(grad, y, 0)
    own = [outer_products(x, grad, step.groups) if wanted[0] else None, None]
    if wanted[1]:
        # In bfloat16 a sum of many rows would soon stop growing.
        dtype = torch.promote_types(grad.dtype, torch.float32)
        total = torch.zeros(len(weight), grad.shape[1], dtype=dtype, device=grad.device)
        if on_host(x):
            own[1] = total.index_add_(0, step.groups.block, grad.to(dtype)).to(grad.dtype)
        else:  # in the same order every time
            own[1] = total.index_put_((step.groups.block,), grad.to(dtype), accumulate=True).to(grad.dtype)
    return own, products(grad, weight.transpose(1, 2), step.groups) if further else None


def _runs_a_block(groups: Groups, weight: Tensor) -> Tensor:
    """Mask `(B, 1)` of the sorted rows that do not pass."""
    return (groups.block < len(weight)).unsqueeze(1)


def _running(step: Step, num_blocks: int) -> tuple[int, Step]:
    """Number of rows, the first ones, that run a block instead of passing, and a step of these; read on the host."""
    running, groups = int(step.groups.ends[num_blocks - 1]), step.groups
    groups = groups._replace(block=groups.block[:running], ends=groups.ends[:num_blocks])
    return running, step._replace(groups=groups, passes=False)
