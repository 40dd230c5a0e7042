"""Sums of a few linear blocks for each row, weighed on the way, as one function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from routing_gym.blocks.fast.chain import Link, Step, apply_link, autocast, go_back
from routing_gym.blocks.fast.groups import group


def mix_rows(link: Link, x: Tensor, rows: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
    """Sums `(B, out_features)` of `weights[p] * block[choice[p]](x[rows[p]])` over the pairs p of each row.

    Pairs are `(P,)`, those of one row side by side: `rows` rises.
    """
    (link,), inputs = autocast([link], x)
    assert isinstance(inputs, Tensor)
    first = torch.searchsorted(rows.contiguous(), torch.arange(len(x), device=rows.device))  # pair of each row
    step = Step(group(choice, len(link.weight)), None, link.relu, False)
    y = _Mixture.apply(inputs, weights, link.weight, link.bias, rows, first, step)
    assert isinstance(y, Tensor)
    return y


class _Mixture(torch.autograd.Function):
    """Gather the pairs' inputs by block, run every block once, and add up outputs times weights wherever they stand.

    As one function so that neither the weighed outputs nor their gradients are ever written in two orders: forward and
    backward make three tensors of P rows each.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, first: Tensor, step: Step
    ) -> Tensor:
        order, place = step.groups.order, step.groups.inverse
        inputs = x.index_select(0, rows.index_select(0, order))
        y = apply_link(inputs, weight, bias, step)
        ctx.save_for_backward(inputs, y, weights, weight, rows, first)
        ctx.step = step
        dtype = torch.promote_types(y.dtype, weights.dtype)  # sums of what autocast computes are not rounded again
        return functional.embedding_bag(place, y.to(dtype), first, mode="sum", per_sample_weights=weights.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, y, weights, weight, rows, first = ctx.saved_tensors
        step, (to_x, to_weights, *wanted) = ctx.step, ctx.needs_input_grad[:4]
        order, place = step.groups.order, step.groups.inverse
        grad = grad.index_select(0, rows.index_select(0, order))
        own_weights = torch.linalg.vecdot(grad, y.to(grad.dtype)).index_select(0, place) if to_weights else None
        grad = grad.mul_(weights.index_select(0, order).unsqueeze(1)).to(y.dtype)
        own, to_inputs = go_back(grad, inputs, y if step.relu else None, weight, step, wanted, to_x)
        if to_inputs is not None:
            to_inputs = functional.embedding_bag(place, to_inputs, first, mode="sum")
        return to_inputs, own_weights, *own, None, None, None
