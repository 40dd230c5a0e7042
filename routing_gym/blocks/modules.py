"""Banks of unlike blocks, and of blocks with PASS."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from routing_gym.blocks.base import FunctionBlocks, OwnedParameter
from routing_gym.blocks.converted import allow_small_groups, static_copy, subsample_first
from routing_gym.blocks.fast.rows import BlockByBlock, put_rows
from routing_gym.blocks.macs import cost_of
from routing_gym.tasks.checking import shape_of_row


class ModuleBlocks(BlockByBlock):
    """Bank of modules of any kind, all taking `input_shape`, that of one row, and giving one shape.

    `torch.nn.Identity()` is PASS. Batch norm inside a block uses the statistics of the rows that run it, see
    `SmallGroupNorm`.

    Raises:
        ValueError: No module, or modules whose outputs differ in shape.
    """

    def __init__(self, modules: Iterable[nn.Module], input_shape: Sequence[int]) -> None:
        listed = [*modules] if isinstance(modules, Iterable) else [None]
        if not all(isinstance(module, nn.Module) for module in listed):
            raise ValueError(f"blocks must be modules (torch.nn.Module), got {modules!r}")
        super().__init__(len(listed))
        self.blocks = nn.ModuleList(listed)
        row = torch.zeros(1, *shape_of_row("input_shape", input_shape))
        known: dict[Any, Any] = {}
        self.macs, shapes = zip(*(cost_of(block, row, known=known) for block in self.blocks), strict=True)
        if len(set(shapes)) > 1:
            raise ValueError(f"blocks of one set must give one shape, got {[*shapes]} for inputs {tuple(input_shape)}")
        self.output_shape = shapes[0]
        allow_small_groups(subsample_first(self))

    def run_block(self, x: Tensor, number: int) -> Tensor:
        """Outputs `(r, ...)` of one module."""
        return self.blocks[number](x)

    @property
    def mergeable(self) -> bool:
        """Whether all blocks have the same parameters, by name and shape, no buffers, of batch norms say, and no RNN.

        PyTorch cannot run an LSTM with the parameters of every row.
        """
        if any(isinstance(part, nn.RNNBase) for part in self.blocks.modules()):
            return False
        forms = [{name: value.shape for name, value in block.named_parameters()} for block in self.blocks]
        return bool(forms[0]) and all(form == forms[0] for form in forms) and not [*self.blocks.buffers()]

    def merge(self, x: Tensor, weights: Tensor) -> Tensor:
        """See `FunctionBlocks.merge`."""
        named = [dict(block.named_parameters()) for block in self.blocks]
        own = {name: torch.einsum("bk,k...->b...", weights, torch.stack([p[name] for p in named])) for name in named[0]}

        def run(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
            output: Tensor = functional_call(self.blocks[0], parameters, (row.unsqueeze(0),))
            return output.squeeze(0)

        return vmap(run, randomness="different")(own, x)

    def parameters_of(self, choice: int) -> list[OwnedParameter]:
        """Every parameter of the block."""
        return [OwnedParameter(parameter) for parameter in self.blocks[choice].parameters()]

    def as_modules(self, choice: int) -> list[nn.Module]:
        """Copy of the block, nothing where it is PASS."""
        block = self.blocks[choice]
        return [] if isinstance(block, nn.Identity) else [static_copy(block)]

    def keep(self, kept: Sequence[int]) -> None:
        """Keep some of the modules."""
        self.blocks = nn.ModuleList(self.blocks[choice] for choice in kept)


class WithPass(FunctionBlocks):
    """Bank of blocks that keep the shape of their input, with one more choice, the last: PASS, which costs nothing."""

    def __init__(self, blocks: FunctionBlocks) -> None:
        if not isinstance(blocks, FunctionBlocks):
            raise ValueError(f"PASS joins a set of blocks (FunctionBlocks), got {type(blocks).__name__}")
        super().__init__(blocks.num_blocks + 1)
        self.blocks = blocks
        self.macs = (*blocks.macs, 0.0)

    def run_block(self, x: Tensor, number: int) -> Tensor:
        """Outputs `(r, ...)` of one block, x itself of PASS."""
        return x if number == self.num_blocks - 1 else self.blocks.run_block(x, number)

    def run(self, x: Tensor, choice: Tensor) -> Tensor:
        """See `FunctionBlocks.run`; rows that do not pass run as their bank runs them."""
        running = (choice < self.blocks.num_blocks).nonzero().flatten()
        if len(running) == len(x):
            return self.blocks.run(x, choice)
        return put_rows(x, running, self.blocks.run(x.index_select(0, running), choice.index_select(0, running)))

    def parameters_of(self, choice: int) -> list[OwnedParameter]:
        """The block's parameters, none of PASS."""
        return [] if choice == self.num_blocks - 1 else self.blocks.parameters_of(choice)

    def as_modules(self, choice: int) -> list[nn.Module]:
        """Copy of the block, nothing for PASS."""
        return [] if choice == self.num_blocks - 1 else self.blocks.as_modules(choice)

    def keep(self, kept: Sequence[int]) -> None:
        """Keep some of the blocks, and PASS, which must come last and cannot be all there is."""
        *others, last = kept
        if last != self.blocks.num_blocks or last in others:
            raise ValueError(f"PASS, choice {self.blocks.num_blocks}, stays the last, got {list(kept)} to keep")
        self.blocks = self.blocks.select(others)
