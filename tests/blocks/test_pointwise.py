"""1x1 convolutions with a stride: subsampled first, with the same numbers, and never run as they stand."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from routing_gym.blocks import PathConv2d, conv2d, subsample_first

FORMS = {
    "stride": st.sampled_from([1, 2, 3, (2, 1), (1, 3)]),
    "padding": st.sampled_from([0, 1, (0, 1), "valid"]),
    "kernel": st.sampled_from([1, (1, 3), 3]),
    "groups": st.sampled_from([1, 2]),
    "bias": st.booleans(),
    "size": st.tuples(st.integers(3, 8), st.integers(3, 8)),
}


def strided_pointwise(module):
    """The 1x1 convolutions of a module that have a stride."""
    return [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and max(part.stride) > 1 and not any(part.padding)
    ]


@settings(max_examples=40, deadline=None)
@given(**FORMS)
def test_any_convolution_gives_the_same_numbers(stride, padding, kernel, groups, bias, size):
    torch.manual_seed(0)
    x = torch.randn(2, 4, *size).contiguous(memory_format=torch.channels_last)
    plain = nn.Conv2d(4, 6, kernel, stride, padding, groups=groups, bias=bias)
    made = subsample_first(subsample_first(copy.deepcopy(plain)))
    results = []
    for conv in (plain, made, lambda x: conv2d(x, plain.weight, plain.bias, stride, padding, 1, groups)):
        images = x.clone().requires_grad_()
        y = conv(images)
        results.append((y, *torch.autograd.grad(y.square().sum(), images)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])
    assert made(x).is_contiguous(memory_format=torch.channels_last)
    assert list(made.state_dict()) == list(plain.state_dict())
    assert not strided_pointwise(made) or padding not in (0, "valid")


def test_what_was_changed_is_copied_and_saved():
    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    module = nn.Sequential(nn.Conv2d(3, 4, 1, 2), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1, 2)))
    x = torch.randn(2, 3, 8, 8)
    expected = module(x)
    torch.testing.assert_close(copy.deepcopy(subsample_first(module))(x), expected)
    own = Own(3, 4, 1, 2)
    expected = own(x)
    torch.testing.assert_close(subsample_first(own)(x), expected)
    file = io.BytesIO()
    torch.save(subsample_first(nn.Sequential(nn.Conv2d(3, 4, 1, 2))), file)
    file.seek(0)
    assert torch.load(file, weights_only=False)(x).shape == (2, 4, 4, 4)


@pytest.mark.parametrize("path", [None, 1])
def test_paths_subsample_first_too(path):
    layer = PathConv2d(2, 3, 4, 1, stride=2)
    x = torch.randn(2, 3 if path == 1 else 6, 5, 6)
    weight, bias = (p.flatten(0, 1) if path is None else p[path] for p in (layer.weight, layer.bias))
    torch.testing.assert_close(layer(x, path), functional.conv2d(x, weight, bias, 2, groups=x.shape[1] // 3))
