"""The order in which instances are drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from routing_gym.forms import check_form
from routing_gym.tasks.checking import whole_number


class ShuffledStream:
    """An endless stream of numbers: every one once per pass, each pass in a new random order.

    The order comes from a CPU generator, because seeded CUDA generators give other streams on other GPU models.

    Args:
        numbers: `(size,)` int64, or how many: then they are 0 … size − 1.
        seed: Seed of the generator.
    """

    def __init__(self, numbers: int | Tensor, seed: int = 0) -> None:
        self._numbers = numbers if isinstance(numbers, Tensor) else None
        size = len(numbers) if isinstance(numbers, Tensor) else numbers
        self.size = whole_number("the size of a stream", size, least=None)
        if self.size < 1:
            raise ValueError(f"a stream needs at least one number to draw from, got size {self.size}")
        self.generator = torch.Generator()
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start over from a seed."""
        self.generator.manual_seed(whole_number("seed", seed, least=None))
        self._pass = torch.empty(0, dtype=torch.int64)

    def draw(self, count: int) -> Tensor:
        """The next numbers of the stream, `(count,)` int64 on the CPU."""
        pieces, missing = [], count
        while missing > 0:
            if not len(self._pass):
                self._pass = torch.randperm(self.size, generator=self.generator)
            pieces.append(self._pass[:missing])
            self._pass = self._pass[missing:]
            missing -= len(pieces[-1])
        places = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)
        return places if self._numbers is None else self._numbers[places]

    def state_dict(self) -> dict[str, Any]:
        """State from which `load_state_dict` goes on."""
        return {"size": self.size, "generator": self.generator.get_state(), "pass": self._pass.clone()}

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
        self._pass = left.clone()
