"""Rows run in batches of a few sizes, against the same rows run as they are."""

import copy

import pytest
import torch
from torch import nn

from routing_gym.blocks import in_few_sizes
from routing_gym.blocks.fast.rows import LARGEST
from routing_gym.networks.pyramid import make_column

IMAGE = (3, 8, 8)


class Layers(nn.Module):
    """Two convolutions with batch norm, of two inputs; keeps how many rows it was asked for."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(1, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        self.sizes = []

    def forward(self, x, y, rows=None):
        self.sizes.append(len(x))
        both = (self.first(x) + self.second(y))[:rows]
        return self.norm(both), both.mean((2, 3))


def inputs(count):
    numbers = torch.Generator().manual_seed(count)
    return torch.randn(count, 2, 4, 4, generator=numbers), torch.randn(count, 1, 4, 4, generator=numbers)


@torch.no_grad()
def test_any_number_of_rows_in_eval_mode():
    module = Layers()
    module(*inputs(32))  # running statistics that do something
    module.eval()
    asked = set()
    for count in range(301):
        expected = module(*inputs(count))
        module.sizes.clear()
        found = in_few_sizes(module, inputs(count), whole=False)
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert sum(module.sizes) <= max(1.5 * count, 1) and max(module.sizes) <= LARGEST
        assert len(module.sizes) == max(-(-count // LARGEST), 1)
        asked |= set(module.sizes)
    assert sorted(asked) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]


def test_whole_batches_are_filled_up_too():
    module = Layers().eval()
    for count in (5, LARGEST + 1, 200):
        in_few_sizes(module, inputs(count), whole=True)
    assert module.sizes == [6, 192, 256]


@pytest.mark.parametrize("count", [2, 5, 13, 64, 150, 200])
def test_training_takes_statistics_and_gradients_of_the_rows_alone(count):
    """Zeros that fill a batch up are no instances: batch norm must not see them, nor may a gradient come from them."""
    plain, filled = Layers(), Layers()
    results = []
    for module, run in ((plain, lambda x: plain(*x)), (filled, lambda x: in_few_sizes(filled, x, whole=True))):
        x = [part.requires_grad_() for part in inputs(count)]
        outputs = run(x)
        sum((output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum() for output in outputs).backward()
        results.append(
            [*outputs, *(part.grad for part in x), *(p.grad for p in module.parameters()), *module.buffers()]
        )
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert int(plain.norm.num_batches_tracked) == int(filled.norm.num_batches_tracked) == 1


@pytest.mark.parametrize("training", [False, True])
def test_a_column_of_the_pyramid(training):
    torch.manual_seed(0)
    column = make_column(IMAGE, 2, 0, 3)
    for count in (1, 2, 7, 70, 131):
        scales = [torch.randn(count, 3, 8 // 2**i, 8 // 2**i) for i in range(4)]
        plain, filled = copy.deepcopy(column).train(training), copy.deepcopy(column).train(training)
        if training and count == 1:
            continue  # the coarsest scale would have one value per channel, see `allow_small_groups`
        expected, found = plain(*scales), in_few_sizes(filled, scales, whole=training)
        torch.testing.assert_close([*found, *filled.buffers()], [*expected, *plain.buffers()], rtol=1e-4, atol=1e-5)
