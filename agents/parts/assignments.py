"""Which rows of a batch take which choices, where they depend on one another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.envs import Context


def by_decision(depth: Tensor, context: Context, decisions: int) -> Iterator[Tensor]:
    """Rows `(B,)` bool that wait at each decision where any may, of a network with so many, without asking which do."""
    for number in range(decisions) if context.sole is None else (context.sole,):
        yield context.active & (depth == number)


def among_highest(wish: Tensor, rows: Tensor, capacity: Tensor) -> Tensor:
    """Whether some rows, `(B,)` bool, are among the `capacity` of them that wish most for each choice.

    Of `wish`, `(B,)` or `(B, A)`; of equal wishes the first rows count as higher.
    """
    rows = rows.view(-1, *[1] * (wish.ndim - 1))
    order = wish.masked_fill(~rows, -torch.inf).argsort(dim=0, descending=True, stable=True)
    places = torch.arange(len(order), device=order.device).view_as(rows).expand_as(order)
    return rows & (torch.empty_like(order).scatter_(0, order, places) < capacity)


def expert_choice(scores: Tensor, depth: Tensor, k: Tensor, context: Context, decisions: int) -> Tensor:
    """Weights `(B, A)` by which every expert of a decision gets the same number of rows (Zhou et al. 2022).

    Affinities are the softmax of `scores`, −inf where a choice is not legal, over experts; each of the n legal experts
    of a decision takes the ⌈r k / n⌉ rows that like it best out of the r rows there, so that a row gets k, `(B,)`, of
    them on average. A row that no expert takes goes to the one it likes best, because these networks have nothing else
    to carry it on. The affinities of a row's experts are divided by their sum.
    """
    affinity, legal = scores.softmax(-1), scores.isfinite()
    taken = torch.zeros_like(legal)
    for here in by_decision(depth, context, decisions):
        rows, each, count = here.sum(), (here * k).amax(), (here * legal.sum(-1)).amax().clamp(min=1)
        capacity = torch.minimum((rows * each + count - 1) // count, rows)
        taken |= among_highest(affinity.detach(), here, capacity) & legal
    best = functional.one_hot(affinity.argmax(-1), taken.shape[1]).bool()
    weights = torch.where(taken.any(-1, keepdim=True), taken, best) * affinity
    return weights / weights.sum(-1, keepdim=True)
