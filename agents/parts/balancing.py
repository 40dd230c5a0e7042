"""Keeping every expert busy: losses on their use (Shazeer et al. 2017), and choices that balance by themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from routing_gym.envs import Context

SMALLEST = 1e-10
"""Keeps a division by the mean finite where nobody used anything."""


def cv_squared(use: Tensor, legal: Tensor) -> Tensor:
    """Return the squared coefficient of variation, `(...)`: variance over squared mean, of what is legal.

    Args:
        use: `(..., A)`, how much each expert was used.
        legal: `(..., A)` bool.
    """
    count = legal.sum(-1).clamp(min=1)
    mean = (use * legal).sum(-1) / count
    variance = (legal * (use - mean.unsqueeze(-1)).square()).sum(-1) / count
    return variance / (mean.square() + SMALLEST)


def chance_of_being_picked(clean: Tensor, noisy: Tensor, spread: Tensor, k: Tensor, legal: Tensor) -> Tensor:
    """Return P(x, i), `(B, A)`: how likely expert i is among the best k of row x if only its own noise is drawn anew.

    Φ((x·W_g)_i − kth_excluding(H(x), k, i)) / softplus((x·W_noise)_i)) (Shazeer et al. 2017, appendix A): a smooth
    stand-in for "was picked", so that the number of rows an expert gets has a gradient.

    Args:
        clean: `(B, A)` scores without noise.
        noisy: `(B, A)` scores with the noise that was drawn; −inf where a choice is not legal.
        spread: `(B, A)` deviation of the noise.
        k: `(B,)` int64, how many are picked.
        legal: `(B, A)` bool. Where no more than k are legal, all of them are picked for certain.
    """
    ordered = noisy.sort(-1, descending=True).values
    contested = k < legal.sum(-1)
    last = torch.where(contested, k, 0).unsqueeze(-1)
    outside = ordered.gather(-1, last)  # the (k + 1)-th best: what who was picked must stay above
    inside = ordered.gather(-1, (last - 1).clamp(min=0))
    threshold = torch.where(noisy > outside, outside, inside)
    usable = legal & contested.unsqueeze(-1)
    # Where nothing is contested, or not legal, there are infinities that must not meet a gradient.
    margin = torch.where(usable, clean, 0.0) - torch.where(usable, threshold, 0.0)
    chance = torch.special.ndtr(margin / spread)
    return torch.where(usable, chance, legal.to(clean.dtype))


def expert_choice(scores: Tensor, depth: Tensor, k: Tensor, context: Context) -> Tensor:
    """Let the experts of each decision pick rows (Zhou et al. 2022): every expert gets the same number.

    Affinities are the softmax over experts; each of the n legal experts of a decision takes the ⌈r k / n⌉ rows that
    like it best out of the r rows there. A row that no expert takes goes to the one it likes best, because these
    networks have nothing else to carry it on.

    Args:
        scores: `(B, A)`, −inf where a choice is not legal.
        depth: `(B,)` int64.
        k: `(B,)` int64: how many experts a row gets on average.
        context: Says which rows decide.

    Returns:
        `(B, A)` weights: the affinities of what was taken, shared out so that each row's sum to 1.
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
    taken = torch.where(nobody, torch.nn.functional.one_hot(affinity.argmax(-1), taken.shape[1]).to(taken.dtype), taken)
    weights = taken * affinity
    return weights / weights.sum(-1, keepdim=True)
