"""A block that rows run or skip, against (1 - v) shortcut(x) + v F(x) worked out one row at a time."""

import copy
import functools

import pytest
import torch
from torch import nn

from routing_gym.blocks import ModuleBlocks, ResidualBlock, SkippableBlock, every_block_runs
from routing_gym.networks.resnets import Subsampled

INPUTS, H, W = 4, 5, 6
SHORTCUTS = ["identity", "subsampling", "projection"]
SHAPES = {"identity": (4, 5, 6), "subsampling": (8, 3, 3), "projection": (8, 3, 3)}


def a_block(shortcut, size=(H, W), dtype=torch.float32):
    """A block whose batch norms do something, also by their running statistics; always the same."""
    return copy.deepcopy(made(shortcut, size)).to(dtype)


@functools.cache
def made(shortcut, size):
    torch.manual_seed(3)
    outputs, stride = SHAPES[shortcut][0], 1 if shortcut == "identity" else 2
    residual = nn.Sequential(
        nn.Conv2d(INPUTS, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )
    past = {
        "identity": lambda: nn.Identity(),
        "subsampling": lambda: Subsampled(outputs),
        "projection": lambda: nn.Sequential(nn.Conv2d(INPUTS, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(8)),
    }[shortcut]()
    blocks = SkippableBlock(ResidualBlock(residual, past), (INPUTS, *size))
    for part in blocks.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
    return blocks


def normalized(norm, x, train):
    """Batch norm as a formula, its running statistics left alone."""
    mean, variance = norm.running_mean, norm.running_var
    if train:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    shape = (1, -1, 1, 1)
    x = (x - mean.view(shape)) / (variance.view(shape) + norm.eps).sqrt()
    return x * norm.weight.view(shape) + norm.bias.view(shape)


def convolved(conv, x):
    return nn.functional.conv2d(x, conv.weight, stride=conv.stride, padding=conv.padding)


def shortcut_by_hand(blocks, x, train):
    past = blocks.block.shortcut
    if isinstance(past, nn.Sequential):
        return normalized(past[1], convolved(past[0], x[:, :, ::2, ::2]), train)
    if isinstance(past, nn.Identity):
        return x
    y = x.new_zeros(len(x), 2 * x.shape[1], (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2)
    y[:, : x.shape[1]] = x[:, :, ::2, ::2]
    return y


def residual_by_hand(blocks, x, train):
    first, norm, _, second, last = blocks.block.residual
    return normalized(last, convolved(second, normalized(norm, convolved(first, x), train).clamp(min=0)), train)


def by_hand(blocks, x, weights, everyone=False):
    """Row by row; while training, batch norm sees all the rows that run, and the shortcut's sees every row."""
    train = blocks.training
    if not len(x):
        return x.new_zeros(0, *blocks.output_shape)
    runs = [i for i in range(len(x)) if everyone or float(weights[i, 1].detach()) != 0]
    if train:
        past = shortcut_by_hand(blocks, x, True)
        residual = residual_by_hand(blocks, x[runs], True) if runs else None
    rows = []
    for i in range(len(x)):
        own = x[i : i + 1]
        shortcut = past[i : i + 1] if train else shortcut_by_hand(blocks, own, False)
        row = weights[i, 0] * shortcut
        if i in runs:
            ran = residual[runs.index(i)].unsqueeze(0) if train else residual_by_hand(blocks, own, False)
            row = row + weights[i, 1] * (ran + shortcut).clamp(min=0)
        rows.append(row)
    return torch.cat(rows)


def images(rows, dtype=torch.float32, last=True):
    x = torch.randn(rows, INPUTS, H, W, generator=torch.Generator().manual_seed(rows), dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def decided(rows, who, dtype=torch.float32):
    """`(rows, 2)` weights of 0 and 1."""
    run = {
        "all": torch.ones(rows),
        "none": torch.zeros(rows),
        "some": (torch.arange(rows) % 3 == 1).float(),
    }[who].to(dtype)
    return torch.stack([1 - run, run], 1)


def in_form(weights, form):
    """What a decision of 0 and 1 looks like as an action."""
    choice = weights[:, 1].long()
    if form == "integers":
        return choice
    if form == "weights":
        return weights
    if form == "one pair":
        return choice.unsqueeze(1), torch.ones(len(weights), 1, dtype=weights.dtype)
    return torch.tensor([[1, 0]]).expand(len(weights), 2), weights.flip(1)


def rows_that_run(blocks):
    """How many rows reach the residual, call by call."""
    counts = []
    blocks.block.residual.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    return counts


@pytest.mark.long
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("who", ["all", "none", "some"])
@pytest.mark.parametrize("form", ["integers", "weights", "one pair", "two pairs"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_hard_decisions_equal_one_row_at_a_time(shortcut, form, who, train):
    for rows in (0, 1, 2, 7):
        blocks = a_block(shortcut).train(train)
        x, weights = images(rows), decided(rows, who)
        expected = by_hand(blocks, x, weights).detach()
        before = x.clone()
        for graph in (True, False):
            with torch.set_grad_enabled(graph):
                y = a_block(shortcut).train(train)(x, in_form(weights, form))
            assert y.shape == (rows, *SHAPES[shortcut]) and torch.equal(x, before)
            torch.testing.assert_close(y.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_mixtures_equal_one_row_at_a_time(shortcut, train):
    numbers = torch.Generator().manual_seed(5)
    for rows in (0, 1, 2, 7):
        v = torch.rand(rows, generator=numbers)
        several = torch.rand(rows, 2, generator=numbers) - 0.3  # need not be shares
        alone = several * torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]])[torch.arange(rows) % 4]
        for weights in (torch.stack([1 - v, v], 1), several, alone):
            expected = by_hand(a_block(shortcut).train(train), images(rows), weights)
            for action in (weights, in_form(weights, "two pairs")):
                y = a_block(shortcut).train(train)(images(rows), action)
                torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_pairs_that_name_a_choice_twice_or_not_at_all():
    blocks = a_block("subsampling").eval()
    pair = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 0]]), torch.tensor([[0.2, 0.3, 0.4], [0.5, 0.5, 0], [0, 0, 1]])
    dense = torch.tensor([[0.4, 0.5], [1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(blocks(images(3), pair), by_hand(blocks, images(3), dense), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_weights_with_a_gradient_agree_with_hard_decisions_where_they_are_0_and_1(shortcut, train):
    """Eq. 7 is Eq. 2 there; and the weights' own gradient goes to what has run."""
    weights = decided(6, "some").requires_grad_()
    soft = a_block(shortcut).train(train)(images(6), weights)
    hard = a_block(shortcut).train(train)(images(6), weights[:, 1].long())
    torch.testing.assert_close(soft, hard, rtol=1e-5, atol=1e-6)


def test_a_block_is_rectified_behind_the_sum_and_skipping_is_not():
    blocks = a_block("identity").eval()
    x = -images(4).abs()
    y = blocks(x, torch.tensor([1, 0, 1, 0]))
    assert bool((y[[0, 2]] >= 0).all()) and torch.equal(y[[1, 3]], x[[1, 3]])


def test_costs_by_hand():
    residual = 9 * 4 * 4 * 30 + 9 * 4 * 4 * 30
    assert a_block("identity").macs == (0, residual)
    residual = 9 * 4 * 8 * 9 + 9 * 8 * 8 * 9
    assert a_block("subsampling").macs == (0, residual)
    projected = a_block("projection")
    # Whoever skips passes the shortcut, too.
    assert projected.macs == (0, residual) and projected.shared_macs == 4 * 8 * 9
    assert a_block("identity").shared_macs == a_block("subsampling").shared_macs == 0


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("form", ["integers", "weights", "one pair", "two pairs", "with a gradient"])
def test_rows_that_skip_never_reach_the_residual(form, train):
    blocks = a_block("projection").train(train)
    counts = rows_that_run(blocks)
    for who, expected in (("some", [2]), ("all", [6]), ("none", [])):
        counts.clear()
        weights = decided(6, who)
        action = weights.requires_grad_() if form == "with a gradient" else in_form(weights, form)
        blocks.zero_grad()
        blocks(images(6), action).square().sum().backward()
        assert counts == expected
        for parameter in blocks.block.residual.parameters():
            assert (parameter.grad is not None) == (who != "none")
        assert all(parameter.grad is not None for parameter in blocks.block.shortcut.parameters())


def test_many_rows_are_run_in_pieces_while_nothing_is_learned():
    for shortcut in SHORTCUTS:
        blocks = a_block(shortcut).eval()
        x, choice = images(80), (torch.arange(80) % 8 != 3).long()
        before, counts = x.clone(), rows_that_run(blocks)
        whole = blocks(x, choice)
        assert counts == [70]
        counts.clear()
        with torch.no_grad():
            pieces = blocks(x, choice)
            hard = blocks(x, (choice.unsqueeze(1), torch.ones(80, 1)))
        assert sum(counts) == 140 and len(counts) > 2
        torch.testing.assert_close(pieces, whole.detach(), rtol=1e-5, atol=1e-5)
        assert torch.equal(pieces, hard) and torch.equal(x, before)
        assert pieces.is_contiguous(memory_format=torch.channels_last)
        with torch.no_grad():  # statistics of a batch are those of all its rows
            counts.clear()
            blocks.train()(x, choice)
        assert counts == [70]


def test_dense_backward_runs_every_row_while_training():
    blocks = a_block("subsampling").train()
    for action in ("weights", "two pairs"):
        counts = rows_that_run(blocks)
        weights = decided(5, "some").requires_grad_()
        with every_block_runs():
            y = blocks(images(5), in_form(weights, action))
        slow = by_hand(blocks, images(5), weights, everyone=True)
        direction = torch.randn_like(slow)
        ours, reference = (torch.autograd.grad((z * direction).sum(), weights)[0] for z in (y, slow))
        assert counts == [5] and bool((ours != 0).all())
        torch.testing.assert_close(y, slow, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-4)
    counts.clear()
    with every_block_runs():
        blocks.eval()(images(5), decided(5, "some"))
    assert counts == [2]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("action", ["integers", "soft", "some zeros", "pairs"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_gradients_are_those_of_the_loop(shortcut, action, train):
    blocks = a_block(shortcut, dtype=torch.float64).train(train)
    x = images(5, torch.float64).requires_grad_()
    weights = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    if action == "some zeros":
        weights = weights * torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0], [1, 1]])
    if action == "integers":
        weights = decided(5, "some", torch.float64)
    weights.requires_grad_()
    given = {"integers": weights[:, 1].long(), "pairs": in_form(weights, "two pairs")}.get(action, weights)
    fast, slow = blocks(x, given), by_hand(blocks, x, weights)
    torch.testing.assert_close(fast, slow)
    tensors = [x, *blocks.parameters(), *([] if action == "integers" else [weights])]
    direction = torch.randn_like(slow)
    ours, reference = (torch.autograd.grad((y * direction).sum(), tensors) for y in (fast, slow))
    torch.testing.assert_close(ours, reference)


def test_gradients_by_finite_differences():
    blocks = a_block("subsampling", dtype=torch.float64).eval()
    x = images(2, torch.float64)[:, :, :3, :3].requires_grad_()
    weights = torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weights: blocks(x, weights), (x, weights))


@pytest.mark.parametrize("form", ["integers", "one pair", "soft"])
def test_running_statistics_are_those_of_the_rows_that_run(form):
    blocks = a_block("projection").train()
    weights = torch.tensor([[1.0, 0.0], [0.4, 0.6], [0.0, 1.0], [1.0, 0.0]])
    if form != "soft":
        weights = weights.round()
    x, ran = images(4), [1, 2]
    residual, past = blocks.block.residual, blocks.block.shortcut
    expected = []
    for norm, seen in ((residual[1], convolved(residual[0], x[ran])), (past[1], convolved(past[0], x[:, :, ::2, ::2]))):
        expected.append((norm, 0.9 * norm.running_mean + 0.1 * seen.mean((0, 2, 3))))
        expected.append((norm, 0.9 * norm.running_var + 0.1 * seen.var((0, 2, 3))))
    blocks(x, weights if form == "soft" else in_form(weights, form))
    for (norm, value), name in zip(expected, ["running_mean", "running_var"] * 2, strict=True):
        torch.testing.assert_close(getattr(norm, name), value)
    assert int(residual[1].num_batches_tracked) == 1
    blocks(x, torch.zeros(4, dtype=torch.int64))
    assert int(residual[1].num_batches_tracked) == 1 and int(past[1].num_batches_tracked) == 2


def test_one_pixel_of_one_row_is_normalised_by_the_running_statistics():
    blocks = a_block("identity", size=(1, 1)).train()
    x = torch.randn(3, INPUTS, 1, 1)
    y = blocks(x, torch.tensor([0, 1, 0]))
    expected = by_hand(a_block("identity", size=(1, 1)).eval(), x, decided(3, "some"))
    torch.testing.assert_close(y, expected)
    assert int(blocks.block.residual[1].num_batches_tracked) == 0


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_channels_stay_last(shortcut, graph):
    blocks = a_block(shortcut).eval().to(memory_format=torch.channels_last)
    soft = torch.full((6, 2), 0.5)
    some = soft * torch.tensor([[1, 0], [1, 1]]).repeat(3, 1)
    hard = [in_form(decided(6, who), "integers") for who in ("all", "some", "none")]
    for action in (*hard, soft, some):
        with torch.set_grad_enabled(graph):
            y = blocks(images(6), action)
        assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
        torch.testing.assert_close(a_block(shortcut).eval()(images(6, last=False), action), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_under_autocast(shortcut, train):
    weights = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    for action in (torch.tensor([1, 0, 1, 0, 1]), weights[[0, 2, 4, 2]], weights):
        for dtype in (torch.float32, torch.bfloat16):  # what comes from a convolution is of the latter
            for graph in (True, False):
                blocks, x = a_block(shortcut).train(train), images(len(action))
                expected = a_block(shortcut).train(train)(x, action).detach()
                with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(graph):
                    y = blocks(x.to(dtype), action)
                torch.testing.assert_close(y.detach().float(), expected, rtol=0.1, atol=0.1)
                if graph:
                    y.float().square().sum().backward()
                    assert all(p.grad.dtype == torch.float32 for p in blocks.parameters())


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_what_is_left_of_one_choice(shortcut):
    blocks = a_block(shortcut).eval()
    x = images(4)
    for choice in (0, 1):
        expected = blocks(x, torch.full((4,), choice)).detach()
        alone = blocks.select([choice])
        assert isinstance(alone, ModuleBlocks) and alone.num_blocks == 1
        assert alone.macs == (blocks.macs[choice] + blocks.shared_macs,)
        assert alone.output_shape == blocks.output_shape
        torch.testing.assert_close(alone.eval()(x, torch.zeros(4, dtype=torch.int64)), expected)
        parts = blocks.as_modules(choice)
        assert len(parts) == (0 if shortcut == "identity" and choice == 0 else 1)
        torch.testing.assert_close(nn.Sequential(*parts)(x), expected)
        ours = {id(parameter) for parameter in blocks.parameters()}
        for copied in (alone, nn.ModuleList(parts)):
            assert not ours & {id(parameter) for parameter in copied.parameters()}
        norms = [part for module in parts for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
        assert all(type(norm) is nn.BatchNorm2d for norm in norms)
    both = blocks.select([0, 1])
    assert isinstance(both, SkippableBlock) and both.macs == blocks.macs
    assert torch.equal(both(x, torch.tensor([0, 1, 1, 0])), blocks(x, torch.tensor([0, 1, 1, 0])))
    assert not {id(p) for p in blocks.parameters()} & {id(p) for p in both.parameters()}


@pytest.mark.parametrize("kept", [[], [1, 0], [0, 0], [2]])
def test_choices_that_cannot_be_kept_are_refused(kept):
    with pytest.raises(ValueError, match=r"\[0\], \[1\] or \[0, 1\] are kept, got \["):
        a_block("identity").select(kept)


def test_only_what_runs_alone_belongs_to_a_choice():
    blocks = a_block("projection")
    assert blocks.parameters_of(0) == []
    owned = [one.parameter for one in blocks.parameters_of(1)]
    assert all(a is b for a, b in zip(owned, blocks.block.residual.parameters(), strict=True))


def test_the_blocks_of_a_copy_normalise_by_themselves():
    blocks = a_block("identity", size=(1, 1)).train()
    other = blocks.select([0, 1]).train()
    other(torch.randn(5, INPUTS, 1, 1), torch.ones(5, dtype=torch.int64))
    assert int(other.block.residual[1].num_batches_tracked) == 1
    assert int(blocks.block.residual[1].num_batches_tracked) == 0
