"""Layers side by side: all at once, one alone, and on some rows, against plain modules in a loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_paths import plain, randomised
from torch import nn

from routing_gym.blocks import (
    PathBlocks,
    PathConv2d,
    PathLinear,
    PathNorm2d,
    PathResidual,
    PathSequential,
    PathSqueezeExcite,
)


def stack(paths, inputs):
    """Every kind of layer, `(inputs, 6, 5)` to `(4,)`."""
    residual = PathSequential(PathConv2d(paths, 6, 6), PathNorm2d(paths, 6), nn.ReLU(), PathConv2d(paths, 6, 6))
    halved = PathSequential(PathConv2d(paths, 6, 8, stride=2), PathNorm2d(paths, 8))
    shortcut = PathSequential(PathConv2d(paths, 6, 8, 1, stride=2))
    return PathSequential(
        PathConv2d(paths, inputs, 6),
        PathNorm2d(paths, 6),
        nn.ReLU(),
        PathSqueezeExcite(paths, 6, 3),
        PathResidual(residual, PathSequential()),
        nn.MaxPool2d(2),
        PathResidual(halved, shortcut),
        nn.Flatten(),
        PathLinear(paths, 8 * 2, 5),
        nn.ReLU(),
        PathLinear(paths, 5, 4),
    )


def blocks_of(paths, inputs=2):
    torch.manual_seed(paths)
    return randomised(PathBlocks(stack(paths, inputs), paths, (inputs, 6, 5)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("tensors", [1, 2, 4])
def test_all_paths_at_once_are_each_path_alone(tensors, training):
    blocks = blocks_of(4).train(training)
    alone = [plain(blocks.layers, path).train(training) for path in range(4)]
    x = torch.randn(3, tensors, 2, 6, 5, requires_grad=True)
    y = blocks.run_each(x)
    # The first tensor goes into the first paths.
    expected = torch.stack([alone[path](x[:, path * tensors // 4]) for path in range(4)], 1)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    parameters = list(blocks.layers.parameters())
    weights = torch.randn(y.shape)
    ours = torch.autograd.grad((y * weights).sum(), [x, *parameters])
    theirs = torch.autograd.grad((expected * weights).sum(), [x, *(p for path in alone for p in path.parameters())])
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
    for number, grad in enumerate(ours[1:]):
        own = torch.stack([theirs[1 + path * len(parameters) + number] for path in range(4)])
        own = own.transpose(1, 2) if own.ndim == 3 else own  # linear layers keep their weights the other way round
        torch.testing.assert_close(grad, own, rtol=1e-3, atol=1e-4)
    if training:
        norm = blocks.layers[1]
        for path in range(4):
            torch.testing.assert_close(norm.running_mean[path], alone[path][1].running_mean)
            torch.testing.assert_close(norm.running_var[path], alone[path][1].running_var)


@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**4), rows=st.integers(0, 5), tensors=st.sampled_from([1, 3]))
def test_some_rows_of_some_paths(seed, rows, tensors):
    blocks = blocks_of(3).eval()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, tensors, 2, 6, 5, generator=generator)
    where = torch.rand(rows, 3, generator=generator) < torch.rand((), generator=generator)
    y = blocks.run_each(x, where)
    choice = torch.randint(3, (rows,), generator=generator)
    chosen = blocks.run(x[:, 0], choice)
    assert y.shape == (rows, 3, 4) and chosen.shape == (rows, 4)
    for row in range(rows):
        for path in range(3):
            own = plain(blocks.layers, path).eval()
            expected = own(x[row, path * tensors // 3].unsqueeze(0))[0] if where[row, path] else torch.zeros(4)
            torch.testing.assert_close(y[row, path], expected, rtol=1e-4, atol=1e-5)
            if choice[row] == path:
                torch.testing.assert_close(chosen[row], own(x[row, 0].unsqueeze(0))[0], rtol=1e-4, atol=1e-5)


def test_statistics_are_those_of_the_rows_that_run_a_path():
    blocks = blocks_of(2).train()
    norm = blocks.layers[1]
    before = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.randn(4, 2, 2, 6, 5)
    where = torch.tensor([[True, False], [False, False], [True, False], [True, False]])
    own = plain(blocks.layers, 0).train()
    expected = own(x[[0, 2, 3], 0])
    torch.testing.assert_close(blocks.run_each(x, where)[[0, 2, 3], 0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_mean[0], own[1].running_mean)
    assert torch.equal(norm.running_mean[1], before[0][1]) and torch.equal(norm.running_var[1], before[1][1])


def test_a_single_number_per_channel_has_no_variance():
    norm = PathNorm2d(2, 3).train()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    before = norm.running_mean.clone()
    x = torch.randn(1, 3, 1, 1)
    expected = (x.flatten() - before[1]) / (norm.running_var[1] + 1e-5).sqrt()
    torch.testing.assert_close(norm(x, 1).flatten(), expected)
    assert torch.equal(norm.running_mean, before)


def test_paths_nobody_asks_for_are_not_run():
    blocks = blocks_of(3).eval()
    ran = []
    blocks.layers[0].register_forward_hook(lambda module, inputs, output: ran.append((inputs[1], len(inputs[0]))))
    where = torch.tensor([[True, False, True], [True, False, False]])
    blocks.run_each(torch.randn(2, 3, 2, 6, 5), where)
    assert ran == [(0, 2), (2, 1)]


def test_what_a_path_owns_and_costs():
    blocks = blocks_of(3)
    for path in range(3):
        owned = torch.cat([part.value.detach().flatten() for part in blocks.parameters_of(path)])
        own = torch.cat([p.detach().flatten() for p in plain(blocks.layers, path).parameters()])
        assert torch.equal(owned.sort().values, own.sort().values)
    # 2 to 6 channels on 30 pixels, excitation, the residual, 6 to 8 on 2 of them with the shortcut, and the ends.
    conv = 30 * 9 * (2 * 6 + 2 * 6 * 6)
    halved = 2 * 1 * (9 * 6 * 8 + 6 * 8)
    assert blocks.macs == (conv + 2 * 6 * 3 + halved + 16 * 5 + 5 * 4,) * 3
