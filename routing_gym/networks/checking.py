"""Whether the values of an action are allowed where the rows stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from routing_gym.networks import actions
from routing_gym.networks.actions import Action
from routing_gym.networks.state import RoutingState

if TYPE_CHECKING:
    from routing_gym.networks.network import RoutedNetwork


def has_bad_values(network: RoutedNetwork, state: RoutingState, action: Action) -> Tensor:
    """Return a 0-dimensional bool on the device: is any value of an action of checked form not allowed."""
    bad = actions.out_of_range(action, network.num_choices)
    if bad is not None and not isinstance(action, tuple) and network.nothing_masked:
        return bad
    masked = actions.illegal(actions.in_range(action, network.num_choices), network.action_mask(state)).any()
    bad = masked if bad is None else bad | masked
    if actions.is_weights(action):
        weights = action[1] if isinstance(action, tuple) else action
        assert isinstance(weights, Tensor)
        bad = bad | ~weights.detach().isfinite().all() | _off_simplex(network, state, weights).any()
    return bad


def bad_values_error(network: RoutedNetwork, state: RoutingState, action: Action) -> ValueError:
    """Return an error that says what is wrong with an action for which `has_bad_values` is True."""
    integers = action[0] if isinstance(action, tuple) else action
    if bool(actions.out_of_range(action, network.num_choices)):
        wrong = integers[(integers < 0) | (integers >= network.num_choices)]
        return ValueError(f"choices must lie in [0, {network.num_choices}), got {int(wrong[0])}")
    weights = (action[1] if isinstance(action, tuple) else action) if actions.is_weights(action) else None
    if weights is not None and not bool(weights.isfinite().all()):
        row = int((~weights.isfinite()).nonzero()[0, 0])
        return actions.NotFiniteError(f"weights must be finite, got {weights[row].tolist()} for row {row}")
    mask = network.action_mask(state)
    masked = actions.illegal(action, mask).nonzero()
    if len(masked):
        row = int(masked[0, 0])
        number = int(state.at[row])
        legal = mask[tuple(masked[0])].nonzero().flatten().tolist()
        got = (integers if weights is None else weights)[row].tolist()
        name = network.decisions[number].name
        return ValueError(f"row {row} at decision {number} ({name!r}) may choose from {legal}, got {got}")
    assert weights is not None
    row = int(_off_simplex(network, state, weights).nonzero()[0, 0])
    return ValueError(
        f"outcome weights must be at least 0 and sum to 1, got {weights[row].tolist()} for row {row} at decision "
        f"{int(state.at[row])}"
    )


def _off_simplex(network: RoutedNetwork, state: RoutingState, weights: Tensor) -> Tensor:
    """Return `(B,)` bool: rows that share out an outcome by weights that are negative or do not sum to 1."""
    weights = weights.detach()
    if network.num_tensors > 1:
        weights = weights[:, 0]
    off = (weights < 0).any(-1) | ((weights.sum(-1) - 1).abs() > actions.SIMPLEX_TOLERANCE)
    return off & network.is_outcome[state.at]
