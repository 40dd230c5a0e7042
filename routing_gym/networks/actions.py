"""Forms of an action: integer choices, weights of choices, or the weights of a few of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from routing_gym.blocks import Sparse
from routing_gym.tasks.checking import to_tensor

Action = Tensor | Sparse
"""Choices `(B, M)` int64; weights `(B, M, A)`; or sparse `(indices (B, K), weights (B, K))`, where M = 1."""


class NotFiniteError(ValueError):
    """Numbers that are infinite or NaN: whoever decides has diverged."""


SIMPLEX_TOLERANCE = 1e-4
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def is_weights(action: Action) -> bool:
    """Whether an action is weights, dense or sparse, and not choices."""
    return isinstance(action, tuple) or action.is_floating_point()


def integers_of(action: Action) -> Tensor | None:
    """Choices or indices of an action; None for dense weights."""
    integers = action[0] if isinstance(action, tuple) else action
    return None if integers.is_floating_point() else integers


def weights_of(action: Action) -> Tensor | None:
    """Weights of an action; None for choices."""
    weights = action[1] if isinstance(action, tuple) else action
    return weights if weights.is_floating_point() else None


def formed(given: Any, like: Tensor, m: int, num_choices: int, action_type: str | None = None) -> Action:
    """Action of tensors, arrays or lists, none of whose values is read.

    Args:
        given: Choices `(B, M)`, weights `(B, M, A)`, both without the second axis where M = 1; or a pair
            `(indices, weights)`.
        like: `(B,)` floating point; device and type are its.
        m: M.
        num_choices: A.
        action_type: `"discrete"` or `"weights"`, if only one of them will do.

    Raises:
        ValueError: Wrong type, shape or device.
    """
    listed, batch = isinstance(given, list), len(like)
    given = _to_tensors(given, like)
    if listed and action_type == "weights":
        given = given.to(like.dtype)  # [[1, 0], ...] are weights too
    if not isinstance(given, Tensor | tuple):
        raise ValueError(f"an action is a torch tensor or a pair of them, got {type(given).__name__}")
    if action_type is not None and is_weights(given) != (action_type == "weights"):
        wanted = "floating-point weights" if action_type == "weights" else "integer choices"
        got = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"an environment with action_type={action_type!r} takes a tensor of {wanted}, got {got}")
    if isinstance(given, tuple):
        return _pair(given, like, m)
    if not given.is_floating_point() and given.dtype not in _INTEGERS:
        raise ValueError(f"an action holds integers or floating-point weights, got {given.dtype}")
    choices = (num_choices,) if given.is_floating_point() else ()
    expected = (batch, *choices) if m == 1 else (batch, m, *choices)
    if m == 1 and given.shape == (batch, 1, *choices):
        given = given.squeeze(1)
    if tuple(given.shape) != expected:
        kind = "weights" if choices else "integer choices"
        raise ValueError(f"an action of {kind} has shape {expected} here, got {tuple(given.shape)}")
    _check_alike(given, like)
    action = given if choices else given.to(torch.int64)
    return action.unsqueeze(1) if m == 1 else action


def _pair(given: tuple[Any, ...], like: Tensor, m: int) -> Sparse:
    if len(given) != 2 or not all(isinstance(part, Tensor) for part in given):
        raise ValueError("a sparse action is a pair (indices, weights) of tensors")
    indices, weights = given
    if m > 1:
        raise ValueError("a sparse action is for decisions of one tensor; this network needs weights (B, m, n)")
    if indices.dtype not in _INTEGERS or not weights.is_floating_point():
        raise ValueError(
            f"a sparse action is (integer indices, floating-point weights), got {indices.dtype} and {weights.dtype}"
        )
    if indices.ndim != 2 or len(indices) != len(like) or weights.shape != indices.shape:
        raise ValueError(
            f"a sparse action has two parts of one shape ({len(like)}, K), got {tuple(indices.shape)} and "
            f"{tuple(weights.shape)}"
        )
    _check_alike(indices, like)
    _check_alike(weights, like)
    return indices.to(torch.int64), weights


def _to_tensors(given: Any, like: Tensor) -> Any:
    """Tensors of arrays and lists, floating-point ones of the wanted type; all else is left to the check."""
    if isinstance(given, tuple):
        return tuple(_to_tensors(part, like) for part in given)
    if not isinstance(given, np.ndarray | np.generic | list):
        return given
    tensor = to_tensor("an action", given).to(like.device)
    return tensor.to(like.dtype) if tensor.is_floating_point() else tensor


def _check_alike(tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(f"the action must be on the network's device {like.device}, got {tensor.device}")
    if tensor.is_floating_point() and tensor.dtype != like.dtype:
        raise ValueError(f"weights must be {like.dtype} as the activations are, got {tensor.dtype}")


def out_of_range(action: Action, num_choices: int) -> Tensor | None:
    """Whether a choice lies outside `[0, num_choices)`, 0-dimensional bool; None for dense weights."""
    if (integers := integers_of(action)) is None:
        return None
    low, high = integers.aminmax()
    return (low < 0) | (high >= num_choices)


def in_range(action: Action, num_choices: int) -> Action:
    """Action with its choices moved into `[0, num_choices)`."""
    if isinstance(action, tuple):
        return action[0].clamp(0, num_choices - 1), action[1]
    return action if action.is_floating_point() else action.clamp(0, num_choices - 1)


def made_legal(action: Action, mask: Tensor) -> Action:
    """Action with the first legal choice for a masked one, and no weight on masked choices.

    Args:
        action: Choices `(...)`, weights `(..., A)`, or a pair.
        mask: Legal choices `(..., A)` bool, `(B, 1, A)` for a pair.
    """
    action = in_range(action, mask.shape[-1])
    if isinstance(action, tuple):
        indices, weights = action
        return indices, weights * mask[:, 0].gather(1, indices)
    if action.is_floating_point():
        return action * mask
    return torch.where(illegal(action, mask), mask.to(torch.uint8).argmax(-1), action)  # argmax: the first True


def illegal(action: Action, mask: Tensor) -> Tensor:
    """Tensors that chose, or gave weight to, a masked choice, `(...)` bool, `(B, 1)` for a pair; see `made_legal`."""
    if isinstance(action, tuple):
        indices, weights = action
        return (~mask[:, 0].gather(1, indices) & (weights.detach() != 0)).any(-1, keepdim=True)
    if action.is_floating_point():
        return (~mask & (action.detach() != 0)).any(-1)
    return ~mask.gather(-1, action.unsqueeze(-1)).squeeze(-1)


def dense(action: Action, num_choices: int) -> Tensor:
    """Weights `(..., num_choices)` of an action: choices one-hot, a pair `(B, K)` spread out to `(B, A)`."""
    if isinstance(action, tuple):
        indices, weights = action
        return weights.new_zeros(len(weights), num_choices).scatter_add(1, indices, weights)
    if action.is_floating_point():
        return action
    return torch.nn.functional.one_hot(action, num_choices).to(torch.get_default_dtype())


def of_one_tensor(action: Action) -> Action:
    """Action where M = 1 without the axis of tensors: `(B,)`, `(B, A)`, or the pair it is."""
    if isinstance(action, tuple) or action.ndim == 1 + action.is_floating_point():
        return action
    return action.squeeze(1)


def take(action: Action, rows: Tensor | None) -> Action:
    """Action of some rows (None: of all)."""
    if rows is None:
        return action
    if isinstance(action, tuple):
        return action[0].index_select(0, rows), action[1].index_select(0, rows)
    return action.index_select(0, rows)


def taken(action: Action, reach: Tensor, n: int) -> Tensor:
    """Choices of n that any row takes at a decision: their numbers int64; of weights, `(n,)` bool.

    Args:
        action: As the decision takes it: `(r,)`, `(r, n)`, `(r, m, n)` or a pair.
        reach: `(r,)` share of each instance that is there.
        n: Number of choices.
    """
    if isinstance(action, Tensor) and not action.is_floating_point():
        return action
    weights = dense(action, n).detach()
    shared = weights * reach.detach().view(-1, *[1] * (weights.ndim - 1))
    return (shared != 0).flatten(0, -2).any(0)
