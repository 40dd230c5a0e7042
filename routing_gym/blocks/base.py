"""Banks of function blocks: `run`, `run_each`, `mix` and `mix_all` define what they compute.

Also who owns which parameters, which of them a batch has used, and drawing the first weights.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks.macs import ONE_AT_A_TIME
from routing_gym.tasks.checking import seed_number, whole_number

Sparse = tuple[Tensor, Tensor]
"""`(indices, weights)`, both `(B, K)`: the K blocks each row uses (int64) and their weights (floating point)."""

_EVERY_BLOCK_RUNS = ContextVar("every_block_runs", default=False)
_BLOCKS_MERGE = ContextVar("blocks_merge", default=False)


@contextmanager
def every_block_runs(on: bool = True) -> Iterator[None]:
    """Let blocks that train run where they weigh 0, too, so that every weight has a gradient (straight-through).

    Of dense weights every block runs on every row, of a sparse pair those it names. Holds for one thread; False brings
    back the default, to run only what has a weight.
    """
    before = _EVERY_BLOCK_RUNS.set(on)
    try:
        yield
    finally:
        _EVERY_BLOCK_RUNS.reset(before)


@contextmanager
def blocks_merge(on: bool = True) -> Iterator[None]:
    """Let weights mix the blocks' parameters instead of their outputs, see `FunctionBlocks.merge`; for one thread."""
    before = _BLOCKS_MERGE.set(on)
    try:
        yield
    finally:
        _BLOCKS_MERGE.reset(before)


@contextmanager
def first_weights(seed: int) -> Iterator[None]:
    """Let PyTorch's global generator of the CPU draw from a seed meanwhile, and go on as before afterwards.

    Modules draw their first weights from that generator, of which a process has one. Threads that come here wait for
    one another; one that draws elsewhere in the meantime disturbs the weights drawn here. The seed 0 will do where the
    weights are replaced.
    """
    with ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_number("seed", seed))
        yield


@dataclasses.dataclass(frozen=True)
class OwnedParameter:
    """A parameter that belongs to one choice as a whole, or, of a stack, its slice `index` along the first axis."""

    parameter: nn.Parameter
    index: int | None = None

    @property
    def value(self) -> Tensor:
        """The parameter, or its slice."""
        return self.parameter if self.index is None else self.parameter[self.index]

    @property
    def grad(self) -> Tensor | None:
        """Gradient of `value`, a view into the parameter's, or None where there is none."""
        grad = self.parameter.grad
        return grad if grad is None or self.index is None else grad[self.index]


class PartlyUsed(nn.Module):
    """Module in parts, of which a batch may use some only: the choices of a network, the readouts of its tasks.

    Whoever runs it notes what has been used; the optimisers of `routing_gym.blocks` then leave the rest alone. What
    belongs to two such modules, a network and one of its banks, has been used where both of them have been.
    """

    runs_all = False
    """Whether everything runs on every row, so that no value says what is computed; for what is to be exported."""
    used: Tensor | None = None
    """Parts used `(parts,)` bool, with a graph, since the optimiser's last step; None: nobody has noted anything."""

    @property
    def num_parts(self) -> int:
        """Number of parts; by default the slices of its parameters along their first axis."""
        return len(next(self.parameters()))

    def parts(self) -> Sequence[Sequence[OwnedParameter]]:
        """Parameters of every part; one may belong to several, and is used if any of them is."""
        stacks = list(self.parameters())
        return [[OwnedParameter(stack, part) for stack in stacks] for part in range(self.num_parts)]

    def note_use(self, part: Tensor, first: int = 0) -> None:
        """Note that parts have been used; without a graph nothing is learned, and nothing noted.

        They are numbers counted from part `first`, int64 of any shape; or bool, for so many parts from there on.
        """
        if self.runs_all or not torch.is_grad_enabled():
            return
        if self.used is None:
            self.used = torch.zeros(self.num_parts, dtype=torch.bool, device=part.device)
        if part.dtype == torch.bool:
            self.used[first : first + len(part)] |= part
        else:
            self.used[first:].index_fill_(0, part.flatten(), True)


class Embedding(PartlyUsed):
    """Vectors `(n, d)`, or numbers `(n,)`, that are looked up; those that a batch does not ask for stay as they are."""

    def __init__(self, first: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(first)

    def forward(self, part: Tensor) -> Tensor:
        """Vectors `(B, d)` of parts, `(B,)` int64."""
        self.note_use(part)
        return self.weight.index_select(0, part)


class FunctionBlocks(PartlyUsed, ABC):
    """Bank of k function blocks, of which only those rows and blocks run that are used.

    `blocks(x, choice)` runs one block per row, `blocks(x, weights)` mixes blocks. A subclass implements `run_block` and
    `parameters_of`; to be pruned and extracted `as_modules` and `keep` too. What it overrides besides computes the same
    faster, by `routing_gym.blocks.fast`.
    """

    num_blocks: int
    macs: tuple[float, ...]
    """Multiply-accumulates of one row through each block, k numbers."""
    shared_macs: float = 0.0
    """Those of every row besides, whatever it chooses."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.num_blocks = whole_number("num_blocks", num_blocks)

    @abstractmethod
    def run_block(self, x: Tensor, number: int) -> Tensor:
        """Outputs `(r, ...)` of one block for inputs `(r, ...)`."""

    @abstractmethod
    def parameters_of(self, choice: int) -> list[OwnedParameter]:
        """Parameters that only block `choice` uses."""

    def run(self, x: Tensor, choice: Tensor) -> Tensor:
        """Outputs `(B, ...)` of block `choice[i]` for every row `x[i]`; B may be 0.

        Choices are `(B,)` int64 in `[0, num_blocks)`, which is not checked here: the network has done so.
        """
        if not len(x):
            return self.run_block(x, 0)  # for the shape of the output
        order = choice.argsort(stable=True)
        pieces = x[order].split(choice.bincount(minlength=self.num_blocks).tolist())
        y = torch.cat([self.run_block(piece, number) for number, piece in enumerate(pieces) if len(piece)])
        return y[order.argsort()]

    def run_each(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        """Outputs `(B, k, ...)` of every block for inputs of its own, zeros where `where`, `(B, k)` bool, is False.

        Inputs are `(B, g, ...)`, g = k or a divisor of it: the first one is for the first k / g blocks.
        """
        where = torch.ones(len(x), self.num_blocks, dtype=torch.bool, device=x.device) if where is None else where
        rows, choice = where.nonzero(as_tuple=True)
        y = self.run(x[rows, choice * x.shape[1] // self.num_blocks], choice)
        return y.new_zeros(*where.shape, *y.shape[1:]).index_put((rows, choice), y)

    def mix(self, x: Tensor, rows: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
        """Sums `(B, ...)` of `weights[p] * block[choice[p]](x[rows[p]])` over the pairs p of each row, each `(P,)`."""
        rows, choice, weights = self.weighty(x, rows, choice, weights)
        y = weighed(self.run(x.index_select(0, rows), choice), weights)
        return y.new_zeros(len(x), *y.shape[1:]).index_add(0, rows, y)

    def mix_all(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sums `(B, ...)` of `weights[:, c] * block[c](x)` over all blocks, each run on all rows."""
        outputs = torch.stack([self.run_block(x, number) for number in range(self.num_blocks)], 1)
        return torch.einsum("bk...,bk->b...", outputs, weights)

    def forward(self, x: Tensor, action: Tensor | Sparse) -> Tensor:
        """Outputs `(B, ...)` of the chosen blocks, or sums of weight times output, zero where a row has no weight.

        Args:
            x: Activations `(B, ...)`.
            action: Integers `(B,)`, one block per row; or floating-point weights `(B, k)`; or a `Sparse` pair.
        """
        if isinstance(action, Tensor):
            if not action.is_floating_point():
                if not self.runs_all:
                    return self.run(x, action)
                action = functional.one_hot(action, self.num_blocks).to(x.dtype)
            elif _BLOCKS_MERGE.get():
                return self.merge(x, action)
            if self._runs_every_block or self.mixes_all(action):
                return self.mix_all(x, action)
            choice, weights = torch.arange(self.num_blocks, device=x.device).expand_as(action), action
        else:
            choice, weights = action
            if _BLOCKS_MERGE.get():
                return self.merge(x, weights.new_zeros(len(x), self.num_blocks).scatter_add(1, choice, weights))
        rows = torch.arange(len(x), device=x.device).unsqueeze(1).expand_as(choice)
        return self.mix(x, rows.flatten(), choice.flatten(), weights.flatten())

    @property
    def mergeable(self) -> bool:
        """Whether blocks can be merged, see `merge`: where all have the same parameters, by name and shape."""
        return False

    def merge(self, x: Tensor, weights: Tensor) -> Tensor:
        """Outputs `(B, ...)` of a block for each row whose parameters are sums of all blocks' by weights `(B, k)`."""
        raise ValueError(f"blocks of {type(self).__name__} cannot be merged: implement merge() and mergeable")

    def mixes_all(self, weights: Tensor) -> bool:
        """Whether all blocks are to run for weights `(B, k)`: where none of them is 0."""
        return bool(weights.detach().all())

    @property
    def _runs_every_block(self) -> bool:
        return self.runs_all or (self.training and _EVERY_BLOCK_RUNS.get())

    def weighty(self, x: Tensor, rows: Tensor, choice: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs that have a weight, of all, `(P,)` each.

        On a GPU the few blocks that a `Sparse` pair names run in any case, so that the host need not wait.
        """
        few = not weights.is_cpu and len(choice) < self.num_blocks * len(x)
        if few or self._runs_every_block or (weights.is_cpu and bool(weights.detach().all())):
            return rows, choice, weights
        used = weights.detach().nonzero().flatten()
        return rows.index_select(0, used), choice.index_select(0, used), weights.index_select(0, used)

    @property
    def num_parts(self) -> int:
        """Number of blocks, k."""
        return self.num_blocks

    def parts(self) -> list[list[OwnedParameter]]:
        """Parameters of every block."""
        return [self.parameters_of(choice) for choice in range(self.num_blocks)]

    def as_modules(self, choice: int) -> list[nn.Module]:
        """Copy of a block as modules to be run in turn; none for PASS."""
        raise self._not_deployable("as_modules")

    def keep(self, kept: Sequence[int]) -> None:
        """Keep only these blocks, numbered anew; called by `select`, on a copy."""
        raise self._not_deployable("keep")

    def _not_deployable(self, missing: str) -> ValueError:
        return ValueError(f"{type(self).__name__} can be neither pruned nor extracted: implement {missing}()")

    def select(self, kept: Sequence[int]) -> Self:
        """Copy with some of the blocks: `kept` has their numbers, each once, in their new order."""
        if not kept:
            raise ValueError("a set of blocks holds at least one, got none to keep")
        smaller = copy.deepcopy(self)
        smaller.num_blocks, smaller.macs = len(kept), tuple(self.macs[choice] for choice in kept)
        smaller.keep(kept)
        return smaller


def weighed(y: Tensor, weights: Tensor) -> Tensor:
    """Rows `(P, ...)` times their weights `(P,)`."""
    return y * weights.view(-1, *[1] * (y.ndim - 1))
