"""Tables `[agent, decision, ...]`: looking up, drawing, averaging."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_policy(legal: Tensor, num_agents: int) -> Tensor:
    """Probabilities `(agents, ..., A)`: every legal choice, `(..., A)` bool, equally likely."""
    chances = legal.to(torch.get_default_dtype())
    return (chances / chances.sum(-1, keepdim=True)).repeat(num_agents, *[1] * legal.ndim)


def legal_rows(masks: Tensor, single: bool = False) -> Tensor:
    """Legal choices `(N + 1, M, A)` bool: masks, and all for rows that have left; without the axis M if `single`."""
    legal = torch.cat([masks, torch.ones_like(masks[:1])])
    return legal[:, 0] if single else legal


def look_up(table: Tensor, agent: Tensor, depth: Tensor) -> Tensor:
    """Entries `(B, ...)` of a table `(agents, rows, ...)`, by agent and row, `(B,)` int64 each."""
    return table.flatten(0, 1).index_select(0, agent * table.shape[1] + depth)


def sample(cumulative: Tensor, generator: torch.Generator) -> Tensor:
    """Choices `(...)` int64, drawn by running sums of probabilities, `(..., A)`, not necessarily to 1.

    Inverting the cumulative distribution is many times faster than `multinomial`.
    """
    shape = cumulative.shape[:-1]
    height = torch.rand(shape, generator=generator, device=cumulative.device, dtype=cumulative.dtype)
    height = (height * cumulative[..., -1]).unsqueeze(-1)
    # How many running sums are at most the height drawn: the number of choices below the one it falls into.
    return torch.searchsorted(cumulative.contiguous(), height, right=True).squeeze(-1)


def visits_and_means(cells: Tensor, values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Number of visits of each cell, and mean of the values there, 0 without one; `(size,)` each.

    Visits are cell numbers `(V,)` int64 with values `(V,)`.
    """
    # index_put, because index_add is not the same twice on a GPU
    nothing, place = values.new_zeros(size), (cells,)
    visits = nothing.index_put(place, values.new_ones(()), accumulate=True)
    return visits, nothing.index_put_(place, values, accumulate=True).div_(visits.clamp(min=1))
