"""`torch.compile` of a route through a network: one graph, and what it computes uncompiled."""

import contextlib

import pytest
import torch

from routing_gym.networks import RoutedMLP

pytestmark = pytest.mark.long


@pytest.mark.parametrize("recurrent", [False, True], ids=["layered", "with PASS"])
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_a_route_is_one_graph(precision, recurrent):
    """Nothing of it needs the host: `fullgraph=True` would raise at the first break."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    network = RoutedMLP((1, 2, 3), 5, 3, width=8, recurrent=recurrent)
    dtype = torch.float64 if precision == "float64" else torch.float32
    network, images, task = network.to(dtype), torch.randn(20, 1, 2, 3, dtype=dtype), torch.arange(20) % 3
    compiled = torch.compile(network.follow, fullgraph=True, backend="aot_eager")
    tolerance = {"float32": 1e-5, "float64": 1e-10, "bfloat16": 2e-2}[precision]
    for _ in range(2):  # other routes, the same graph
        plan = torch.stack([torch.randint(decision.n, (20,)) for decision in network.decisions], 1)
        found = []
        for follow in (network.follow, compiled):
            lower = precision == "bfloat16"
            with torch.autocast("cpu", torch.bfloat16) if lower else contextlib.nullcontext():
                after = follow(network.start(images, task), plan)
            (exit,) = after.exits
            logits = (
                exit.logits
                if exit.rows is None
                else torch.empty_like(exit.logits).index_copy(0, exit.rows, exit.logits)
            )
            grads = torch.autograd.grad(logits.square().sum(), list(network.parameters()))
            found.append([logits, after.macs, *grads])
        for eager, traced in zip(*found, strict=True):
            torch.testing.assert_close(traced, eager, rtol=tolerance, atol=tolerance)
