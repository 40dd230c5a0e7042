"""What a batch has not used does not move, whoever optimises and however it is stored."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from routing_gym.blocks import SGD, Adam, AdamW, LinearBlocks
from routing_gym.blocks import optimizers as movers

KINDS = {
    "adam": (Adam, torch.optim.Adam, {}),
    "adam, penalty": (Adam, torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": (AdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
    "sgd": (SGD, torch.optim.SGD, {}),
    "sgd, momentum": (SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
}

uses = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6)


@pytest.mark.parametrize("few", [0, 10**9])  # run by run; the whole stack at once
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(uses=uses)
def test_a_slice_is_moved_as_a_parameter_of_its_own(monkeypatch_module, kind, few, uses):
    """The reference: every slice a parameter of PyTorch's optimiser, without a gradient where it is not used."""
    ours, theirs, options = KINDS[kind]
    monkeypatch_module.setattr(movers, "FEW_RUNS", 0)
    monkeypatch_module.setattr(movers, "FEW_NUMBERS", few)
    numbers = torch.Generator().manual_seed(0)
    blocks = LinearBlocks(4, 3, 2)
    nn.init.normal_(blocks.weight, generator=numbers)
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


@pytest.fixture(scope="module")
def monkeypatch_module():
    patch = pytest.MonkeyPatch()
    yield patch
    patch.undo()
