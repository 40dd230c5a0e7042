"""k linear blocks of one shape as one stacked parameter, executed in one grouped product."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks.base import FunctionBlocks, OwnedParameter
from routing_gym.blocks.grouping import Groups, group, only_choice

GROUPED_DTYPES = (torch.float32, torch.bfloat16)
ALIGNMENT_BYTES = 16


class LinearBlocks(FunctionBlocks):
    """k linear layers `x @ weight[c] + bias[c]`, each optionally followed by a ReLU.

    Args:
        num_blocks: k.
        in_features: Width of the input.
        out_features: Width of the output.
        relu: Apply a ReLU to the output: it is part of the block, so that PASS leaves it out.

    Attributes:
        weight: `(k, in_features, out_features)`.
        bias: `(k, out_features)`.
    """

    def __init__(self, num_blocks: int, in_features: int, out_features: int, *, relu: bool = False) -> None:
        super().__init__(num_blocks)
        if in_features < 1 or out_features < 1:
            raise ValueError(f"linear blocks need at least one feature each way, got {in_features} -> {out_features}")
        self.in_features, self.out_features, self.relu = in_features, out_features, relu
        self.macs = (float(in_features * out_features),) * num_blocks
        self.weight = nn.Parameter(torch.empty(num_blocks, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(num_blocks, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every block as `torch.nn.Linear` draws a layer."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def run(self, x: Tensor, choice: Tensor) -> Tensor:
        """Run block `choice[i]` on row `x[i]`: `(B, in_features)` to `(B, out_features)`."""
        only = only_choice(choice)
        if only is not None:
            y = functional.linear(x, self.weight[only].t(), self.bias[only])
        else:
            groups = group(choice, self.num_blocks)
            y = self._products(x.index_select(0, groups.order), groups)
            y = (y + self.bias.index_select(0, groups.block)).index_select(0, groups.inverse)
        return functional.relu(y) if self.relu else y

    def _products(self, x: Tensor, groups: Groups) -> Tensor:
        """Multiply each run of sorted rows by its block's weight."""
        if x.dtype not in GROUPED_DTYPES or not len(x):
            # grouped_mm refuses zero rows and float64: one product per block.
            pieces = x.split(groups.counts.tolist())
            return torch.cat([piece @ weight for piece, weight in zip(pieces, self.weight.unbind(0), strict=True)])
        ends = groups.counts.cumsum(0).to(torch.int32)
        # grouped_mm wants rows that start at multiples of 16 bytes.
        step = ALIGNMENT_BYTES // x.element_size()
        pad_in, pad_out = -self.in_features % step, -self.out_features % step
        weight: Tensor = self.weight
        if pad_in or pad_out:
            x, weight = functional.pad(x, (0, pad_in)), functional.pad(weight, (0, pad_out, 0, pad_in))
        y = functional.grouped_mm(x, weight, offs=ends)
        return y[:, : self.out_features] if pad_out else y

    def parameters_of(self, choice: int) -> list[OwnedParameter]:
        """Return the block's slices of the stacked weight and bias."""
        return [OwnedParameter(self.weight, choice), OwnedParameter(self.bias, choice)]

    def extra_repr(self) -> str:
        """Describe the blocks in the module's printout."""
        return f"{self.num_blocks} x ({self.in_features} -> {self.out_features}), relu={self.relu}"
