"""Processes that train one network together, each on its share of every batch (`torch.distributed`)."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    # Its functions keep, as their default argument, the group there is when they are imported, and optimisers import
    # them: a group that is left would stay, and its threads, running while Python ends, abort the process now and then.
    import torch.distributed.nn  # noqa: F401

LONGEST_WAIT = datetime.timedelta(minutes=10)
"""How long a rank waits for another before it gives up."""


class RankLostError(RuntimeError):
    """Another process has ended, or does not answer: nothing can go on."""


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The processes of PyTorch's default group, or this one alone.

    A whole batch is that of rank 0, then that of rank 1, and so on; all ranks must call the same methods in the same
    order.

    Attributes:
        number: That of this process.
        count: How many there are.
    """

    number: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Those of the default group, where there is one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def own(self, whole: Tensor) -> Tensor:
        """This rank's rows of a whole batch `(count * r, ...)`."""
        return whole if self.count == 1 else whole.chunk(self.count)[self.number]

    def gathered(self, own: Tensor, dim: int = 0) -> Tensor:
        """The whole batch of what every rank has a part of, along an axis; without a graph."""
        if self.count == 1:
            return own
        sent = own.detach().contiguous()
        sent = sent.to(torch.uint8) if own.dtype == torch.bool else sent
        parts = [torch.empty_like(sent) for _ in range(self.count)]
        _asked(dist.all_gather, parts, sent)
        return torch.cat(parts, dim).to(own.dtype)

    def total(self, own: Tensor) -> Tensor:
        """Sum over ranks, with a graph: its gradient, which is that of every rank's loss, is summed, too."""
        return own if self.count == 1 else _Total.apply(own)

    def joined(self, own: Tensor) -> Tensor:
        """The whole batch of what every rank has a part of, as many rows each, with a graph."""
        if self.count == 1:
            return own
        parts = [torch.zeros_like(own)] * self.count
        parts[self.number] = own
        return self.total(torch.cat(parts))

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over ranks, in one exchange."""
        if self.count > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            _asked(dist.all_reduce, flat)
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def objects(self, own: Any) -> list[Any]:
        """What every rank has, plain values and tensors on the CPU, in their order."""
        found: list[Any] = [None] * self.count
        _asked(dist.all_gather_object, found, own)
        return found


ALONE = Ranks()
"""This process alone."""


class _Total(torch.autograd.Function):
    """A sum over ranks, of values and of gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        _asked(dist.all_reduce, total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        _asked(dist.all_reduce, grad)
        return grad


def _asked(exchange: Callable[..., Any], *what: Any) -> None:
    try:
        exchange(*what)
    except RuntimeError as error:  # of the library that moves them
        raise RankLostError(f"another rank has ended, or does not answer ({error})") from error
