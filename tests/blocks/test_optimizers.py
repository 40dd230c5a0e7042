"""What a batch has not used does not move, whoever optimises and however it is stored."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from routing_gym.blocks import SGD, Adam, AdamW, LinearBlocks
from routing_gym.blocks import optimizers as movers
from routing_gym.forms import check_optimizer

KINDS = {
    "adam": (Adam, torch.optim.Adam, {}),
    "adam, penalty": (Adam, torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": (AdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
    "sgd": (SGD, torch.optim.SGD, {}),
    "sgd, momentum": (SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
}


def four_blocks(monkeypatch, few):
    """A source of numbers and four blocks; stacks move at once where slices have fewer numbers than `few`."""
    monkeypatch.setattr(movers, "FEW_RUNS", 0)
    monkeypatch.setattr(movers, "FEW_NUMBERS", few)
    numbers, blocks = torch.Generator().manual_seed(0), LinearBlocks(4, 3, 2)
    nn.init.normal_(blocks.weight, generator=numbers)
    return numbers, blocks


use = st.lists(st.booleans(), min_size=4, max_size=4)
uses = st.lists(use, min_size=1, max_size=6)


@pytest.mark.parametrize("few", [0, 10**9])  # run by run; the whole stack at once
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(uses=uses)
def test_a_slice_is_moved_as_a_parameter_of_its_own(monkeypatch_module, kind, few, uses):
    """The reference: every slice a parameter of PyTorch's optimiser, without a gradient where it is not used."""
    ours, theirs, options = KINDS[kind]
    numbers, blocks = four_blocks(monkeypatch_module, few)
    slices = [nn.Parameter(stack[i].detach().clone()) for stack in (blocks.weight, blocks.bias) for i in range(4)]
    fast, slow = ours(blocks, lr=0.1, **options), theirs(slices, lr=0.1, **options)
    for used in uses:
        for number, stack in enumerate((blocks.weight, blocks.bias)):
            stack.grad = torch.randn(stack.shape, generator=numbers) * torch.tensor(used).view(
                -1, *[1] * (stack.ndim - 1)
            )
            for i in range(4):
                slices[4 * number + i].grad = stack.grad[i].clone() if used[i] else None
        blocks.note_use(torch.tensor(used).nonzero())
        fast.step()
        slow.step()
        assert blocks.used is None
        for number, stack in enumerate((blocks.weight, blocks.bias)):
            torch.testing.assert_close(stack.detach(), torch.stack([*slices[4 * number : 4 * number + 4]]).detach())


# How a gradient comes: of the whole stack; of those asked alone; of these from several places, as many and not; and
# from places of both kinds.
WAYS = {
    "dense": lambda blocks, some: [(blocks.weight[some], blocks.bias[some], some)],
    "sparse": lambda blocks, some: [_of_some(blocks, some)],
    "twice": lambda blocks, some: [_of_some(blocks, some), _of_some(blocks, some)],
    "apart": lambda blocks, some: [_of_some(blocks, some), _of_some(blocks, some[-1:]), _of_some(blocks, some[:2])],
    "both": lambda blocks, some: [_of_some(blocks, some), (blocks.weight[some], blocks.bias[some], some)],
}


def _of_some(blocks, some):
    link = blocks.link(some)
    return link.weight, link.bias, some


@pytest.mark.parametrize("few", [0, 10**9])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from([*WAYS]), use, st.booleans(), st.booleans())))
def test_a_sparse_gradient_moves_what_it_is_of(monkeypatch_module, kind, few, steps):
    """The reference as above, whatever way gradients come, in turn; and states are saved and loaded in between."""
    ours, theirs, options = KINDS[kind]
    numbers, blocks = four_blocks(monkeypatch_module, few)
    slices = [[nn.Parameter(stack[i].detach().clone()) for stack in (blocks.weight, blocks.bias)] for i in range(4)]
    fast, slow = ours(blocks, lr=0.1, **options), theirs(sum(slices, []), lr=0.1, **options)
    for way, used, together, saved in steps:
        fast.zero_grad()
        slow.zero_grad()
        some = torch.tensor(used).nonzero().flatten()
        losses = []
        for weight, bias, these in WAYS[way](blocks, some) if any(used) else []:
            blocks.note_use(these)
            # The gradient of one comes as it is to lie, that of the other does not.
            first, second = torch.randn(3, 2, len(these), generator=numbers), torch.randn(bias.shape, generator=numbers)
            losses.append((weight.movedim(0, -1) * first).sum() + (bias * second).sum())
            for place, i in enumerate(these.tolist()):
                ((slices[i][0] * first[..., place]).sum() + (slices[i][1] * second[place]).sum()).backward()
        for loss in [sum(losses)] if together and losses else losses:
            loss.backward()
        fast.step()
        slow.step()
        assert blocks.used is None
        for number, stack in enumerate((blocks.weight, blocks.bias)):
            assert stack.grad is None or stack.grad.is_sparse == (way not in ("dense", "both"))
            torch.testing.assert_close(stack.detach(), torch.stack([of[number].detach() for of in slices]))
        if saved:
            state = copy.deepcopy(fast.state_dict())
            fast = ours(blocks, lr=0.1, **options)
            check_optimizer(state, fast, "optimizer")
            fast.load_state_dict(state)


@pytest.mark.parametrize("few", [0, 10**9])
def test_a_sparse_gradient_out_of_order(monkeypatch, few):
    """A sum may name a slice twice: that is one step, along all of it."""
    monkeypatch.setattr(movers, "FEW_NUMBERS", few)
    torch.manual_seed(0)
    blocks = LinearBlocks(4, 3, 2)
    before, values = blocks.weight.detach().clone(), torch.randn(3, 3, 2)
    blocks.weight.grad = torch.sparse_coo_tensor([[2, 0, 2]], values, blocks.weight.shape, check_invariants=True)
    Adam(blocks, lr=0.1).step()
    whole = torch.stack([values[1], torch.zeros(3, 2), values[0] + values[2], torch.zeros(3, 2)])
    torch.testing.assert_close(blocks.weight.detach(), before - 0.1 * whole.sign(), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def monkeypatch_module():
    patch = pytest.MonkeyPatch()
    yield patch
    patch.undo()
