"""Linear blocks run one after the other, by choices known beforehand, as one function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from routing_gym.blocks.fast.grouping import Groups, SortedRows, group, group_plan, plain

GROUPED_DTYPES = (torch.float32, torch.bfloat16)
ALIGNMENT_BYTES = 16
MANY_ROWS = 128
"""Rows per block from which on, on a CPU, one call per block is worth its overhead."""
ZERO_BLOCK = (0, 0, 0, 0, 0, 1)
"""Padding of stacked weights by one more block, of zeros."""


class Link(NamedTuple):
    """One bank of linear blocks in a chain.

    Attributes:
        weight: `(k, in_features, out_features)`.
        bias: `(k, out_features)`.
        relu: Whether a ReLU follows.
        passes: Whether there is one more choice, k, that leaves a row as it is; inputs are as wide as outputs then.
    """

    weight: Tensor
    bias: Tensor
    relu: bool
    passes: bool

    @property
    def num_choices(self) -> int:
        """Number of choices, PASS included."""
        return len(self.weight) + self.passes


def run_chain(links: Sequence[Link], x: Tensor | SortedRows, plan: Tensor) -> Tensor | SortedRows:
    """Outputs `(B, out_features)` of linear blocks run one after the other, in the last bank's order where natural.

    Args:
        links: L banks, the outputs of each as wide as the inputs of the next.
        x: Inputs `(B, in_features)`.
        plan: Choices `(B, L)` int64 of each row in each bank.
    """
    links, x = _autocast(links, x)
    if links[0].weight.dtype not in GROUPED_DTYPES or not len(plan):
        y = plain(x)
        for link, choice in zip(links, plan.unbind(1), strict=True):
            y = _one_by_one(link, y, choice)
        return y
    layers = group_plan(plan, [link.num_choices for link in links])
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
        steps.append(_Step(groups, move, link.relu, link.passes))
        place, back = groups.inverse, groups.order
    y = _Chain.apply(rows, steps, *(tensor for link in links for tensor in (link.weight, link.bias)))
    assert isinstance(y, Tensor)
    return SortedRows(y, layers[-1].inverse, layers[-1].order)


def _autocast(links: Sequence[Link], x: Tensor | SortedRows) -> tuple[Sequence[Link], Tensor | SortedRows]:
    """Blocks and rows in the type that autocast, where it is on, gives to PyTorch's own products."""
    device, dtype = links[0].weight.device.type, links[0].weight.dtype
    if not torch.is_autocast_enabled(device) or dtype not in GROUPED_DTYPES:
        return links, x
    wanted = torch.get_autocast_dtype(device)
    dtype = wanted if wanted in GROUPED_DTYPES else dtype
    links = [link._replace(weight=link.weight.to(dtype), bias=link.bias.to(dtype)) for link in links]
    return links, SortedRows(x.rows.to(dtype), x.place, x.back) if isinstance(x, SortedRows) else x.to(dtype)


def _one_by_one(link: Link, x: Tensor, choice: Tensor) -> Tensor:
    """Outputs of one bank, one product per block: for zero rows and float64, which `grouped_mm` refuses."""
    groups = group(choice, link.num_choices)
    pieces = list(x.index_select(0, groups.order).split(groups.counts))
    for number, (weight, bias) in enumerate(zip(link.weight.unbind(0), link.bias.unbind(0), strict=True)):
        y = torch.addmm(bias, pieces[number], weight)
        pieces[number] = functional.relu(y) if link.relu else y
    return torch.cat(pieces).index_select(0, groups.inverse)


class _Step(NamedTuple):
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
    def forward(ctx: Any, x: Tensor, steps: list[_Step], *parameters: Tensor) -> Tensor:
        inputs, outputs = [], []
        for number, step in enumerate(steps):
            x = x if step.move is None else x.index_select(0, step.move[0])
            inputs.append(x)
            x = _apply(x, parameters[2 * number], parameters[2 * number + 1], step)
            # What is rectified is the next layer's input too, gathered; rows that passed have to be told apart.
            last = number + 1 == len(steps)
            outputs.append(x if step.relu and (last or step.passes) else None)
        ctx.save_for_backward(*inputs, *outputs, *parameters[::2])
        ctx.steps = steps
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        steps, saved = ctx.steps, ctx.saved_tensors
        count = len(steps)
        inputs, outputs, weights = saved[:count], saved[count : 2 * count], saved[2 * count :]
        wanted = ctx.needs_input_grad[2:]
        to_parameters: list[Tensor | None] = [None] * (2 * count)
        grad = grad.contiguous()
        for number in reversed(range(count)):
            own, step = slice(2 * number, 2 * number + 2), steps[number]
            further = ctx.needs_input_grad[0] or any(wanted[: own.start])
            kept = inputs[number], outputs[number], weights[number]
            to_parameters[own], to_input = _go_back(grad, *kept, step, wanted[own], further)
            del grad  # one tensor less at the peak
            if to_input is None:
                return None, None, *to_parameters
            if number and steps[number - 1].relu and not steps[number - 1].passes:
                # The input is the rectified output of the layer before, gathered.
                torch.ops.aten.threshold_backward.grad_input(to_input, inputs[number], 0, grad_input=to_input)
            grad = to_input if step.move is None else to_input.index_select(0, step.move[1])
            del to_input
        return grad, None, *to_parameters


def _apply(x: Tensor, weight: Tensor, bias: Tensor, step: _Step) -> Tensor:
    """Outputs of one layer for rows sorted by their choice."""
    groups, passed = step.groups, None
    if step.passes and not _on_host(x):
        # Without knowing how many rows pass: they meet a block of zeros, and are put back.
        y = _affine(x, functional.pad(weight, ZERO_BLOCK), functional.pad(bias, (0, 0, 0, 1)), groups)
        return torch.where(_runs_a_block(groups, weight), y.relu_() if step.relu else y, x)
    if step.passes:
        running, groups = _running(groups, len(weight))
        x, passed = x[:running], x[running:]
    y = _affine(x, weight, bias, groups)
    y = y.relu_() if step.relu else y
    return y if passed is None else torch.cat([y, passed])


def _go_back(
    grad: Tensor, x: Tensor, y: Tensor | None, weight: Tensor, step: _Step, wanted: Sequence[bool], further: bool
) -> tuple[list[Tensor | None], Tensor | None]:
    """Gradients of weight and bias, where they are wanted, and of the input, where it goes further."""
    groups, passed = step.groups, None
    if step.passes and not _on_host(x):
        runs = _runs_a_block(groups, weight)
        rectified = grad if y is None else torch.ops.aten.threshold_backward(grad, y, 0)
        padded = functional.pad(weight, ZERO_BLOCK)
        own, to_input = _products_back(torch.where(runs, rectified, 0), x, padded, groups, wanted, further)
        own = [None if part is None else part[:-1] for part in own]
        return own, None if to_input is None else torch.where(runs, to_input, grad)
    if step.passes:
        running, groups = _running(groups, len(weight))
        x, y = x[:running], None if y is None else y[:running]
        grad, passed = grad[:running], grad[running:]
    if y is not None:
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
    own, to_input = _products_back(grad, x, weight, groups, wanted, further)
    return own, to_input if passed is None or to_input is None else torch.cat([to_input, passed])


def _runs_a_block(groups: Groups, weight: Tensor) -> Tensor:
    """Mask `(B, 1)` of the sorted rows that do not pass."""
    return (groups.block < len(weight)).unsqueeze(1)


def _on_host(x: Tensor) -> bool:
    """Whether numbers on x's device can be read without waiting."""
    return x.device.type == "cpu"


def _running(groups: Groups, num_blocks: int) -> tuple[int, Groups]:
    """Number of rows, the first ones, that run a block instead of passing, and their groups; read on the host."""
    running = int(groups.ends[num_blocks - 1])
    return running, groups._replace(block=groups.block[:running], ends=groups.ends[:num_blocks])


def _products_back(
    grad: Tensor, x: Tensor, weight: Tensor, groups: Groups, wanted: Sequence[bool], further: bool
) -> tuple[list[Tensor | None], Tensor | None]:
    """Go back through the products of one layer, rows sorted by their block."""
    own: list[Tensor | None] = [None, None]
    if wanted[0]:
        own[0] = _grouped_outer(x, grad, groups.ends)
    if wanted[1]:
        # In bfloat16 a sum of many rows would soon stop growing.
        total = torch.zeros(len(weight), grad.shape[1], dtype=torch.float32, device=grad.device)
        own[1] = total.index_add_(0, groups.block, grad.float()).to(grad.dtype)
    return own, _grouped_mm(grad, weight.transpose(1, 2), groups.ends) if further else None


def _affine(x: Tensor, weight: Tensor, bias: Tensor, groups: Groups) -> Tensor:
    """Outputs `x @ weight[c] + bias[c]` for rows sorted by their block c."""
    if not _on_host(x) or len(x) < MANY_ROWS * len(weight):
        return _grouped_mm(x, weight, groups.ends).add_(bias.index_select(0, groups.block))
    # A bias gathered for every row costs more than a call per block that adds it on the way.
    y = x.new_empty(len(x), weight.shape[2])
    for block, rows in _runs(groups.ends):
        torch.addmm(bias[block], x[rows], weight[block], out=y[rows])
    return y


def _grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Products `(B, o)` of each run of rows `(B, i)` and its own matrix, `(k, i, o)`; runs end at `ends`."""
    inputs, outputs = weight.shape[1:]
    pad_in, pad_out = _missing(inputs, x), _missing(outputs, x)
    if _on_host(x) and (pad_in or pad_out or not len(x)):
        y = x.new_empty(len(x), outputs)
        for block, rows in _runs(ends):
            torch.mm(x[rows], weight[block], out=y[rows])
        return y
    if pad_in or pad_out:
        x, weight = functional.pad(x, (0, pad_in)), functional.pad(weight, (0, pad_out, 0, pad_in))
    y = functional.grouped_mm(x, weight, offs=ends)
    return y[:, :outputs] if pad_out else y


def _grouped_outer(x: Tensor, grad: Tensor, ends: Tensor) -> Tensor:
    """Products `(k, i, o)` of each run of x `(B, i)`, transposed, and the run of grad `(B, o)`."""
    inputs, outputs = x.shape[1], grad.shape[1]
    pad_in, pad_out = _missing(inputs, x), _missing(outputs, x)
    if _on_host(x) and (pad_in or pad_out or not len(x)):
        product = x.new_zeros(len(ends), inputs, outputs)
        for block, rows in _runs(ends):
            torch.mm(x[rows].t(), grad[rows], out=product[block])
        return product
    if pad_in or pad_out:
        x, grad = functional.pad(x, (0, pad_in)), functional.pad(grad, (0, pad_out))
    product = functional.grouped_mm(x.t(), grad, offs=ends)
    return product[:, :inputs, :outputs] if pad_in or pad_out else product


def _missing(width: int, like: Tensor) -> int:
    """Number of columns missing for rows to start at multiples of 16 bytes, as `grouped_mm` wants them.

    On a CPU a product per block is cheaper than copying the weights into a wider tensor.
    """
    return -width % (ALIGNMENT_BYTES // like.element_size())


def _runs(ends: Tensor) -> Iterator[tuple[int, slice]]:
    """Every block that has rows, and which; read on the host."""
    start = 0
    for block, end in enumerate(ends.tolist()):
        if end > start:
            yield block, slice(start, end)
        start = end
