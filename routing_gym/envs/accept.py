"""Taking in an action from outside: checked, and masked choices replaced where that is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from routing_gym.networks import Action, RoutedNetwork, RoutingState
from routing_gym.networks import actions as forms


def to_tensors(given: Any, device: torch.device) -> Any:
    """Turn numpy arrays into tensors on a device; leave everything else to the check."""
    if isinstance(given, tuple):
        return tuple(to_tensors(part, device) for part in given)
    return torch.as_tensor(given, device=device) if isinstance(given, np.ndarray | np.generic) else given


def accept(
    network: RoutedNetwork, state: RoutingState, given: Any, *, action_type: str, first_legal: bool, validate: bool
) -> tuple[Action, Tensor | None, Tensor | None]:
    """Check an action.

    Args:
        network: The network it is meant for.
        state: Where the rows stand.
        given: Whatever came in.
        action_type: `"discrete"` or `"weights"`.
        first_legal: Replace a masked integer choice by the first legal one.
        validate: Check values now, which on a GPU waits for the device.

    Returns:
        The action, integers as int64 and in range; `(B,)` int8, 1 where a choice was replaced (None unless
        `first_legal`); and, unless `validate`, a 0-dimensional bool on the device: some value is not allowed.

    Raises:
        ValueError: The action is not allowed; `state` is as it was.
    """
    given = to_tensors(given, state.task.device)
    weights = isinstance(given, tuple) or (isinstance(given, Tensor) and given.is_floating_point())
    if weights != (action_type == "weights"):
        wanted = "floating-point weights" if action_type == "weights" else "integer choices"
        got = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"an environment with action_type={action_type!r} takes a tensor of {wanted}, got {got}")
    action = network.check_action_form(state, given)

    doubtful = None
    if not validate:
        # An index out of range would bring a GPU down, not raise: keep it in range and report it with the batch.
        doubtful = forms.out_of_range(action, network.num_choices)
        action = forms.in_range(action, network.num_choices)
    if first_legal and isinstance(action, Tensor) and not action.is_floating_point():
        if validate and bool(forms.out_of_range(action, network.num_choices)):
            raise ValueError(network.explain_bad_action(state, action))
        mask = network.action_mask(state)
        masked = forms.illegal(action, mask)
        action = torch.where(masked, mask.to(torch.uint8).argmax(-1), action)  # argmax of a mask: its first True
        replaced = (masked if masked.ndim == 1 else masked.any(-1)).to(torch.int8)
        return action, replaced, doubtful
    bad = network.is_bad_action(state, action)
    if validate and bool(bad):
        raise ValueError(network.explain_bad_action(state, action))
    return action, None, None if validate else bad if doubtful is None else bad | doubtful


def accept_reset_mask(given: Any, num_envs: int, device: torch.device, active: Tensor | None) -> Tensor:
    """Check a reset mask and return the rows it names.

    Args:
        given: `(num_envs,)` bool, numpy or torch.
        num_envs: B.
        device: Where the rows go.
        active: `(B,)` bool: rows that may not be restarted; None where all may.

    Raises:
        ValueError: Wrong type or shape, no row named, or an active one.
    """
    mask = torch.as_tensor(given, device=device)
    if mask.dtype != torch.bool or mask.shape != (num_envs,):
        raise ValueError(
            f"reset_mask must be bool of shape ({num_envs},), got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    if not bool(mask.any()):
        raise ValueError("reset_mask must name at least one row, got all False")
    if active is not None and bool((mask & active).any()):
        unfinished = (mask & active).nonzero().flatten().tolist()
        raise ValueError(f"rows {unfinished} have not left the network: go on stepping, or reset all rows")
    return mask.nonzero().flatten()


def accept_instances(given: Any, count: int, num_rows: int) -> Tensor | None:
    """Check which rows of a data set are asked for; None where none are named.

    Raises:
        ValueError: Not `count` integers in `[0, num_rows)`.
    """
    if given is None:
        return None
    instances = torch.as_tensor(given)
    if instances.is_floating_point() or instances.dtype == torch.bool or instances.shape != (count,):
        raise ValueError(f"instances must be {count} integers, got {instances.dtype} of shape {tuple(instances.shape)}")
    if not 0 <= int(instances.min()) <= int(instances.max()) < num_rows:
        raise ValueError(f"instances must lie in [0, {num_rows}), got {instances.tolist()}")
    return instances.to(torch.int64)
