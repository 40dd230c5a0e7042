"""Banks whose blocks run one after the other, with no row moved and no output held for nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from routing_gym.blocks.base import FunctionBlocks, weighed
from routing_gym.blocks.fast.grouping import group
from routing_gym.blocks.fast.rows import channels_are_last, take_rows


class BlockByBlock(FunctionBlocks):
    """Bank that calls `run_block` once for each block that has rows; images keep their layout in memory."""

    output_shape: tuple[int, ...]
    """Shape of one row's output."""

    def run(self, x: Tensor, choice: Tensor) -> Tensor:
        """See `FunctionBlocks.run`; no row moves where all choose one block."""
        if not len(x):
            return x.new_zeros(0, *self.output_shape)
        groups = group(choice, self.num_blocks)
        counts = groups.counts
        most = max(range(self.num_blocks), key=counts.__getitem__)
        if counts[most] == len(x):
            return self.run_block(x, most)
        pieces = take_rows(x, groups.order).split(counts)
        y = torch.cat([self.run_block(piece, number) for number, piece in enumerate(pieces) if len(piece)])
        return take_rows(y, groups.inverse)

    def mix(self, x: Tensor, rows: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
        """See `FunctionBlocks.mix`; every block's rows are added to the sum as soon as it has run."""
        rows, choice, weights = self._used(rows, choice, weights)
        groups = group(choice, self.num_blocks)
        own_rows, own_weights = (part[groups.order].split(groups.counts) for part in (rows, weights))
        # Sums over rows are fastest where a row lies in one piece.
        turned = channels_are_last(x) and len(self.output_shape) == 3
        total = None
        for number, (own, weight) in enumerate(zip(own_rows, own_weights, strict=True)):
            if not len(own):
                continue
            y = weighed(self.run_block(take_rows(x, own), number), weight)
            y = y.permute(0, 2, 3, 1) if turned else y
            total = y.new_zeros(len(x), *y.shape[1:]) if total is None else total
            total = total.index_add_(0, own, y)
        if total is None:
            return x.new_zeros(len(x), *self.output_shape) + weights.sum()  # of none: 0, with a graph
        return total.permute(0, 3, 1, 2) if turned else total

    def mix_all(self, x: Tensor, weights: Tensor) -> Tensor:
        """See `FunctionBlocks.mix_all`; side by side the outputs would take k times the memory."""
        products = (weighed(self.run_block(x, number), weight) for number, weight in enumerate(weights.unbind(1)))
        return sum(products, next(products))
