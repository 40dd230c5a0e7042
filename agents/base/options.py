"""Options of agents: dataclasses whose fields declare the values they may have, and refuse others by name."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_RANGE = "range"
_Test = Callable[[Any], bool]


def _within(default: Any, meaning: str, test: _Test) -> Any:
    return dataclasses.field(default=default, metadata={_RANGE: (meaning, test)})


def positive(default: float | None) -> Any:
    """Declare an option that is above 0 and finite."""
    return _within(default, "be positive and finite", lambda value: 0 < value < float("inf"))


def not_negative(default: float | None) -> Any:
    """Declare an option that is at least 0 and finite."""
    return _within(default, "be at least 0 and finite", lambda value: 0 <= value < float("inf"))


def share(default: float | None) -> Any:
    """Declare an option that lies between 0 and 1, both included."""
    return _within(default, "lie in [0, 1]", lambda value: 0 <= value <= 1)


def rate(default: float | None) -> Any:
    """Declare an option that lies above 0 and is at most 1."""
    return _within(default, "lie in (0, 1]", lambda value: 0 < value <= 1)


def count(default: int | None, least: int = 1) -> Any:
    """Declare an option that is an integer of at least `least`."""
    return _within(default, f"be an integer of at least {least}", lambda value: value == int(value) and value >= least)


def _literals(hint: Any) -> tuple[Any, ...]:
    """Values that a hint lists: `Literal["a", "b"]`, or that or None; nothing for other hints."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    values = tuple(value for part in parts if get_origin(part) is Literal for value in get_args(part))
    return (*values, None) if values and type(None) in parts else values


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """Options every agent has.

    Literal options and those declared by `positive`, `share`, ... are checked when the configuration is made; None is
    let through where it is the default.

    Attributes:
        seed: Seed of the agent's own random choices.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            known = _literals(hint)
            if known and value not in known:
                raise ValueError(f"{self.owner()}: {field.name} must be one of {known}, got {value!r}")
            if _RANGE in field.metadata and not (value is None and field.default is None):
                meaning, test = field.metadata[_RANGE]
                if not test(value):
                    raise ValueError(f"{self.owner()}: {field.name} must {meaning}, got {value!r}")

    @classmethod
    def owner(cls) -> str:
        """Name of those whose options these are, for messages."""
        return cls.__name__.removesuffix("Config")
