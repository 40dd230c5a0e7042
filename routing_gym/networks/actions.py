"""What an action may look like, and what is wrong with one."""

from __future__ import annotations

import torch
from torch import Tensor

from routing_gym.blocks import Sparse

Action = Tensor | Sparse
"""Integers `(B,)` or `(B, M)`; weights `(B, A)` or `(B, M, A)`; or sparse `(indices (B, K), weights (B, K))`."""


class NotFiniteError(ValueError):
    """Weights that are not numbers: whoever decides has diverged."""


SIMPLEX_TOLERANCE = 1e-4
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def is_weights(action: Action) -> bool:
    """Tell weights (dense or sparse) from integer choices."""
    return isinstance(action, tuple) or action.is_floating_point()


def check_form(
    action: Action, batch: int, m: int, num_choices: int, device: torch.device, dtype: torch.dtype
) -> Action:
    """Check type, shape and device of an action; free of any copy to the host. Weights must be of `dtype`.

    Returns:
        The action, integers as int64.

    Raises:
        ValueError: Says what was expected and what was got.
    """
    if isinstance(action, tuple):
        if len(action) != 2 or not all(isinstance(part, Tensor) for part in action):
            raise ValueError("a sparse action is a pair (indices, weights) of tensors")
        indices, weights = action
        if m > 1:
            raise ValueError("a sparse action is for decisions of one tensor; this network needs weights (B, m, n)")
        if indices.dtype not in _INTEGERS or not weights.is_floating_point():
            raise ValueError(
                f"a sparse action is (integer indices, floating-point weights), got {indices.dtype} and {weights.dtype}"
            )
        if indices.ndim != 2 or len(indices) != batch or weights.shape != indices.shape:
            raise ValueError(
                f"a sparse action has two parts of one shape ({batch}, K), got {tuple(indices.shape)} and "
                f"{tuple(weights.shape)}"
            )
        _check_device(indices, device)
        _check_device(weights, device)
        _check_dtype(weights, dtype)
        return indices.to(torch.int64), weights
    if not isinstance(action, Tensor):
        raise ValueError(f"an action is a torch tensor or a pair of them, got {type(action).__name__}")
    if action.is_floating_point():
        shape: tuple[int, ...] = (batch, num_choices) if m == 1 else (batch, m, num_choices)
        kind = "weights"
    elif action.dtype in _INTEGERS:
        shape, kind = ((batch,) if m == 1 else (batch, m)), "integer choices"
    else:
        raise ValueError(f"an action holds integers or floating-point weights, got {action.dtype}")
    if tuple(action.shape) != shape:
        raise ValueError(f"an action of {kind} has shape {shape} here, got {tuple(action.shape)}")
    _check_device(action, device)
    if kind == "weights":
        _check_dtype(action, dtype)
    return action if kind == "weights" else action.to(torch.int64)


def _check_device(tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"the action must be on the network's device {device}, got {tensor.device}")


def _check_dtype(weights: Tensor, dtype: torch.dtype) -> None:
    if weights.dtype != dtype:
        raise ValueError(f"weights must be {dtype} as the activations are, got {weights.dtype}")


def out_of_range(action: Action, num_choices: int) -> Tensor | None:
    """Return a 0-dimensional bool: does a choice lie outside `[0, num_choices)`; None for dense weights."""
    integers = action[0] if isinstance(action, tuple) else action
    if integers.is_floating_point():
        return None
    low, high = integers.aminmax()
    return (low < 0) | (high >= num_choices)


def in_range(action: Action, num_choices: int) -> Action:
    """Return the action with integer choices moved into `[0, num_choices)`."""
    if isinstance(action, tuple):
        return action[0].clamp(0, num_choices - 1), action[1]
    return action if action.is_floating_point() else action.clamp(0, num_choices - 1)


def made_legal(action: Action, mask: Tensor) -> Action:
    """Return the action with the first legal choice for a masked one, and no weight on masked choices.

    Args:
        action: Of checked form.
        mask: `(B, A)` or `(B, M, A)` bool.
    """
    action = in_range(action, mask.shape[-1])
    if isinstance(action, tuple):
        indices, weights = action
        return indices, weights * mask.gather(1, indices)
    if action.is_floating_point():
        return action * mask
    return torch.where(illegal(action, mask), mask.to(torch.uint8).argmax(-1), action)  # argmax: the first True


def illegal(action: Action, mask: Tensor) -> Tensor:
    """Return which tensors chose, or gave weight to, a masked choice.

    Args:
        action: Of checked form, integers in range.
        mask: `(B, A)` or `(B, M, A)` bool, True where a choice is legal.

    Returns:
        `(B,)` or `(B, M)` bool.
    """
    if isinstance(action, tuple):
        indices, weights = action
        return (~mask.gather(1, indices) & (weights.detach() != 0)).any(-1)
    if action.is_floating_point():
        return (~mask & (action.detach() != 0)).any(-1)
    return ~mask.gather(-1, action.unsqueeze(-1)).squeeze(-1)


def dense(action: Action, num_choices: int) -> Tensor:
    """Return an action as weights `(..., num_choices)`: integers one-hot, sparse pairs spread out."""
    if isinstance(action, tuple):
        indices, weights = action
        return weights.new_zeros(len(weights), num_choices).scatter_add(1, indices, weights)
    if action.is_floating_point():
        return action
    return torch.nn.functional.one_hot(action, num_choices).to(torch.get_default_dtype())


def take(action: Action, rows: Tensor | None) -> Action:
    """Return the action of some rows (None: of all)."""
    if rows is None:
        return action
    if isinstance(action, tuple):
        return action[0].index_select(0, rows), action[1].index_select(0, rows)
    return action.index_select(0, rows)


def taken(action: Action, reach: Tensor, n: int) -> Tensor:
    """Return which of n choices any row takes at a decision: their numbers `(r,)` int64; of weights, `(n,)` bool.

    Args:
        action: As the decision takes it.
        reach: `(r,)`, the share of each instance that is there.
        n: How many choices there are.
    """
    if isinstance(action, Tensor) and not action.is_floating_point():
        return action
    weights = dense(action, n).detach()
    shared = weights * reach.detach().view(-1, *[1] * (weights.ndim - 1))
    return (shared != 0).flatten(0, -2).any(0)
