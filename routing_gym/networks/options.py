"""Refusing options of networks, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from routing_gym.tasks.checking import whole_number


def check_counts(**options: Any) -> None:
    """Refuse options that are no integers of at least 1."""
    for option, value in options.items():
        whole_number(option, value)


def check_range(option: str, value: int, low: int, high: int) -> None:
    """Refuse an option that is no integer between two limits, both included."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{option} must be an integer from {low} to {high}, got {value!r}")


def check_choice(option: str, value: str, *known: str) -> None:
    """Refuse an option that is none of the known ones."""
    if value not in known:
        raise ValueError(f"{option} must be {' or '.join(map(repr, known))}, got {value!r}")


def check_image(input_shape: Sequence[int], smallest: int) -> None:
    """Refuse `(C, H, W)` images of fewer pixels in a row or a column than a network can make smaller."""
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ValueError(
            f"input_shape=(C, H, W) must be of at least {smallest}x{smallest} pixels, got {tuple(input_shape)}"
        )
