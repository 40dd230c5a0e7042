"""Counting multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def probe(module: nn.Module, run: Callable[[], Any]) -> Any:
    """Call `run` with a module in eval mode and without a graph, and put it back as it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            return run()
    finally:
        for part, mode in modes.items():
            part.training = mode


def count_macs(module: nn.Module, *inputs: Any) -> float:
    """Count the multiply-accumulates of a module's matrix products and convolutions.

    Args:
        module: Any module; it is run once in eval mode.
        inputs: Its inputs, tensors with a batch of one row: the count is of what is given.

    Returns:
        Multiply-accumulates, half of PyTorch's own FLOP count. Element-wise work and normalisation count nothing.
    """
    with FlopCounterMode(display=False) as counter:
        probe(module, lambda: module(*inputs))
    return counter.get_total_flops() / 2
