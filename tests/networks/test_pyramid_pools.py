"""Pooling that is faster where no one trains, against PyTorch's own."""

import pytest
import torch
from torch import fx
from torch.nn import functional

from routing_gym.networks import static_pyramid
from routing_gym.networks.pyramid import average_pool, max_pool

SHAPES = [(2, 3, 8, 8), (1, 1, 2, 2), (3, 2, 7, 5), (2, 4, 2, 9), (0, 3, 4, 4)]
POOLS = [(max_pool, functional.max_pool2d, 0.0), (average_pool, functional.avg_pool2d, 1e-6)]


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("pool", "reference", "tolerance"), POOLS, ids=["max", "average"])
def test_pools_are_those_of_pytorch(pool, reference, tolerance, shape, form):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(memory_format=form)
    for kept in (x, x.clone().requires_grad_()):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                found = pool(kept)
            expected = reference(x, 2)
            assert found.shape == expected.shape and found.requires_grad == (grad and kept.requires_grad)
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(x, kept)  # nothing is written into


@pytest.mark.parametrize(("pool", "reference", "tolerance"), POOLS, ids=["max", "average"])
def test_gradients_are_those_of_pytorch(pool, reference, tolerance):
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    found, expected = (torch.autograd.grad((one(x, ) if one is pool else one(x, 2)).mul(weights).sum(), x)[0]
                       for one in (pool, reference))  # fmt: skip
    assert torch.equal(found, expected)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("pool", "reference", "tolerance"), POOLS, ids=["max", "average"])
def test_what_is_no_number_stays_where_it_is(pool, reference, tolerance, place, bad):
    x = torch.randn(1, 2, 4, 4)
    x[0, 1, 2 + place // 2, place % 2] = bad
    torch.testing.assert_close(pool(x), reference(x, 2), equal_nan=True, rtol=tolerance, atol=tolerance)
    assert int(pool(x).isfinite().sum()) == (8 if (bad, pool) == (-torch.inf, max_pool) else 7)


def test_they_are_one_step_each_of_a_traced_network():
    """A graph must not freeze whether someone trains."""
    torch.manual_seed(0)
    network = static_pyramid((3, 16, 16), 4, columns=2, width=2).eval()
    traced = fx.symbolic_trace(network)
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert called.count(max_pool) == 6 and called.count(average_pool) == 3
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(traced(images), network(images))
    results = []
    for module in (network, traced):
        x = images.clone().requires_grad_()
        module(x).square().sum().backward()
        results.append(x.grad)
    assert torch.equal(*results)


@pytest.mark.long
def test_a_network_with_them_is_exported(tmp_path):
    torch.manual_seed(0)
    network = static_pyramid((3, 16, 16), 4, columns=2, width=2).eval()
    images = torch.randn(3, 3, 16, 16)
    sizes = {0: torch.export.Dim("rows", min=1, max=64)}
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=(sizes,)), tmp_path / "pyramid.pt2")
    loaded = torch.export.load(tmp_path / "pyramid.pt2").module()
    for count in (3, 5):
        x = torch.randn(count, 3, 16, 16)
        torch.testing.assert_close(loaded(x), network(x), rtol=1e-5, atol=1e-5)
