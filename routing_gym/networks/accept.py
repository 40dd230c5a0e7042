"""The check of an action where the rows stand, and what becomes of choices that are not legal there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from routing_gym.networks import actions
from routing_gym.networks.actions import Action
from routing_gym.networks.network import RoutedNetwork
from routing_gym.networks.state import RoutingState


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
        given: See `actions.formed`.
        mask: Gives `network.action_mask(state)`, for who has it already.
        action_type: `"discrete"` or `"weights"`, if only one of them will do.
        first_legal: Replace a masked integer choice by the first legal one.
        validate: Check values now, which on a GPU waits for the device; None for the form alone.

    Raises:
        ValueError: Wrong type, shape or device; a choice out of range or masked; weights that are not finite, or
            outcome weights off the simplex. Nothing has changed then.
    """
    mask = mask or (lambda: network.action_mask(state))
    action = actions.formed(given, state.macs, network.num_tensors, network.num_choices, action_type)
    weighted = actions.is_weights(action)
    if weighted and network.rejoining:
        raise ValueError("paths of this network meet again, so outcomes cannot be shared out: choose by integers")
    if validate is None:
        return Accepted(action)
    tolerant = first_legal and not weighted
    bad = actions.out_of_range(action, network.num_choices)
    if not tolerant and (weighted or not network.nothing_masked):
        worse = _has_bad_values(network, state, action, mask())
        bad = worse if bad is None else bad | worse
    assert bad is not None
    if validate and bool(bad):
        raise _bad_values_error(network, state, action, mask())
    if validate and not tolerant:
        return Accepted(action)
    # On a GPU what is not allowed is replaced too, and reported with the batch: it would bring the device down.
    legal = actions.made_legal(action, mask())
    if not tolerant:
        return Accepted(legal, doubtful=bad)
    assert isinstance(legal, Tensor) and isinstance(action, Tensor)
    return Accepted(legal, (legal != action).any(1).to(torch.int8), None if validate else bad)


def accept_plan(
    network: RoutedNetwork, plan: Tensor, *, first_legal: bool, validate: bool | None
) -> tuple[Tensor, Tensor | None] | None:
    """Check whole routes through a network that is `in_order`, as `accept` checks the choices one by one.

    Args:
        network: Takes them.
        plan: Choices `(B, N)` int64.
        first_legal: Replace a masked choice by the first legal one, and find nothing wrong with that.
        validate: Check values now, which on a GPU waits for the device.

    Returns:
        Routes that can be followed, and where values have not been read a 0-dimensional bool, whether some choice was
        not allowed and has been replaced. None where values have been read and one is not allowed.
    """
    if network.nothing_masked and validate:
        low, high = plan.aminmax()
        return (plan, None) if int(low) >= 0 and int(high) < network.num_choices else None
    bad = actions.out_of_range(plan, network.num_choices)
    assert bad is not None
    if network.nothing_masked:
        return plan.clamp(0, network.num_choices - 1), bad
    mask = network.masks[:, 0].expand(len(plan), -1, -1)
    if not first_legal:
        bad = bad | actions.illegal(actions.in_range(plan, network.num_choices), mask).any()
    if validate and bool(bad):
        return None
    if validate and not first_legal:
        return plan, None
    replaced = actions.made_legal(plan, mask)
    assert isinstance(replaced, Tensor)
    return replaced, None if validate else bad


def _has_bad_values(network: RoutedNetwork, state: RoutingState, action: Action, mask: Tensor) -> Tensor:
    """Whether a choice is masked or a weight not allowed, 0-dimensional bool on the device."""
    bad = actions.illegal(actions.in_range(action, network.num_choices), mask).any()
    if (weights := actions.weights_of(action)) is not None:
        bad = bad | ~weights.detach().isfinite().all() | _off_simplex(network, state, weights).any()
    return bad


def _bad_values_error(network: RoutedNetwork, state: RoutingState, action: Action, mask: Tensor) -> ValueError:
    """Error that says what is wrong with an action of which a value is not allowed."""
    integers, weights = actions.integers_of(action), actions.weights_of(action)
    if integers is not None and bool(actions.out_of_range(action, network.num_choices)):
        wrong = integers[(integers < 0) | (integers >= network.num_choices)]
        return ValueError(f"choices must lie in [0, {network.num_choices}), got {int(wrong[0])}")
    if weights is not None and not bool(weights.isfinite().all()):
        row = int((~weights.isfinite()).nonzero()[0, 0])
        return actions.NotFiniteError(
            f"weights must be finite, got {_told(network, action, weights, row)} for row {row}"
        )
    masked = actions.illegal(action, mask).nonzero()
    if len(masked):
        row = int(masked[0, 0])
        number = int(state.at[row])
        legal = mask[tuple(masked[0])].nonzero().flatten().tolist()
        got = integers if weights is None else weights
        assert got is not None
        told, name = _told(network, action, got, row), network.decisions[number].name
        return ValueError(f"row {row} at decision {number} ({name!r}) may choose from {legal}, got {told}")
    assert weights is not None
    row = int(_off_simplex(network, state, weights).nonzero()[0, 0])
    return ValueError(
        f"outcome weights must be at least 0 and sum to 1, got {_told(network, action, weights, row)} for row {row} "
        f"at decision {int(state.at[row])}"
    )


def _told(network: RoutedNetwork, action: Action, values: Tensor, row: int) -> object:
    """Values of a row as they came in: without the axis of tensors where there is only one."""
    own = values[row]
    return (own[0] if network.num_tensors == 1 and not isinstance(action, tuple) else own).tolist()


def _off_simplex(network: RoutedNetwork, state: RoutingState, weights: Tensor) -> Tensor:
    """Rows `(B,)` bool that share out an outcome by weights that are negative or do not sum to 1."""
    weights = weights.detach()
    if weights.ndim == 3:
        weights = weights[:, 0]
    off = (weights < 0).any(-1) | ((weights.sum(-1) - 1).abs() > actions.SIMPLEX_TOLERANCE)
    return off & network.is_outcome[state.at]
