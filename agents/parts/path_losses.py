"""Losses on how the paths of instances lie among each other (CoDiNet, Wang et al., section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def consistency(paths: Tensor, margin: float) -> Tensor:
    """Return L_con (Eq. 8): paths of one image beyond a margin around their mean, squared.

    (1/L)(1/M) Σ_i Σ_j [‖r_ij − r̄_i‖ − m_c]²₊.

    Args:
        paths: `(L, M, n)`: the paths of the M augmentations of L images.
        margin: m_c.
    """
    distance = torch.linalg.vector_norm(paths - paths.mean(1, keepdim=True), dim=-1)
    return (distance - margin).clamp(min=0).square().mean()


def diversity(paths: Tensor, margin: float) -> Tensor:
    """Return L_div (Eq. 9): mean paths of different images that are nearer to each other than a margin, squared.

    (1/L)(1/(L − 1)) Σ_i Σ_{j≠i} [m_d − ‖r̄_i − r̄_j‖]²₊; 0 for one image. Means that are the same have no direction to
    be moved apart in: no gradient.

    Args:
        paths: `(L, M, n)`: the paths of the M augmentations of L images.
        margin: m_d.
    """
    images = len(paths)
    if images < 2:
        return paths.sum() * 0.0
    mean = paths.mean(1)
    distance = torch.linalg.vector_norm(mean.unsqueeze(0) - mean.unsqueeze(1), dim=-1)
    different = ~torch.eye(images, dtype=torch.bool, device=paths.device)
    return ((margin - distance).clamp(min=0).square() * different).sum() / (images * (images - 1))
