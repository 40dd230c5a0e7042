"""What every set of function blocks can do."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Self

import torch
from torch import Tensor, nn

from routing_gym.blocks.grouping import SortedRows, plain
from routing_gym.blocks.ownership import OwnedParameter, PartlyUsed

Sparse = tuple[Tensor, Tensor]
"""`(indices, weights)`, both `(B, K)`: the K blocks each row uses (int64) and their weights (floating point)."""


_EVERY_BLOCK_RUNS = ContextVar("every_block_runs", default=False)


@contextmanager
def every_block_runs(on: bool = True) -> Iterator[None]:
    """Let blocks that train run where they weigh 0, too, so that every weight has a gradient (straight-through).

    Of dense weights every block runs on every row, of a sparse pair those it names. Holds for one thread.

    Args:
        on: False for the default, to run only what has a weight.
    """
    before = _EVERY_BLOCK_RUNS.set(on)
    try:
        yield
    finally:
        _EVERY_BLOCK_RUNS.reset(before)


class FunctionBlocks(PartlyUsed, ABC):
    """k function blocks behind one call.

    `blocks(x, choice)` runs one block per row, `blocks(x, weights)` mixes blocks; in both only the rows and blocks
    that are used are run. Subclasses implement `run` and `parameters_of`; to be pruned and extracted `as_modules` and
    `keep` too.

    Attributes:
        num_blocks: How many blocks there are, k.
        macs: Multiply-accumulates of one row through each block, k numbers.
        shared_macs: Those that every row costs besides, whatever it chooses.
    """

    num_blocks: int
    macs: tuple[float, ...]
    shared_macs: float = 0.0

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        if isinstance(num_blocks, bool) or not isinstance(num_blocks, int) or num_blocks < 1:
            raise ValueError(f"num_blocks must be an integer of at least 1, got {num_blocks!r}")
        self.num_blocks = num_blocks

    @abstractmethod
    def run(self, x: Tensor, choice: Tensor) -> Tensor:
        """Run block `choice[i]` on row `x[i]`.

        Args:
            x: `(B, ...)`, B may be 0.
            choice: `(B,)` int64 in `[0, num_blocks)`; not checked here, the network has done so.

        Returns:
            `(B, ...)`, rows in the order of `x`.
        """

    def run_sorted(self, x: Tensor | SortedRows, choice: Tensor) -> Tensor | SortedRows:
        """Do what `run` does, and leave rows in the order of the blocks where that is natural."""
        return self.run(plain(x), choice)

    @abstractmethod
    def parameters_of(self, choice: int) -> list[OwnedParameter]:
        """Return the parameters that only block `choice` uses."""

    @property
    def _runs_every_block(self) -> bool:
        return self.training and _EVERY_BLOCK_RUNS.get()

    @property
    def num_parts(self) -> int:
        """How many blocks there are."""
        return self.num_blocks

    def parts(self) -> list[list[OwnedParameter]]:
        """Return the parameters of every block."""
        return [self.parameters_of(choice) for choice in range(self.num_blocks)]

    def as_modules(self, choice: int) -> list[nn.Module]:
        """Return a block as plain modules to be run in turn, with parameters of their own; none for PASS."""
        raise self._not_deployable("as_modules")

    def keep(self, kept: Sequence[int]) -> None:
        """Forget all blocks but these; `select` has copied the set and counts anew."""
        raise self._not_deployable("keep")

    def _not_deployable(self, missing: str) -> ValueError:
        return ValueError(f"{type(self).__name__} can be neither pruned nor extracted: implement {missing}()")

    def select(self, kept: Sequence[int]) -> Self:
        """Return a copy that holds only some of the blocks.

        Args:
            kept: Their numbers, each once; they are numbered anew in this order.
        """
        if not kept:
            raise ValueError("a set of blocks holds at least one, got none to keep")
        smaller = copy.deepcopy(self)
        smaller.num_blocks, smaller.macs = len(kept), tuple(self.macs[choice] for choice in kept)
        smaller.keep(kept)
        return smaller

    def forward(self, x: Tensor, action: Tensor | Sparse) -> Tensor:
        """Apply the chosen blocks.

        Args:
            x: `(B, ...)` activations.
            action: `(B,)` integers, one block per row; or `(B, k)` floating-point weights; or a pair
                `(indices, weights)` of `(B, K)` tensors.

        Returns:
            `(B, ...)`: the block's output, or the sum over blocks of weight times output (zero where a row has no
            weight at all).
        """
        if isinstance(action, tuple):
            indices, weights = action
            rows = torch.arange(len(x), device=x.device).repeat_interleave(indices.shape[1])
            return self._mix(x, rows, indices.flatten(), weights.flatten())
        if not action.is_floating_point():
            return self.run(x, action)
        if self._runs_every_block or bool(action.detach().all()):
            return self._mix_all(x, action)
        rows = torch.arange(len(x), device=x.device).repeat_interleave(self.num_blocks)
        choice = torch.arange(self.num_blocks, device=x.device).repeat(len(x))
        return self._mix(x, rows, choice, action.flatten())

    def run_all(self, x: Tensor) -> Tensor:
        """Run every block on every row: `(B, ...)` to `(B, k, ...)`."""
        every = torch.arange(self.num_blocks, device=x.device)
        return torch.stack([self.run(x, number.expand(len(x))) for number in every], 1)

    def _mix_all(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sum `weights[:, c] * block[c](x)` over all blocks, each run on all rows."""
        return torch.einsum("bk...,bk->b...", self.run_all(x), weights)

    def _mix(self, x: Tensor, rows: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
        """Sum `weights[p] * block[choice[p]](x[rows[p]])` over the pairs p of each row."""
        if not self._runs_every_block:
            used = weights.detach().nonzero().flatten()
            rows, choice, weights = rows[used], choice[used], weights[used]
        y = self.run_sorted(x.index_select(0, rows), choice)
        if isinstance(y, SortedRows):
            # They are added up wherever they stand.
            rows, weights, y = rows.index_select(0, y.back), weights.index_select(0, y.back), y.rows
        y = y * weights.view(-1, *[1] * (y.ndim - 1))
        return y.new_zeros(len(x), *y.shape[1:]).index_add(0, rows, y)
