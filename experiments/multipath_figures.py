"""The figures of Deciding How to Decide (McGill and Perona 2017), drawn from recorded runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from routing_gym.experiments.report import Record


def draw(groups: Mapping[str, str], records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw all figures there are records for; return their files."""
    return []
