"""Unlike experts on images, each by hand, and what a bank of them runs."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from routing_gym.blocks import ModuleBlocks, count_macs, every_block_runs
from routing_gym.blocks.experts import SqueezeExcite, double_expert, group_norm, image_bank, single_expert

DOUBLE = ("conv3", "conv5", "conv7", "conv1x7", "max-pool", "average-pool", "identity")
SINGLE = ("conv3", "conv5", "conv7", "conv1x7", "max-pool", "squeeze-excite")
C, M, H, W = 6, 4, 5, 7


def weights(module):
    """The number of weights of convolutions and linear layers, without what normalises."""
    parts = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def bank(form="double"):
    torch.manual_seed(0)
    experts = [double_expert(name, C, M) if form == "double" else single_expert(name, C) for name in
               (DOUBLE if form == "double" else SINGLE)]  # fmt: skip
    return image_bank(experts, (C, H, W)).eval()


def one_pair_at_a_time(blocks, x, indices, share):
    """Σ_j share[i, j] · block_{indices[i, j]}(x_i)."""
    rows = []
    for i in range(len(x)):
        pairs = zip(indices[i].tolist(), share[i], strict=True)
        rows.append(sum(w * blocks.blocks[c](x[i : i + 1].contiguous()) for c, w in pairs))
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("name", "kernels"), [("conv3", 9), ("conv5", 25), ("conv7", 49), ("conv1x7", None), ("max-pool", 0)]
)
def test_weights_and_costs(name, kernels):
    for expert, expected in (
        (double_expert(name, C, M), 2 * C * C * 7 if kernels is None else 2 * C * M * kernels),
        (single_expert(name, C), 2 * C * C * 7 if kernels is None else C * C * kernels),
    ):
        assert weights(expert) == expected
        assert count_macs(expert, torch.zeros(1, C, H, W)) == expected * H * W


def test_every_convolution_of_a_double_expert_is_normalised_and_rectified():
    torch.manual_seed(0)
    for name in ("conv5", "conv1x7"):
        expert, x = double_expert(name, C, M), torch.randn(3, C, H, W)
        first, second = (stage[0] for stage in expert)
        h = functional.conv2d(x, first.weight, padding="same")
        h = functional.group_norm(h, 1).clamp(min=0)
        h = functional.group_norm(functional.conv2d(h, second.weight, padding="same"), 1).clamp(min=0)
        torch.testing.assert_close(expert(x), h)


def test_a_single_expert_ends_in_nothing():
    torch.manual_seed(0)
    x = torch.randn(3, C, H, W)
    expert = single_expert("conv3", C)
    torch.testing.assert_close(expert(x), functional.conv2d(x, expert.weight, padding=1))
    expert = single_expert("conv1x7", C)
    h = functional.conv2d(x, expert[0].weight, padding=(0, 3))
    h = ((h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()).relu()
    torch.testing.assert_close(expert(x), functional.conv2d(h, expert[3].weight, padding=(3, 0)))


def test_pooling_by_hand():
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 1, 2, 2)
    assert double_expert("average-pool", 1, 1)(x).flatten().tolist() == [3.0] * 4  # of the pixels there are
    assert double_expert("max-pool", 1, 1)(-x).flatten().tolist() == [-1.0] * 4
    assert double_expert("identity", 1, 1)(x) is x


def test_squeeze_excite_by_hand():
    torch.manual_seed(0)
    module, x = SqueezeExcite(32), torch.randn(2, 32, 3, 3)
    reduce, expand = module.scale[0], module.scale[2]
    assert reduce.weight.shape == (2, 32)
    s = (x.mean((2, 3)) @ reduce.weight.t() + reduce.bias).clamp(min=0) @ expand.weight.t() + expand.bias
    torch.testing.assert_close(module(x), x * s.sigmoid()[:, :, None, None])
    assert count_macs(module, x[:1]) == 2 * 32 * 2


@pytest.mark.parametrize(("channels", "groups"), [(48, 3), (32, 2), (24, 1), (16, 1), (8, 1), (100, 5), (1, 1)])
def test_groups_hold_sixteen_channels_or_the_next_number_that_fits(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_unknown_experts_are_refused():
    with pytest.raises(ValueError, match="unknown expert 'conv4' .*known are conv3, conv5, conv7, conv1x7, max-pool"):
        double_expert("conv4", 4, 4)
    with pytest.raises(ValueError, match="unknown expert 'conv'.*known are .*squeeze-excite, max-pool"):
        single_expert("conv", 4)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("form", ["double", "single"])
@pytest.mark.parametrize("action", ["integers", "sparse", "twice the same", "some weights", "all weights"])
def test_mixtures_equal_one_pair_at_a_time(form, action, last):
    blocks = bank(form)
    x, k = torch.randn(5, C, H, W), blocks.num_blocks
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    dense = torch.rand(5, k) + 0.1
    if action == "some weights":
        dense = dense * (torch.rand(5, k) < 0.4)
    indices = torch.arange(k).expand(5, k)
    if action in ("integers", "sparse"):
        indices = torch.stack([torch.randperm(k)[: 1 if action == "integers" else 3] for _ in range(5)])
    elif action == "twice the same":
        indices = torch.tensor([[2, 2, 0]] * 5)
    share = torch.ones(5, 1) if action == "integers" else dense[:, : indices.shape[1]].clone()
    share.requires_grad_()
    if action == "integers":
        given = indices[:, 0]
    else:
        given = share if "weights" in action else (indices, share)
    fast, slow = blocks(x, given), one_pair_at_a_time(blocks, x, indices, share)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    assert fast.is_contiguous(memory_format=torch.channels_last) or not last
    direction, tensors = torch.randn_like(slow), [x, *blocks.parameters(), share]
    ours, reference = (torch.autograd.grad((y * direction).sum(), tensors, allow_unused=True) for y in (fast, slow))
    for number, (a, b) in enumerate(zip(ours, reference, strict=True)):
        if number == len(tensors) - 1:  # an expert that was not run says nothing of its weight; integers have none
            b = None if a is None else b * (share != 0)
        a, b = (torch.zeros(()) if g is None or not bool(g.any()) else g for g in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("action", ["integers", "sparse", "dense"])
def test_an_expert_nobody_chose_is_not_run_and_has_no_gradient_at_all(action):
    blocks = bank()
    rows = {}
    for number, block in enumerate(blocks.blocks):
        block.register_forward_pre_hook(lambda _, inputs, number=number: rows.update({number: len(inputs[0])}))
    indices = torch.tensor([[0, 3], [3, 6], [3, 4]])
    share = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.3, 0.7]])
    given = {
        "integers": indices[:, 0],
        "sparse": (indices, share),
        "dense": torch.zeros(3, 7).scatter(1, indices, share),
    }[action]
    blocks(torch.randn(3, C, H, W), given).sum().backward()
    # Expert 6 is named with the weight 0 only.
    assert rows == ({0: 1, 3: 2} if action == "integers" else {0: 1, 3: 3, 4: 1})
    for number, block in enumerate(blocks.blocks):
        for parameter in block.parameters():
            assert (parameter.grad is not None) == (number in rows)


def test_dense_backward_runs_every_expert_on_every_row():
    blocks = bank().train()
    x, share = torch.randn(3, C, H, W), torch.tensor([[1.0, 0.0]] * 3, requires_grad=True)
    pair = torch.tensor([[0, 5]] * 3), share
    with every_block_runs():
        (ours,) = torch.autograd.grad(blocks(x, pair).square().sum(), share)
    (reference,) = torch.autograd.grad(one_pair_at_a_time(blocks, x, *pair).square().sum(), share)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    assert bool((ours[:, 1] != 0).all())


def test_no_rows_and_no_weights():
    blocks = bank()
    assert blocks(torch.zeros(0, C, H, W), torch.zeros(0, 7)).shape == (0, C, H, W)
    y = blocks(torch.randn(2, C, H, W), torch.zeros(2, 7, requires_grad=True))
    assert y.shape == (2, C, H, W) and not bool(y.any())
    y.sum().backward()


def test_blocks_that_change_the_shape_mix_images_of_any_layout():
    torch.manual_seed(0)
    blocks = ModuleBlocks([nn.Conv2d(3, 2, 3), nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh())], (3, 6, 6))
    flat = ModuleBlocks([nn.Flatten(), nn.Sequential(nn.Flatten(), nn.ReLU())], (3, 6, 6))
    x = torch.randn(4, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    pair = torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]]), torch.rand(4, 2)
    for each in (blocks, flat):
        torch.testing.assert_close(each(x, pair), one_pair_at_a_time(each, x, *pair), rtol=1e-5, atol=1e-5)
