"""Which rows of a batch take which choices, where they depend on one another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.envs import Context


def expert_choice(scores: Tensor, depth: Tensor, k: Tensor, context: Context) -> Tensor:
    """Weights `(B, A)` by which every expert of a decision gets the same number of rows (Zhou et al. 2022).

    Affinities are the softmax of `scores`, −inf where a choice is not legal, over experts; each of the n legal experts
    of a decision takes the ⌈r k / n⌉ rows that like it best out of the r rows there, so that a row gets k of them on
    average. A row that no expert takes goes to the one it likes best, because these networks have nothing else to carry
    it on. The affinities of a row's experts are divided by their sum.
    """
    affinity = scores.softmax(-1)
    taken, active = torch.zeros_like(affinity), context.active
    for number in depth[active].unique().tolist() if context.sole is None else (context.sole,):
        rows = (active & (depth == number)).nonzero().flatten()
        own = affinity.detach().index_select(0, rows)
        experts = scores[rows[0]].isfinite().nonzero().flatten()
        capacity = min(len(rows), -(-len(rows) * int(k[rows[0]]) // len(experts)))
        best = own[:, experts].topk(capacity, 0).indices
        picked = torch.zeros_like(own).index_put((best, experts.expand_as(best)), own.new_ones(()))
        taken = taken.index_copy(0, rows, picked)
    nobody = taken.sum(-1, keepdim=True) == 0
    taken = torch.where(nobody, functional.one_hot(affinity.argmax(-1), taken.shape[1]).to(taken.dtype), taken)
    weights = taken * affinity
    return weights / weights.sum(-1, keepdim=True)
