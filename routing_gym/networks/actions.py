"""Actions: integer choices, weights of choices, or the weights of a few; and the check by which they come in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from routing_gym.blocks import Sparse
from routing_gym.networks.state import RoutingState
from routing_gym.tasks.checking import to_tensor

if TYPE_CHECKING:
    from routing_gym.networks.network import RoutedNetwork

Action = Tensor | Sparse
"""Choices `(B, M)` int64; weights `(B, M, A)`; or sparse `(indices (B, K), weights (B, K))`, where M = 1."""

SIMPLEX_TOLERANCE = 1e-4
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class NotFiniteError(ValueError):
    """Numbers that are infinite or NaN: whoever decides has diverged."""


@dataclasses.dataclass(frozen=True)
class Accepted:
    """An action that can be carried out.

    Attributes:
        action: Choices `(B, M)` int64 in range, weights `(B, M, A)`, or a pair `(indices, weights)`.
        replaced: `(B,)` int8, 1 where a masked choice was replaced by the first legal one; None where they are refused.
        doubtful: 0-dimensional bool on the device, not read yet: some value was not allowed and has been replaced, so
            the batch must be dropped. None where values are checked at once.
    """

    action: Action
    replaced: Tensor | None = None
    doubtful: Tensor | None = None


def accept(
    network: RoutedNetwork,
    state: RoutingState,
    given: Any,
    *,
    mask: Callable[[], Tensor] | None = None,
    action_type: str | None = None,
    first_legal: bool = False,
    validate: bool | None = True,
) -> Accepted:
    """Check an action: the one door by which actions come in.

    Args:
        network: Takes it.
        state: Where the rows stand.
        given: See `formed`.
        mask: Gives `network.action_mask(state)`, for who has it already.
        action_type: `"discrete"` or `"weights"`, if only one of them will do.
        first_legal: Replace a masked integer choice by the first legal one.
        validate: Check values now, which on a GPU waits for the device; None for the form alone.

    Raises:
        ValueError: Wrong type, shape or device; a choice out of range or masked; weights that are not finite, or
            outcome weights off the simplex. Nothing has changed then.
    """
    mask = mask or partial(network.action_mask, state)
    action = formed(given, state.macs, network.num_tensors, network.num_choices, action_type)
    weights = weights_of(action)
    if weights is not None and network.rejoining:
        raise ValueError("paths of this network meet again, so outcomes cannot be shared out: choose by integers")
    if validate is None:
        return Accepted(action)
    tolerant = first_legal and weights is None
    bad = _bad_choices(network, action, mask, tolerant)
    if weights is not None:
        bad = bad | ~weights.detach().isfinite().all()
        if network.shares_outcomes:
            bad = bad | _off_simplex(network, state, weights).any()
    if validate and bool(bad):
        raise _bad_values_error(network, state, action, mask())
    if validate and not tolerant:
        return Accepted(action)
    # On a GPU what is not allowed is replaced too, and reported with the batch: it would bring the device down.
    legal = in_range(action, network.num_choices) if network.nothing_masked else made_legal(action, mask())
    if not tolerant:
        return Accepted(legal, doubtful=bad)
    assert isinstance(legal, Tensor) and isinstance(action, Tensor)
    return Accepted(legal, (legal != action).any(1).to(torch.int8), None if validate else bad)


def accept_plan(
    network: RoutedNetwork, plan: Tensor, *, first_legal: bool, validate: bool | None
) -> tuple[Tensor, Tensor | None] | None:
    """Check whole routes `(B, N)` int64 through a network that is `in_order`, as `accept` checks choices one by one.

    Returns:
        Routes that can be followed, and where values have not been read a 0-dimensional bool, whether some choice was
        not allowed and has been replaced. None where values have been read and one is not allowed.
    """

    def mask() -> Tensor:
        return network.masks[:, 0].expand(len(plan), -1, -1)

    bad = _bad_choices(network, plan, mask, first_legal)
    if validate and bool(bad):
        return None
    if validate and (network.nothing_masked or not first_legal):
        return plan, None
    legal = in_range(plan, network.num_choices) if network.nothing_masked else made_legal(plan, mask())
    assert isinstance(legal, Tensor)
    return legal, None if validate else bad


def _bad_choices(network: RoutedNetwork, action: Action, mask: Callable[[], Tensor], tolerant: bool) -> Tensor:
    """Whether a choice is out of range or, unless that is tolerated, masked: 0-dimensional bool on the device."""
    bad = out_of_range(action, network.num_choices)
    if not (tolerant or network.nothing_masked):
        bad = bad | illegal(in_range(action, network.num_choices), mask()).any()
    return bad


def _bad_values_error(network: RoutedNetwork, state: RoutingState, action: Action, mask: Tensor) -> ValueError:
    """Error that says what is wrong with an action of which a value is not allowed."""
    weights = weights_of(action)
    integers = action[0] if isinstance(action, tuple) else action
    if bool(out_of_range(action, network.num_choices)):
        wrong = integers[(integers < 0) | (integers >= network.num_choices)]
        return ValueError(f"choices must lie in [0, {network.num_choices}), got {int(wrong[0])}")
    values = integers if weights is None else weights

    def told(row: int) -> object:  # as it came in: without the axis of tensors where there is only one
        own = values[row]
        return (own[0] if network.num_tensors == 1 and not isinstance(action, tuple) else own).tolist()

    if weights is not None and not bool(weights.isfinite().all()):
        row = int((~weights.isfinite()).nonzero()[0, 0])
        return NotFiniteError(f"weights must be finite, got {told(row)} for row {row}")
    masked = illegal(action, mask).nonzero()
    if len(masked):
        row = int(masked[0, 0])
        number = int(state.at[row])
        legal = mask[tuple(masked[0])].nonzero().flatten().tolist()
        name = network.decisions[number].name
        return ValueError(f"row {row} at decision {number} ({name!r}) may choose from {legal}, got {told(row)}")
    row = int(_off_simplex(network, state, values).nonzero()[0, 0])
    return ValueError(
        f"outcome weights must be at least 0 and sum to 1, got {told(row)} for row {row} at decision "
        f"{int(state.at[row])}"
    )


def _off_simplex(network: RoutedNetwork, state: RoutingState, weights: Tensor) -> Tensor:
    """Rows `(B,)` bool that share out an outcome by weights that are negative or do not sum to 1."""
    weights = weights.detach()
    if weights.ndim == 3:
        weights = weights[:, 0]
    off = (weights < 0).any(-1) | ((weights.sum(-1) - 1).abs() > SIMPLEX_TOLERANCE)
    return off & network.is_outcome[state.at]


def is_weights(action: Action) -> bool:
    """Whether an action is weights, dense or sparse, and not choices."""
    return isinstance(action, tuple) or action.is_floating_point()


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
        action_type: As of `accept`.

    Raises:
        ValueError: Wrong type, shape or device.
    """
    listed = isinstance(given, list)
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
    whole = (*like.shape, m, *choices)
    expected = (*like.shape, *choices) if m == 1 else whole
    if given.shape not in (expected, whole):
        kind = "weights" if choices else "integer choices"
        raise ValueError(f"an action of {kind} has shape {expected} here, got {tuple(given.shape)}")
    _check_alike(given, like)
    return (given if choices else given.to(torch.int64)).view(whole)


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


def out_of_range(action: Action, num_choices: int) -> Tensor:
    """Whether a choice lies outside `[0, num_choices)`, 0-dimensional bool; False for dense weights."""
    integers = action[0] if isinstance(action, tuple) else action
    if integers.is_floating_point():
        return integers.new_zeros((), dtype=torch.bool)
    low, high = integers.aminmax()
    return (low < 0) | (high >= num_choices)


def in_range(action: Action, num_choices: int) -> Action:
    """Action with its choices moved into `[0, num_choices)`."""
    if isinstance(action, tuple):
        return action[0].clamp(0, num_choices - 1), action[1]
    return action if action.is_floating_point() else action.clamp(0, num_choices - 1)


def made_legal(action: Action, mask: Tensor) -> Action:
    """Action with the first legal choice for a masked one, and no weight on masked choices.

    It is choices `(...)`, weights `(..., A)`, or a pair; legal choices are `(..., A)` bool, `(B, 1, A)` for a pair.
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
        return weights.new_zeros(*weights.shape[:1], num_choices).scatter_add(1, indices, weights)
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
    """Choices of n that any row takes, `reach (r,)` of which is there: their numbers int64; of weights, `(n,)` bool."""
    if isinstance(action, Tensor) and not action.is_floating_point():
        return action
    weights = dense(action, n).detach()
    shared = weights * reach.detach().view(-1, *[1] * (weights.ndim - 1))
    return (shared != 0).flatten(0, -2).any(0)
