"""Options of environments and agents: what they may be is declared with them, and said when they are not."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_RULE = "rule"
_Test = Callable[[Any], bool]
SEQUENCES = (tuple, list, Sequence)


def _field(default: Any, rule: str | Callable[[], Collection[str]], test: _Test) -> Any:
    return dataclasses.field(default=default, metadata={_RULE: (rule, test)})


def _number(rule: str, test: _Test) -> Callable[[float | None], Any]:
    return lambda default: _field(default, rule, test)


# Each declares an option that is a number, with its default.
positive = _number("be positive and finite", lambda value: 0 < value < float("inf"))
divisor = _number("be at least 1e-6 and finite", lambda value: 1e-6 <= value < float("inf"))  # quotients stay finite
not_negative = _number("be at least 0 and finite", lambda value: 0 <= value < float("inf"))
share = _number("lie in [0, 1]", lambda value: 0 <= value <= 1)
rate = _number("lie in (0, 1]", lambda value: 0 < value <= 1)
fraction = _number("lie in [0, 1)", lambda value: 0 <= value < 1)


def count(default: int | None, least: int = 1) -> Any:
    """Option that is an integer of at least `least`."""
    return _field(default, f"be an integer of at least {least}", lambda value: value == int(value) and value >= least)


def named(default: str, known: Callable[[], Collection[str]]) -> Any:
    """Option that is one of some names, to which others may be added."""
    return _field(default, known, lambda value: value in known())


@dataclasses.dataclass(frozen=True)
class Options:
    """Options that are checked when they are made.

    Literal options and those declared by `positive`, `share`, ... are; None is let through where it is the default.
    """

    def __post_init__(self) -> None:
        hints = type_hints(type(self))
        for field in dataclasses.fields(self):
            value = plain_value(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            known: Collection[Any] = _literals(hints[field.name])
            rule, test = field.metadata.get(_RULE, ("", None))
            if callable(rule):
                known = rule()
            if known and value not in known:
                rule = f"be {' or '.join(map(repr, known))}"
            elif test is None or (value is None and field.default is None) or test(value):
                continue
            raise ValueError(f"{self.owner()}{field.name} must {rule}, got {value!r}")

    @classmethod
    def owner(cls) -> str:
        """Beginning of messages: whose options these are."""
        return ""

    @classmethod
    def of(cls, owner: str, options: dict[str, Any]) -> Any:
        """Options from values by name, their types checked too; messages call the owner by this name.

        Raises:
            TypeError: An unknown option.
            ValueError: A value that an option does not take.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(options) - known):
            raise unexpected(owner, unknown[0], known)
        check_types(owner, type_hints(cls), options)
        return cls(**options)


def plain_value(value: Any) -> Any:
    """NumPy's numbers as Python's, in lists and tuples too, and a device as its name: what is kept is plain."""
    import numpy as np  # not above: help is printed without them
    import torch

    if type(value) in (list, tuple):
        return type(value)(map(plain_value, value))
    if isinstance(value, torch.device):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


type_hints: Callable[[Any], dict[str, Any]] = functools.cache(get_type_hints)
"""Types by name of what a function or class is annotated with; finding them takes longer than a small network."""


def _literals(hint: Any) -> tuple[Any, ...]:
    """Values that a hint lists: `Literal["a", "b"]`, or that or None; nothing for other hints."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    values = tuple(value for part in parts if get_origin(part) is Literal for value in get_args(part))
    return (*values, None) if values and type(None) in parts else values


def check_types(owner: str, hints: dict[str, Any], options: dict[str, Any]) -> None:
    """Refuse options whose values are not of the types hinted at: text where a number belongs, 2.5 where 2 does."""
    for name, given in options.items():
        value, hint = plain_value(given), hints.get(name, Any)
        kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        fits = any(
            kind is Any
            or (get_origin(kind) in SEQUENCES and isinstance(value, tuple | list))
            or get_origin(kind) not in (None, *SEQUENCES)  # literals: their values are checked where they are known
            or (value is None and kind in (None, type(None)))
            or (isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))
            or (kind is float and isinstance(value, int) and not isinstance(value, bool))
            for kind in kinds
        )
        if not fits:
            wanted = " or ".join(
                "None" if k is type(None) else k.__name__ if isinstance(k, type) else str(k) for k in kinds
            )
            raise ValueError(f"{owner}: {name} must be of type {wanted}, got {value!r}")


def unexpected(owner: str, option: str, known: Iterable[str]) -> TypeError:
    """Error for an option that nobody takes, in the words of Python, by which TorchRL knows it."""
    known = sorted(known)
    return TypeError(
        f"{owner} got an unexpected keyword argument {option!r}{nearest(option, known)}; it takes {', '.join(known)}"
    )


def unknown_name(kind: str, name: Any, known: Iterable[str]) -> str:
    """What to say of a name that nothing of a kind has, with the one it is nearest to."""
    known = list(known)
    return f"unknown {kind} {name!r}{nearest(name, known)}; known are {', '.join(known)}"


def nearest(name: Any, known: Sequence[str]) -> str:
    """What to add to a message about a name: which of those known it is like, if any."""
    import difflib  # seldom needed

    near = [option for option in known if _abbreviates(str(name), option)]
    near = near[:1] if len(near) == 1 else difflib.get_close_matches(str(name), near or known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _abbreviates(short: str, name: str) -> bool:
    """Whether a text is made of a beginning of every part of a name: `lr` or `learn_r` of `learning_rate`."""
    parts = [part for part in re.split(r"[_.:-]", name.lower()) if part]
    beginnings = ("|".join(re.escape(part[: end + 1]) for end in range(len(part))) for part in parts)
    pattern = "[_.:-]?".join(f"(?:{some})" for some in beginnings)
    return len(parts) > 1 and re.fullmatch(pattern, short.lower()) is not None
