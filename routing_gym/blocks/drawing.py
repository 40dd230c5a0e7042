"""Drawing first weights from a seed, whatever else goes on in the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def first_weights(seed: int) -> Iterator[None]:
    """Let PyTorch's global generator of the CPU draw from a seed meanwhile, and go on as before afterwards.

    Modules draw their first weights from that generator, of which a process has one. Threads that come here wait for
    one another. One that draws elsewhere in the meantime, by `torch.rand` or by building a module, disturbs the weights
    drawn here. The seed 0 will do where the weights are replaced.
    """
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
