"""The number format in which the network runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = ("float32", "bfloat16")


@contextmanager
def forward_pass(precision: str, device: torch.device, graph: bool) -> Iterator[None]:
    """Let a network run; nothing that is computed from its logits belongs in here, and no backward pass.

    Args:
        precision: `"float32"`; or `"bfloat16"`, in which products and convolutions are computed, by
            `torch.autocast`: parameters and their gradients stay float32.
        device: Where.
        graph: Whether to keep the graph.
    """
    with torch.set_grad_enabled(graph):
        if precision == "float32":
            yield
        else:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                yield
