"""The form of saved states: checked as a whole before anything is changed by them."""

from __future__ import annotations

import copy
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_form(saved: Any, form: Any, where: str) -> None:
    """Refuse a saved value that has another form than an example: other keys, lengths, types or shapes.

    In the form a type stands for all its values, `object` for anything. The `ValueError` says what was expected at the
    first place where they differ, by its name below `where`.
    """
    if isinstance(form, Mapping) and isinstance(saved, Mapping):
        for key in sorted(form.keys() ^ saved.keys(), key=lambda key: (key in saved, str(key))):
            raise ValueError(f"{where}: {key!r} is {'missing' if key in form else 'not known here'}")
        for key, value in form.items():
            check_form(saved[key], value, f"{where}.{key}")
    elif isinstance(form, list | tuple) and isinstance(saved, list | tuple) and len(form) == len(saved):
        for number, (ours, theirs) in enumerate(zip(form, saved, strict=True)):
            check_form(theirs, ours, f"{where}.{number}")
    elif isinstance(form, type | types.UnionType):
        if not isinstance(saved, form) or (form is int and isinstance(saved, bool)):
            raise ValueError(f"{where}: expected {getattr(form, '__name__', form)}, got {_kind(saved)}")
    elif _kind(form) != _kind(saved) and not (type(form) is float and type(saved) is int):
        raise ValueError(f"{where}: expected {_kind(form)}, got {_kind(saved)}")


def check_optimizer(saved: Any, optimizer: torch.optim.Optimizer, where: str) -> None:
    """Refuse the saved state of an optimiser that another one cannot go on with, as `check_form` does."""
    groups = _without_first_rates(optimizer.state_dict()["param_groups"])
    check_form(saved, {"state": dict, "param_groups": list}, where)
    check_form(_without_first_rates(saved["param_groups"]), groups, f"{where}.param_groups")
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in groups]:
        raise ValueError(f"{where}.param_groups: params are other than here")
    form = optimizer.form(saved) if hasattr(optimizer, "form") else _form_by_moving(saved, optimizer, where)
    # A parameter that has never had a gradient has no state.
    check_form(saved["state"], {key: form[key] for key in saved["state"] if key in form}, f"{where}.state")


def _without_first_rates(groups: list[Any]) -> list[Any]:
    """Groups of an optimiser without what PyTorch's schedulers put there."""
    return [
        {key: value for key, value in group.items() if key != "initial_lr"} if isinstance(group, Mapping) else group
        for group in groups
    ]


def _form_by_moving(saved: Any, optimizer: torch.optim.Optimizer, where: str) -> dict[int, Any]:
    """State of an optimiser by parameter: a copy of it is made to move, by gradients of zero."""
    moved = copy.deepcopy(optimizer)
    moved.state.clear()
    for group, options in zip(moved.param_groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in options.items() if key != "params"})
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    try:
        moved.step()
    except Exception as error:  # options that do not go together
        raise ValueError(f"{where}.param_groups: {error}") from error
    return moved.state_dict()["state"]


def _kind(value: Any) -> str:
    """Type and shape of a value, in words."""
    if isinstance(value, Tensor):
        layout = "" if value.layout is torch.strided else f" ({value.layout})"
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}{layout}"
    if isinstance(value, list | tuple):
        return f"{len(value)} values"
    return "a dictionary" if isinstance(value, Mapping) else type(value).__name__
