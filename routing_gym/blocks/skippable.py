"""Bank of the choice to run or skip a residual block."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from routing_gym.blocks.base import FunctionBlocks, OwnedParameter
from routing_gym.blocks.converted import allow_small_groups, static_copy, subsample_first
from routing_gym.blocks.fast.rows import put_rows, put_rows_, take_rows
from routing_gym.blocks.macs import cost_of
from routing_gym.blocks.modules import ModuleBlocks
from routing_gym.ranks import ALONE, Ranks
from routing_gym.tasks.checking import shape_of_row

CHOICES = ("skip", "run")

AT_ONCE = 32
"""Rows that run at once on a CPU while nothing is learned: what they compute stays in its caches."""


class ResidualBlock(nn.Module):
    """relu(residual(x) + shortcut(x)) (He et al. 2016); `torch.nn.Identity()` is the shortcut that keeps the shape."""

    def __init__(self, residual: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.residual, self.shortcut = residual, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Outputs `(B, C, H, W)`."""
        return self.with_shortcut(x, self.shortcut(x))

    def with_shortcut(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """Outputs of the block from x and the output of its shortcut."""
        y = self.residual(x) + shortcut
        return y.relu() if y.requires_grad else y.relu_()


class SkippableBlock(FunctionBlocks):
    """Two choices, to skip a residual block (0) or to run it (1): (1 − v) shortcut(x) + v F(x).

    Source: Wang et al., "CoDiNet: Path Distribution Modeling with Consistency and Diversity for Dynamic Routing", Eqs.
    2, 7 and 13. F is the whole block, its own shortcut and ReLU included. Where a block changes the shape the shortcut
    does so for those that skip, too, so that its cost belongs to no choice.

    The residual runs only on rows that run or mix, and its batch norm has the statistics of just these while training,
    that of the shortcut those of all rows. `input_shape` is `(C, H, W)` of one row.
    """

    runs_on_no_rows = True
    ranks: Ranks = ALONE
    """Processes that train together: all of them run the block, if on no rows, see `share_statistics`."""

    def __init__(self, block: ResidualBlock, input_shape: Sequence[int]) -> None:
        if not isinstance(block, ResidualBlock):
            raise ValueError(f"a block that can be skipped is a ResidualBlock, got {type(block).__name__}")
        super().__init__(len(CHOICES))
        self.block, self.input_shape = block, shape_of_row("input_shape", input_shape)
        row = torch.zeros(1, *self.input_shape)
        self.shared_macs, _ = cost_of(block.shortcut, row)
        macs, self.output_shape = cost_of(block, row)
        self.macs = (0.0, macs - self.shared_macs)
        allow_small_groups(subsample_first(self))

    def run_block(self, x: Tensor, number: int) -> Tensor:
        """Outputs `(r, C, H, W)` of the shortcut or the block."""
        return self.block(x) if number else self.block.shortcut(x)

    def run(self, x: Tensor, choice: Tensor) -> Tensor:
        """See `FunctionBlocks.run`; the shortcut is one for all rows."""
        running = choice.nonzero().flatten()
        if len(running) == len(x) > 0:
            return self.block(x)
        shortcut = self.block.shortcut(x)
        if not (len(running) or self._meets_others):
            return shortcut
        if self.training or torch.is_grad_enabled():
            return put_rows(shortcut, running, self._ran(x, shortcut, running))
        # Nothing is learned and statistics are fixed: rows can be run a few at a time.
        result = shortcut.clone() if shortcut is x else shortcut
        for piece in running.split(AT_ONCE) if x.device.type == "cpu" else (running,):
            put_rows_(result, piece, self._ran(x, shortcut, piece))
        return result

    @property
    def _meets_others(self) -> bool:
        """Whether other processes wait for this one, in the block's batch norms."""
        return self.training and self.ranks.count > 1

    def _ran(self, x: Tensor, shortcut: Tensor, rows: Tensor) -> Tensor:
        own = take_rows(x, rows)
        return self.block.with_shortcut(own, own if shortcut is x else take_rows(shortcut, rows))

    def mix(self, x: Tensor, rows: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
        """See `FunctionBlocks.mix`."""
        weights = weights.new_zeros(len(x), len(CHOICES)).index_put((rows, choice), weights, accumulate=True)
        if self._runs_every_block:
            return self.mix_all(x, weights)
        if not weights.requires_grad and bool((weights.amax(1) == 1).all() & (weights.sum(1) == 1).all()):
            return self.run(x, weights[:, 1].long())
        running = weights[:, 1].detach().nonzero().flatten()
        shortcut = self.block.shortcut(x)
        mixed = weights[:, 0].view(-1, 1, 1, 1) * shortcut
        if not (len(running) or self._meets_others):
            return mixed
        ran = weights[:, 1].index_select(0, running).view(-1, 1, 1, 1) * self._ran(x, shortcut, running)
        return put_rows(mixed, running, take_rows(mixed, running) + ran)

    def mixes_all(self, weights: Tensor) -> bool:
        """On a GPU weights with a gradient are soft, and the host need not wait to know that none of them is 0."""
        return (not weights.is_cpu and weights.requires_grad) or super().mixes_all(weights)

    def mix_all(self, x: Tensor, weights: Tensor) -> Tensor:
        """See `FunctionBlocks.mix_all`."""
        skipping, running = weights.view(-1, len(CHOICES), 1, 1, 1).unbind(1)
        shortcut = self.block.shortcut(x)
        return skipping * shortcut + running * self.block.with_shortcut(x, shortcut)

    def parameters_of(self, choice: int) -> list[OwnedParameter]:
        """Parameters of the residual for those that run it; the shortcut belongs to no choice."""
        return [OwnedParameter(parameter) for parameter in self.block.residual.parameters()] if choice else []

    def as_modules(self, choice: int) -> list[nn.Module]:
        """Copy of the block or its shortcut, nothing for an identity."""
        chosen = self.block if choice else self.block.shortcut
        return [] if isinstance(chosen, nn.Identity) else [static_copy(chosen)]

    def select(self, kept: Sequence[int]) -> ModuleBlocks | SkippableBlock:  # type: ignore[override]
        """Copy; of one choice alone, a bank of one block. What is neither one choice nor both in order is refused."""
        if list(kept) not in ([0], [1], [0, 1]):
            raise ValueError(f"of a block that is skipped (0) or run (1) [0], [1] or [0, 1] are kept, got {list(kept)}")
        if len(kept) == len(CHOICES):
            return copy.deepcopy(self)
        return one_choice(copy.deepcopy(self.block), CHOICES[kept[0]], self.input_shape)


def one_choice(block: ResidualBlock, choice: str, input_shape: Sequence[int]) -> ModuleBlocks:
    """Bank of one block: a residual block that all rows run, or its shortcut."""
    return ModuleBlocks([block if choice == CHOICES[1] else block.shortcut], input_shape)
