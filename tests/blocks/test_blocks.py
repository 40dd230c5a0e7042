"""Grouped execution against the slow obvious way: one row at a time."""

import copy
import re
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import step
from torch import nn

from routing_gym.blocks import (
    FunctionBlocks,
    LinearBlocks,
    ModuleBlocks,
    WithPass,
    count_macs,
    every_block_runs,
)
from routing_gym.networks.fully_connected import RoutedMLP

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def one_row_at_a_time(blocks, x, action):
    """What `blocks(x, action)` means, with every row and block on its own."""
    if isinstance(action, tuple):
        dense = torch.zeros(len(x), blocks.num_blocks, dtype=action[1].dtype)
        action = dense.scatter_add(1, action[0], action[1])
    rows = []
    for i in range(len(x)):
        if action.is_floating_point():
            outputs = [action[i, c] * block_alone(blocks, c, x[i : i + 1]) for c in range(blocks.num_blocks)]
            rows.append(sum(outputs))
        else:
            rows.append(block_alone(blocks, int(action[i]), x[i : i + 1]))
    return torch.cat(rows)


def block_alone(blocks, c, row):
    if isinstance(blocks, WithPass):
        return row if c == blocks.num_blocks - 1 else block_alone(blocks.blocks, c, row)
    if isinstance(blocks, ModuleBlocks):
        return blocks.blocks[c](row)
    y = row @ blocks.weight[c] + blocks.bias[c]
    return y.clamp(min=0) if blocks.relu else y


def gradients(blocks, x, loss, *others):
    blocks.zero_grad()
    return torch.autograd.grad(loss, [x, *others, *blocks.parameters()], materialize_grads=True)


def make(kind, num_blocks, width, out):
    if kind == "linear":
        return LinearBlocks(num_blocks, width, out, relu=True)
    if kind == "pass":
        return WithPass(LinearBlocks(num_blocks, width, width))
    unlike = [nn.Linear(width, out), nn.Sequential(nn.Linear(width, 3), nn.Tanh(), nn.Linear(3, out))]
    return ModuleBlocks([copy.deepcopy(unlike[c % 2]) for c in range(num_blocks)], (width,))


# Group sizes are drawn one by one, so empty groups, a single row and everything in one group all occur.
sizes = st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(lambda counts: sum(counts) > 0)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["linear", "pass", "modules"]),
    counts=sizes,
    width=st.integers(1, 9),
    out=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
def test_integers_equal_the_row_loop(kind, counts, width, out, seed):
    torch.manual_seed(seed)
    blocks = make(kind, len(counts), width, out)
    choice = torch.repeat_interleave(torch.tensor(counts))[torch.randperm(sum(counts))]
    x = torch.randn(len(choice), width, requires_grad=True)

    fast, slow = blocks(x, choice), one_row_at_a_time(blocks, x, choice)
    torch.testing.assert_close(fast, slow, **TOLERANCE)
    weight = torch.randn_like(slow)
    torch.testing.assert_close(
        gradients(blocks, x, (fast * weight).sum()), gradients(blocks, x, (slow * weight).sum()), **TOLERANCE
    )


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["linear", "pass", "modules"]),
    form=st.sampled_from(["dense", "sparse"]),
    batch=st.integers(1, 8),
    num_blocks=st.integers(1, 5),
    share=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_weights_equal_the_row_loop(kind, form, batch, num_blocks, share, seed):
    torch.manual_seed(seed)
    blocks = make(kind, num_blocks, 5, 4)
    x = torch.randn(batch, 5, requires_grad=True)
    weights = torch.randn(batch, blocks.num_blocks) * (torch.rand(batch, blocks.num_blocks) < share)
    weights.requires_grad_()
    action = weights
    if form == "sparse":
        action = (torch.randint(blocks.num_blocks, weights.shape), weights)

    fast, slow = blocks(x, action), one_row_at_a_time(blocks, x, action)
    torch.testing.assert_close(fast, slow, **TOLERANCE)
    ours, (to_x, to_weights, *others) = (gradients(blocks, x, y.square().sum(), weights) for y in (fast, slow))
    # The weight of a block that was not run has no gradient: straight through.
    torch.testing.assert_close(ours, (to_x, to_weights * (weights != 0), *others), **TOLERANCE)


def test_dense_backward_gives_unchosen_weights_a_gradient():
    blocks = LinearBlocks(3, 4, 2)
    x, weights = torch.randn(5, 4), torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0, 0]), 3).float()
    weights.requires_grad_()
    with every_block_runs():
        (dense,) = torch.autograd.grad(blocks(x, weights).square().sum(), weights)
    (reference,) = torch.autograd.grad(one_row_at_a_time(blocks, x, weights).square().sum(), weights)
    torch.testing.assert_close(dense, reference, **TOLERANCE)
    assert bool((dense[weights == 0] != 0).any())
    with every_block_runs():
        (skipped,) = torch.autograd.grad(blocks.eval()(x, weights).square().sum(), weights)
    assert bool((skipped[weights == 0] == 0).all())


def test_float64_takes_the_plain_path_and_passes_gradcheck():
    blocks = LinearBlocks(3, 4, 2).double()
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    choice = torch.tensor([2, 0, 2, 0, 0, 2])
    assert torch.autograd.gradcheck(lambda *_: blocks(x, choice), (x, *blocks.parameters()))


@pytest.mark.parametrize("kind", ["linear", "pass", "modules"])
def test_no_rows_give_no_rows(kind):
    blocks = make(kind, 3, 4, 4)
    assert blocks(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 4)
    assert blocks(torch.randn(2, 4), torch.zeros(2, blocks.num_blocks)).tolist() == [[0.0] * 4] * 2


def test_blocks_nobody_chose_are_not_run_and_get_no_gradient():
    calls = []

    class Counting(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    blocks = ModuleBlocks([Counting(3, 3) for _ in range(4)], (3,))
    calls.clear()
    blocks(torch.randn(5, 3), torch.tensor([1, 3, 1, 1, 3])).sum().backward()
    assert calls == [3, 2]
    assert blocks.blocks[0].weight.grad is None and blocks.blocks[1].weight.grad is not None


def test_macs():
    assert LinearBlocks(2, 7, 5).macs == (35.0, 35.0)
    assert WithPass(LinearBlocks(2, 5, 5)).macs == (25.0, 25.0, 0.0)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    assert count_macs(conv, torch.zeros(1, 3, 6, 6)) == 36 * 4 * 27 + 4 * 36 * 2
    assert ModuleBlocks([nn.Linear(3, 3), nn.Identity()], (3,)).macs == (9.0, 0.0)


def test_bad_blocks_are_refused():
    for count in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="num_blocks must be an integer of at least 1"):
            LinearBlocks(count, 3, 3)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ModuleBlocks([], (3,))
    with pytest.raises(ValueError, match="one shape"):
        ModuleBlocks([nn.Linear(3, 2), nn.Identity()], (3,))


def test_a_choice_owns_its_slice():
    blocks = LinearBlocks(3, 4, 2)
    blocks(torch.randn(5, 4), torch.tensor([0, 0, 1, 1, 0])).sum().backward()
    owned = blocks.parameters_of(1)
    assert [tuple(part.value.shape) for part in owned] == [(4, 2), (2,)]
    assert owned[1].grad.tolist() == [2.0, 2.0]
    assert blocks.parameters_of(2)[0].grad.abs().sum() == 0
    assert WithPass(LinearBlocks(2, 4, 4)).parameters_of(2) == []


@pytest.mark.parametrize("kind", ["linear", "pass", "modules"])
@settings(max_examples=20, deadline=None)
@given(num_blocks=st.integers(1, 5), kept=st.sets(st.integers(0, 4), min_size=1), seed=st.integers(0, 10**6))
def test_a_selection_and_plain_modules_compute_what_the_blocks_do(kind, num_blocks, kept, seed):
    torch.manual_seed(seed)
    blocks = make(kind, num_blocks, 5, 5).eval()
    kept = sorted(number for number in kept if number < num_blocks) or [0]
    kept += [num_blocks] * (kind == "pass")
    x = torch.randn(7, 5)
    drawn = torch.get_rng_state()
    smaller = blocks.select(kept)
    assert smaller.num_blocks == len(kept) and smaller.macs == tuple(blocks.macs[number] for number in kept)
    assert len(list(smaller.parameters())) <= len(list(blocks.parameters()))
    for place, number in enumerate(kept):
        expected = blocks(x, torch.full((7,), number))
        torch.testing.assert_close(smaller(x, torch.full((7,), place)), expected, **TOLERANCE)
        modules = nn.Sequential(*blocks.as_modules(number)).eval()
        torch.testing.assert_close(modules(x), expected, **TOLERANCE)
        theirs = {parameter.data_ptr() for parameter in blocks.parameters()}
        assert not theirs & {parameter.data_ptr() for part in (modules, smaller) for parameter in part.parameters()}
    assert torch.equal(torch.get_rng_state(), drawn)


def test_pass_leaves_no_module_and_stays_the_last():
    blocks = WithPass(LinearBlocks(3, 4, 4))
    assert blocks.as_modules(3) == [] == ModuleBlocks([nn.Identity()], (4,)).as_modules(0)
    for kept in ([0, 1], [3, 0], [0, 3, 3]):
        with pytest.raises(ValueError, match=f"PASS, choice 3, stays the last, got {re.escape(str(kept))} to keep"):
            blocks.select(kept)
    for kept in ([], [3]):
        with pytest.raises(ValueError, match="holds at least one"):
            blocks.select(kept)


def test_blocks_without_a_plain_form_say_what_is_missing():
    class Own(FunctionBlocks):
        def __init__(self):
            super().__init__(2)
            self.macs = (0.0, 0.0)

        def run_block(self, x, number):
            return x

        def parameters_of(self, choice):
            return []

    with pytest.raises(ValueError, match="Own can be neither pruned nor extracted: implement as_modules"):
        Own().as_modules(0)
    with pytest.raises(ValueError, match="Own can be neither pruned nor extracted: implement keep"):
        Own().select([1])


def test_whether_every_block_runs_is_settled_for_a_while_and_for_one_thread():
    blocks, x = LinearBlocks(2, 3, 3), torch.randn(4, 3)

    def reached():
        weights = torch.tensor([[1.0, 0.0]] * 4, requires_grad=True)
        return bool(torch.autograd.grad(blocks(x, weights).sum(), weights)[0][:, 1].any())

    seen = []
    with every_block_runs():
        other = threading.Thread(target=lambda: seen.append(reached()))
        other.start()
        other.join()
        with pytest.raises(KeyError), every_block_runs(False):
            seen.append(reached())
            raise KeyError
        seen.append(reached())
    assert [*seen, reached()] == [False, False, True, False]


def test_a_network_needs_to_do_nothing_for_it():
    """Nor need it know its blocks as modules."""

    class Own(RoutedMLP):
        def blocks(self, decision):
            return hidden

    hidden, network = LinearBlocks(2, 4, 3), Own((1, 2, 2), 3, 2, layers=1)
    for network.dense_backward in (False, True):
        weights = torch.tensor([[1.0, 0.0]] * 4, requires_grad=True)
        state = network.start(torch.randn(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))
        state = step(network, state, weights)
        (grad,) = torch.autograd.grad(state.exits[0].logits.sum(), weights)
        assert bool(grad[:, 1].any()) == network.dense_backward
