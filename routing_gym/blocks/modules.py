"""Unlike blocks behind the same call, and PASS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from routing_gym.blocks.base import FunctionBlocks
from routing_gym.blocks.converted import allow_small_groups, static_copy
from routing_gym.blocks.grouping import channels_are_last, group, put_rows, take_rows
from routing_gym.blocks.macs import cost_of
from routing_gym.blocks.ownership import OwnedParameter
from routing_gym.blocks.pointwise import subsample_first
from routing_gym.tasks.checking import shape_of_row


class ModuleBlocks(FunctionBlocks):
    """Blocks that are modules of any kind, all taking one shape and giving one shape.

    Batch norm inside a block uses the statistics of the rows that run it; where these are fewer than two values per
    channel it uses its running statistics.

    Args:
        modules: The blocks; `torch.nn.Identity()` is PASS.
        input_shape: Shape of one row's activation, without the batch axis.

    Raises:
        ValueError: No module, or modules whose outputs differ in shape.
    """

    def __init__(self, modules: Iterable[nn.Module], input_shape: Sequence[int]) -> None:
        listed = list(modules) if isinstance(modules, Iterable) else []
        if not isinstance(modules, Iterable) or not all(isinstance(module, nn.Module) for module in listed):
            raise ValueError(f"blocks must be modules (torch.nn.Module), got {modules!r}")
        super().__init__(len(listed))
        self.blocks = nn.ModuleList(listed)
        row = torch.zeros(1, *shape_of_row("input_shape", input_shape))
        known: dict[Any, Any] = {}
        self.macs, shapes = zip(*(cost_of(block, row, known=known) for block in self.blocks), strict=True)
        if len(set(shapes)) > 1:
            raise ValueError(
                f"blocks of one set must give one shape, got {list(shapes)} for the input {tuple(input_shape)}"
            )
        self.output_shape = shapes[0]
        allow_small_groups(subsample_first(self))

    def run(self, x: Tensor, choice: Tensor) -> Tensor:
        """Run block `choice[i]` on row `x[i]`; a block that no row chose is not run."""
        return run_grouped(x, choice, list(self.blocks), self.output_shape)

    def _mix_all(self, x: Tensor, weights: Tensor) -> Tensor:
        """Add the blocks up one by one: side by side they would take k times the memory."""
        total = None
        for block, weight in zip(self.blocks, weights.unbind(1), strict=True):
            y = block(x)
            y = y * weight.view(-1, *[1] * (y.ndim - 1))
            total = y if total is None else total + y
        assert total is not None
        return total

    def _mix(self, x: Tensor, rows: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
        """Add every block's rows to the sum as soon as it has run; a block that no pair names is not run."""
        if not self._runs_every_block:
            used = weights.detach().nonzero().flatten()
            rows, choice, weights = rows[used], choice[used], weights[used]
        groups = group(choice, self.num_blocks)
        own_rows, own_weights = (part[groups.order].split(groups.counts) for part in (rows, weights))
        # Sums over rows are fastest where a row lies in one piece.
        turned = channels_are_last(x) and len(self.output_shape) == 3
        total = None
        for block, own, weight in zip(self.blocks, own_rows, own_weights, strict=True):
            if not len(own):
                continue
            y = block(take_rows(x, own))
            y = y * weight.view(-1, *[1] * (y.ndim - 1))
            y = y.permute(0, 2, 3, 1) if turned else y
            total = y.new_zeros(len(x), *y.shape[1:]) if total is None else total
            total = total.index_add_(0, own, y)
        if total is None:
            return x.new_zeros(len(x), *self.output_shape) + weights.sum()  # of none: 0, with a graph
        return total.permute(0, 3, 1, 2) if turned else total

    def parameters_of(self, choice: int) -> list[OwnedParameter]:
        """Return every parameter of the block."""
        return [OwnedParameter(parameter) for parameter in self.blocks[choice].parameters()]

    def as_modules(self, choice: int) -> list[nn.Module]:
        """Return a copy of the block, nothing where it is PASS."""
        block = self.blocks[choice]
        return [] if isinstance(block, nn.Identity) else [static_copy(block)]

    def keep(self, kept: Sequence[int]) -> None:
        """Keep some of the modules."""
        self.blocks = nn.ModuleList(self.blocks[choice] for choice in kept)


def run_grouped(
    x: Tensor, choice: Tensor, blocks: Sequence[Callable[[Tensor], Tensor]], output_shape: Sequence[int]
) -> Tensor:
    """Run on every row the block it chose, by one call for each block that any row chose.

    Args:
        x: `(B, ...)`, B may be 0.
        choice: `(B,)` int64.
        blocks: The blocks.
        output_shape: Of one row.
    """
    if not len(x):
        return x.new_zeros(0, *output_shape)
    groups = group(choice, len(blocks))
    counts = groups.counts
    most = max(range(len(blocks)), key=counts.__getitem__)
    if counts[most] == len(x):
        return blocks[most](x)  # nothing to move
    pieces = take_rows(x, groups.order).split(counts)
    y = torch.cat([block(piece) for block, piece in zip(blocks, pieces, strict=True) if len(piece)])
    return take_rows(y, groups.inverse)


class WithPass(FunctionBlocks):
    """A set of blocks with one more choice, the last: PASS, which leaves the activation as it is and costs nothing.

    Args:
        blocks: Blocks whose output has the shape of their input.
    """

    def __init__(self, blocks: FunctionBlocks) -> None:
        if not isinstance(blocks, FunctionBlocks):
            raise ValueError(f"PASS joins a set of blocks (FunctionBlocks), got {type(blocks).__name__}")
        super().__init__(blocks.num_blocks + 1)
        self.blocks = blocks
        self.macs = (*blocks.macs, 0.0)

    def run(self, x: Tensor, choice: Tensor) -> Tensor:
        """Run block `choice[i]` on row `x[i]`, copy the rows that pass."""
        running = (choice < self.blocks.num_blocks).nonzero().flatten()
        if len(running) == len(x):
            return self.blocks.run(x, choice)
        return put_rows(x, running, self.blocks.run(x.index_select(0, running), choice.index_select(0, running)))

    def parameters_of(self, choice: int) -> list[OwnedParameter]:
        """Return the block's parameters, none for PASS."""
        return [] if choice == self.num_blocks - 1 else self.blocks.parameters_of(choice)

    def as_modules(self, choice: int) -> list[nn.Module]:
        """Return the block, nothing for PASS."""
        return [] if choice == self.num_blocks - 1 else self.blocks.as_modules(choice)

    def keep(self, kept: Sequence[int]) -> None:
        """Keep some of the blocks, and PASS, which must come last and cannot be all there is."""
        *others, last = kept
        if last != self.blocks.num_blocks or last in others:
            raise ValueError(f"PASS, choice {self.blocks.num_blocks}, stays the last, got {list(kept)} to keep")
        self.blocks = self.blocks.select(others)
