"""Policies held in a table."""

from __future__ import annotations

import torch
from torch import Tensor

from routing_gym.envs import Observation
from routing_gym.networks import RoutedNetwork


def uniform_policy(network: RoutedNetwork, num_agents: int) -> Tensor:
    """Return `(agents, N + 1, A)`, `(agents, N + 1, M, A)` where M > 1: every legal choice equally likely.

    The last row is for rows that have left: what stands there does not matter, but it can be looked up and written to
    like the others.
    """
    masks = network.masks
    legal = torch.cat([masks, torch.ones_like(masks[:1])]).to(torch.get_default_dtype())
    if network.num_tensors == 1:
        legal = legal[:, 0]
    return (legal / legal.sum(-1, keepdim=True)).repeat(num_agents, *[1] * legal.ndim)


def look_up(table: Tensor, agent: Tensor, depth: Tensor) -> Tensor:
    """Return each row's entries.

    Args:
        table: `(agents, N + 1, ...)`.
        agent: `(B,)` int64.
        depth: `(B,)` int64 in `[0, N]`.

    Returns:
        `(B, ...)`.
    """
    return table.flatten(0, 1).index_select(0, agent * table.shape[1] + depth)


def sample(cumulative: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one choice per row by inverting the cumulative distribution: many times faster than `multinomial`.

    Args:
        cumulative: `(..., A)`: running sums of probabilities, not necessarily to 1.
        generator: On the same device.

    Returns:
        `(...)` int64; a choice of probability 0 is never drawn.
    """
    shape = cumulative.shape[:-1]
    height = torch.rand(shape, generator=generator, device=cumulative.device, dtype=cumulative.dtype)
    height = (height * cumulative[..., -1]).unsqueeze(-1)
    # How many running sums are at most the height drawn: the number of choices below the one it falls into.
    return torch.searchsorted(cumulative.contiguous(), height, right=True).squeeze(-1)


def agents_of(observation: Observation, arrangement: str) -> Tensor:
    """Return `(B,)`: the number of the agent that decides for each row."""
    task = observation["task"]
    return task if arrangement == "per_task" else torch.zeros_like(task)
