"""The order in which instances are drawn."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from routing_gym.forms import check_form
from routing_gym.tasks.checking import seed_number, whole_number


class ShuffledStream:
    """An endless stream of numbers: every one once per pass, each pass in a new random order.

    The order comes from a CPU generator, because seeded CUDA generators give other streams on other GPU models.

    Args:
        numbers: `(size,)` int64, or how many: then they are 0 … size − 1.
        seed: Seed of the generator.
        device: Where the numbers are wanted: each pass is handed over once, as a whole.
    """

    def __init__(self, numbers: int | Tensor, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._numbers = numbers.to(self._device) if isinstance(numbers, Tensor) else None
        size = len(numbers) if isinstance(numbers, Tensor) else numbers
        self.size = whole_number("the size of a stream", size)
        self.generator = torch.Generator()
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start over from a seed."""
        self.generator.manual_seed(seed_number("seed", seed))
        self._pass = torch.empty(0, dtype=torch.int64, device=self._device)

    def draw(self, count: int, passes: float = 0.0) -> Tensor:
        """The next numbers of the stream, `(count,)` int64; the same whenever they are drawn."""
        if count <= len(self._pass):  # most of the time, and many times as fast
            places, self._pass = self._pass[:count], self._pass[count:]
            return self._numbered(places)
        pieces, missing = [], count
        while missing > 0:
            if not len(self._pass):
                self._pass = torch.randperm(self.size, generator=self.generator, device="cpu").to(self._device)
            pieces.append(self._pass[:missing])
            self._pass = self._pass[missing:]
            missing -= len(pieces[-1])
        return self._numbered(torch.cat(pieces) if pieces else self._pass[:0])

    def _numbered(self, places: Tensor) -> Tensor:
        return places if self._numbers is None else self._numbers.index_select(0, places)

    def state_dict(self) -> dict[str, Any]:
        """State from which `load_state_dict` goes on."""
        return {"size": self.size, "generator": self.generator.get_state(), "pass": self._pass.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved place in the stream.

        Raises:
            ValueError: It was a stream of another size, or no stream. Nothing has changed then.
        """
        check_form(state, {"size": int, "generator": self.generator.get_state(), "pass": Tensor}, "stream")
        if state["size"] != self.size:
            raise ValueError(f"this is the state of a stream of {state['size']} numbers, here there are {self.size}")
        left = state["pass"]
        check_form(left, torch.empty(left.numel(), dtype=torch.int64), "stream.pass")
        if len(left.unique()) < len(left) or bool(((left < 0) | (left >= self.size)).any()):
            raise ValueError(f"stream.pass: expected numbers in [0, {self.size}), each at most once")
        try:
            self.generator.set_state(state["generator"])
        except RuntimeError as error:
            raise ValueError(f"stream.generator: {error}") from error
        self._pass = left.to(self._device, copy=True)


class BalancedStream:
    """An endless stream of numbers of several groups, each group as often as the others.

    Every group is drawn once per round, rounds in random order; of a group every number once per pass.

    Args:
        groups: `(size,)` int64 of each group.
        seed: Seed of the generators.
    """

    def __init__(self, groups: Sequence[Tensor], seed: int = 0) -> None:
        self._groups = [ShuffledStream(numbers) for numbers in groups]
        self._order = ShuffledStream(len(groups))
        self.seed(seed)

    @property
    def generator(self) -> torch.Generator:
        """Generator for what else is random about instances."""
        return self._order.generator

    def seed(self, seed: int) -> None:
        """Start over from a seed."""
        self._order.seed(seed)
        for number, group in enumerate(self._groups, 1):
            group.seed((seed * (len(self._groups) + 1) + number) % 2**64)

    def draw(self, count: int, passes: float = 0.0) -> Tensor:
        """The next numbers of the stream, `(count,)` int64 on the CPU; the same whenever they are drawn."""
        order = self._order.draw(count)
        drawn = torch.empty(count, dtype=torch.int64, device="cpu")
        for number, group in enumerate(self._groups):
            places = (order == number).nonzero().flatten()
            drawn[places] = group.draw(len(places))
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """State from which `load_state_dict` goes on."""
        return {"order": self._order.state_dict(), "groups": [group.state_dict() for group in self._groups]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved place in the stream.

        Raises:
            ValueError: It was a stream of other groups, or none of groups. Nothing has changed then.
        """
        check_form(state, {"order": dict, "groups": [dict] * len(self._groups)}, "stream")
        order, groups = copy.deepcopy((self._order, self._groups))
        order.load_state_dict(state["order"])
        for group, saved in zip(groups, state["groups"], strict=True):
            group.load_state_dict(saved)
        self._order, self._groups = order, groups


class PhasedStream:
    """Streams that take turns as training goes on, by the pass in which each begins.

    Args:
        phases: The passes, from 0 on, and the stream that is drawn from then until the next one begins.
        seed: Seed of the generators.
    """

    def __init__(self, phases: Sequence[tuple[float, ShuffledStream | BalancedStream]], seed: int = 0) -> None:
        self._begins, self._streams = [begin for begin, _ in phases], [stream for _, stream in phases]
        self.seed(seed)

    @property
    def generator(self) -> torch.Generator:
        """Generator for what else is random about instances."""
        return self._streams[0].generator

    def seed(self, seed: int) -> None:
        """Start over from a seed; what time it is does not change."""
        for number, stream in enumerate(self._streams):
            stream.seed((seed * len(self._streams) + number) % 2**64)

    def draw(self, count: int, passes: float = 0.0) -> Tensor:
        """The next numbers, `(count,)` int64 on the CPU, of the stream whose turn it is after so many passes."""
        return self._streams[bisect.bisect_right(self._begins, passes) - 1].draw(count)

    def state_dict(self) -> dict[str, Any]:
        """State from which `load_state_dict` goes on; the time is not in it."""
        return {"phases": [stream.state_dict() for stream in self._streams]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved place in every stream.

        Raises:
            ValueError: They were other streams, or none that take turns. Nothing has changed then.
        """
        check_form(state, {"phases": [dict] * len(self._streams)}, "stream")
        streams = copy.deepcopy(self._streams)
        for stream, saved in zip(streams, state["phases"], strict=True):
            stream.load_state_dict(saved)
        self._streams = streams


Stream = ShuffledStream | BalancedStream | PhasedStream


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Tensor on a device; the host does not wait for the copy."""
    if device.type == "cuda" and x.is_cpu and torch.version.cuda:
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
