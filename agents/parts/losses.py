"""Targets and losses of all agents: pure functions of tensors.

S steps, B rows, M tensors, A choices. By name: `rewards` r, `values` v, `target` G, `advantage`, `entropy` H of the
policy and `log_chosen` log π(a_i | s_i) are `(S, B)`, `final` is the final reward r_final, `(B,)`; `active`, `(S, B)`,
says which rows decided, `legal`, `(..., A)` bool, which choices are legal. What stands at a step in rows that had left
counts nowhere, but is finite.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST = 1e-10
"""Keeps a division by the mean finite where nothing was used."""
LEAST_NOISE = 1e-6
"""Deviation that the load loss takes a gate's noise for at least: the square that its gradient is divided by would
underflow, and 0 times infinity is no number."""
LEAST_SPREAD = 1e-4
"""Added to the deviation that advantages are divided by: of returns that are the same but for rounding nothing is left,
where a deviation of 1e-7, or of 0 beside a mean that is 1e-7 off, would make as much of them as of real ones."""


def lambda_returns(
    rewards: Sequence[Tensor] | Tensor,
    values: Sequence[Tensor] | Tensor,
    final: Tensor,
    active: Sequence[Tensor] | Tensor,
    *,
    gamma: float = 1.0,
    lambda_: float = 1.0,
    arrival: Sequence[Tensor] | Tensor | None = None,
) -> Tensor:
    """λ-returns `(S, B)` (Peng and Williams 1996).

    G_i = r_i + γ ((1 − λ) v_{i+1} + λ G_{i+1}) + c_{i+1}, and G_i = r_i + r_final where the instance leaves. With λ = 0
    that is the target of TD(0), with λ = 1 the whole return. The first value is not looked at; `arrival`, c, `(S, B)`,
    is what arriving at a decision earns.
    """
    returns = [rewards[-1] + final]
    for i in reversed(range(len(rewards) - 1)):
        ahead = gamma * torch.lerp(values[i + 1], returns[-1], lambda_)
        if arrival is not None:
            ahead = ahead + arrival[i + 1]
        returns.append(rewards[i] + torch.where(active[i + 1], ahead, final))
    return torch.stack(returns[::-1])


def generalized_advantages(
    rewards: Tensor, values: Tensor, final: Tensor, active: Tensor, *, gamma: float, lambda_: float
) -> Tensor:
    """Generalised advantages `(S, B)`, 0 in rows that had left (Schulman et al. 2016, Eq. 16).

    A_i = δ_i + γ λ A_{i+1}, δ_i = r_i + γ v_{i+1} − v_i, v detached; r_final for γ v_{i+1} where an instance leaves.
    """
    worth = torch.cat([torch.where(active[1:], gamma * values[1:], final), final.unsqueeze(0)])
    errors, advantage, advantages = rewards + worth - values, torch.zeros_like(final), []
    for i in reversed(range(len(errors))):
        advantage = active[i] * (errors[i] + gamma * lambda_ * advantage)
        advantages.append(advantage)
    return torch.stack(advantages[::-1])


def joint_choice(log_policy: Tensor, action: Tensor, choosing: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Log-probability of what was chosen and entropy of the policy, `(S, B)` each; both summed over the M tensors.

    `log_policy` is `(S, B, A)` or `(S, B, M, A)`, −inf where a choice is not legal, `action` int64 the same without A;
    `choosing`, `(S, B, M)` bool, says which tensors chose, None without the axis M.
    """
    log_chosen = log_policy.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    # 0 · (−inf) of what is not legal counts as 0.
    entropy = -(log_policy.exp() * log_policy.clamp(min=torch.finfo(log_policy.dtype).min)).sum(-1)
    if choosing is None:
        return log_chosen, entropy
    return log_chosen.where(choosing, 0).sum(-1), entropy.where(choosing, 0).sum(-1)


def policy_gradient_loss(
    log_chosen: Tensor, advantage: Tensor, entropy: Tensor, active: Tensor, entropy_weight: float
) -> Tensor:
    """Loss whose gradient is REINFORCE's (Williams 1992), 0-dimensional: −Σ_i A_i log π(a_i) + w H_i, mean over rows.

    The advantages, returns less a baseline, are without graph.
    """
    gain = advantage * log_chosen + entropy_weight * entropy
    return -(active * gain).sum() / active.shape[1]


def group_advantages(returns: Tensor, kind: str) -> Tensor:
    """Advantages `(B, G)` of G routes of each instance, by their returns.

    `"mean"`: less the group's mean; `"grpo"`: that over the group's standard deviation, that of the G as they are
    (Shao et al. 2024, section 4.1.2); `"rloo"`: less the mean of the other routes (Kool et al. 2019, Eq. 9).
    """
    above, size = returns - returns[:, :1], returns.shape[1]  # so that equal ones have a mean of exactly 0
    centred = above - above.mean(1, keepdim=True)
    if kind == "grpo":
        return centred / (above.std(1, correction=0, keepdim=True) + LEAST_SPREAD)
    return centred * size / (size - 1) if kind == "rloo" else centred


def clipped_surrogate_loss(
    log_chosen: Tensor,
    old: Tensor,
    advantage: Tensor,
    entropy: Tensor,
    active: Tensor,
    *,
    clip: float,
    entropy_weight: float,
) -> Tensor:
    """PPO's loss, 0-dimensional: −Σ_i min(ρ_i A_i, clip(ρ_i, 1 − ε, 1 + ε) A_i) + w H_i, mean over rows.

    ρ_i = π(a_i | s_i) / π_old(a_i | s_i), `old` being log π_old, without graph (Schulman et al. 2017, Eq. 7).
    """
    ratio = (log_chosen - old).where(active.bool(), 0).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -(active * (surrogate + entropy_weight * entropy)).sum() / active.shape[1]


def squared_td_error(target: Tensor, value: Tensor, active: Tensor) -> Tensor:
    """Squared error Σ_i (G_i − v_i)², mean over rows, 0-dimensional (Sutton and Barto 2018, section 9.3, without ½)."""
    return (active * (target - value) ** 2).sum() / active.shape[1]


def wpl_delta(difference: Tensor, probability: Tensor, scaling: str) -> Tensor:
    """WPL's Δ of each visit, of the arguments' shape (Rosenbaum et al. 2018, Algorithm 3).

    Δ = d π where d ≥ 0, and d (1 − π) where d < 0: d is a return less the average of the returns, π the probability of
    what was chosen. `scaling="appendix"` has π and 1 − π the other way round (section 7.4), `"algorithm3"` has not.
    """
    grows = probability if scaling == "algorithm3" else 1 - probability
    return difference * torch.where(difference < 0, 1 - grows, grows)


def project(moved: Tensor, old: Tensor, legal: Tensor, floor: float) -> Tensor:
    """Probabilities `(..., A)` from rows that have moved: clipped to [0, 1], divided by their sum (Algorithm 3).

    The old ones stay where the sum is 0. Choices that are not legal stay at 0, legal ones have at least `floor`.
    """
    clipped = moved.clamp(0, 1) * legal
    total = clipped.sum(-1, keepdim=True)
    least = torch.finfo(total.dtype).tiny  # what is smaller cannot be divided by
    projected = torch.where(total > least, clipped / total.clamp(min=least), old)
    if floor:
        # What is above the floor shares what the floors leave.
        excess = (projected - floor).clamp(min=0) * legal
        free = 1 - floor * legal.sum(-1, keepdim=True)
        projected = floor * legal + free * excess / excess.sum(-1, keepdim=True).clamp(min=1e-12)
    return projected


def annealed_posterior(cost: Tensor, legal: Tensor, share: float) -> Tensor:
    """Probabilities q ∝ exp(−cost / τ) of legal choices, `(..., A)`, at the temperature that leaves a share of entropy.

    The one τ of deterministic annealing (Ueda and Nakano 1998) is that at which the mean over rows of H(q) / log(number
    of legal choices) is `share`, in [0, 1]; it is found by ever finer grids. Equal costs, and share 1, give uniform
    probabilities; share 0 the cheapest choice.
    """
    legal = legal.expand(cost.shape)
    if share <= 0:
        best = cost.masked_fill(~legal, torch.inf).argmin(-1, keepdim=True)
        return torch.zeros_like(cost).scatter_(-1, best, 1.0)
    above = (cost - cost.masked_fill(~legal, torch.inf).amin(-1, keepdim=True)).where(legal, 0.0)
    most = legal.sum(-1).to(cost.dtype).log()
    open_, scale = (most > 0).to(cost.dtype), above.mean().clamp(min=torch.finfo(cost.dtype).tiny)
    gains = (-above / scale).masked_fill(~legal, -torch.inf)
    low, width, grid = cost.new_tensor(-16.0), 32.0, torch.linspace(0, 1, 17, dtype=cost.dtype, device=cost.device)
    for _ in range(4):
        logs = low + width * grid
        q = (gains / logs.exp().view(-1, *[1] * gains.ndim)).softmax(-1)
        left = torch.special.entr(q).sum(-1) / most.clamp(min=1e-12) * open_
        left = left.flatten(1).sum(1) / open_.sum().clamp(min=1)
        # The entropy grows with the temperature: the last one at which there is too little of it.
        low = logs[(left < share).sum().sub(1).clamp(0, len(grid) - 2)]
        width /= len(grid) - 1
    return (gains / low.exp()).softmax(-1)


def cv_squared(use: Tensor, legal: Tensor) -> Tensor:
    """Squared coefficient of variation `(...)` of the legal experts' use, `(..., A)` (Shazeer et al. 2017)."""
    legal = legal.to(use.dtype)
    count = legal.sum(-1).clamp(min=1)
    mean = torch.linalg.vecdot(use, legal) / count
    variance = torch.linalg.vecdot((use - mean.unsqueeze(-1)).square(), legal) / count
    return variance / (mean.square() + SMALLEST)


def chance_of_being_picked(clean: Tensor, noisy: Tensor, spread: Tensor, k: Tensor, legal: Tensor) -> Tensor:
    """P(x, i) `(B, A)`: how likely expert i is among the best k of row x if only its own noise is drawn anew.

    Φ(((x·W_g)_i − kth_excluding(H(x), k, i)) / softplus((x·W_noise)_i)) (Shazeer et al. 2017, appendix A): a smooth
    stand-in for "was picked", so that the number of rows an expert gets has a gradient. Of the scores `(B, A)`, `clean`
    are without noise, `noisy` with what was drawn, −inf where a choice is not legal, and both with biases where these
    count for what is picked; `spread` is the noise's deviation, `LEAST_NOISE` where it is less. Where no more than k,
    `(B,)` int64, are legal, all of them are picked for certain.
    """
    ordered = noisy.sort(-1, descending=True).values
    contested = k < legal.sum(-1)
    last = torch.where(contested, k, 0).unsqueeze(-1)
    outside = ordered.gather(-1, last)  # the (k + 1)-th best, which the picked must stay above
    inside = ordered.gather(-1, (last - 1).clamp(min=0))
    threshold = torch.where(noisy > outside, outside, inside)
    usable = legal & contested.unsqueeze(-1)
    # Where nothing is contested, or not legal, there are infinities that must not meet a gradient.
    margin = torch.where(usable, clean, 0.0) - torch.where(usable, threshold, 0.0)
    chance = torch.special.ndtr(margin / spread.clamp(min=LEAST_NOISE))
    return torch.where(usable, chance, legal.to(clean.dtype))


def chance_of_staying(clean: Tensor, noisy: Tensor, spread: Tensor, best: Tensor) -> Tensor:
    """`chance_of_being_picked` where nothing is masked, given the k + 1 best of the noisy scores, `(B, k + 1)`."""
    inside, outside = best[:, -2:-1], best[:, -1:]
    margin = clean - torch.where(noisy > outside, outside, inside)
    return torch.special.ndtr(margin / spread.clamp(min=LEAST_NOISE))


def consistency(paths: Tensor, margin: float) -> Tensor:
    """CoDiNet's L_con (Wang et al., Eq. 8), 0-dimensional: paths of one image keep near to their mean.

    (1/L)(1/M) Σ_i Σ_j [‖r_ij − r̄_i‖ − m_c]²₊ over paths r `(L, M, n)` of L images' M augmentations, with a margin m_c.
    """
    distance = torch.linalg.vector_norm(paths - paths.mean(1, keepdim=True), dim=-1)
    return (distance - margin).clamp(min=0).square().mean()


def diversity(paths: Tensor, margin: float) -> Tensor:
    """CoDiNet's L_div (Eq. 9), 0-dimensional: mean paths of different images keep apart.

    (1/L)(1/(L − 1)) Σ_i Σ_{j≠i} [m_d − ‖r̄_i − r̄_j‖]²₊ with the margin m_d; 0 for one image. Means that are the same
    have no direction to be moved apart in: no gradient.
    """
    images = len(paths)
    if images < 2:
        return paths.sum() * 0.0
    mean = paths.mean(1)
    distance = torch.linalg.vector_norm(mean.unsqueeze(0) - mean.unsqueeze(1), dim=-1)
    different = ~torch.eye(images, dtype=torch.bool, device=paths.device)
    return ((margin - distance).clamp(min=0).square() * different).sum() / (images * (images - 1))
