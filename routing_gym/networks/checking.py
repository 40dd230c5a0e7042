"""Whether options of a network are allowed."""

from __future__ import annotations

from collections.abc import Sequence

from routing_gym.tasks.checking import whole_number


def check_no_num_blocks(
    network: str, num_blocks: int | Sequence[int], num_tasks: int, instead: str = "leave it out"
) -> None:
    """Refuse a number of blocks where a network has none to choose; what `make_network` gives by default passes.

    Args:
        network: Its name.
        num_blocks: The number, as the builder got it.
        num_tasks: How many tasks there are: the default of `make_network`.
        instead: What to do.
    """
    if num_blocks != num_tasks:
        raise ValueError(f"network {network!r} has no num_blocks to choose: {instead}, got num_blocks={num_blocks!r}")


def check_at_least_one(network: str, **options: int) -> None:
    """Refuse options of a network that are no integers of at least 1."""
    for option, value in options.items():
        if whole_number(f"network {network!r}: {option}", value, least=None) < 1:
            raise ValueError(f"network {network!r}: {option} must be at least 1, got {value}")
