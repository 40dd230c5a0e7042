"""What every bank runs against the readable definition, `FunctionBlocks`, of which it overrides what is faster."""

import copy

import pytest
import torch
from plain_paths import randomised
from torch import nn

from routing_gym.blocks import (
    FunctionBlocks,
    LinearBlocks,
    ModuleBlocks,
    PathBlocks,
    PathConv2d,
    PathNorm2d,
    PathSequential,
    ResidualBlock,
    SkippableBlock,
    WithPass,
    every_block_runs,
)

IMAGE = (3, 6, 5)


class Readable(FunctionBlocks):
    """The same blocks, run as the base class says."""

    def __init__(self, bank):
        super().__init__(bank.num_blocks)
        self.bank = bank

    def run_block(self, x, number):
        return self.bank.run_block(x, number)

    def parameters_of(self, choice):
        return self.bank.parameters_of(choice)


def stage(outputs=3):
    return nn.Sequential(nn.Conv2d(3, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


BANKS = {
    "linear": (lambda: LinearBlocks(4, 5, 6), (5,)),
    "linear, rectified": (lambda: LinearBlocks(3, 8, 8, relu=True), (8,)),
    "linear, one block": (lambda: LinearBlocks(1, 4, 4), (4,)),
    "linear with pass": (lambda: WithPass(LinearBlocks(3, 8, 8, relu=True)), (8,)),
    "modules": (lambda: ModuleBlocks([nn.Linear(5, 2), nn.Sequential(nn.Linear(5, 2), nn.Tanh())], (5,)), (5,)),
    "modules on images": (lambda: ModuleBlocks([nn.Identity(), stage(), nn.MaxPool2d(3, 1, 1)], IMAGE), IMAGE),
    "modules with pass": (lambda: WithPass(ModuleBlocks([stage(), stage()], IMAGE)), IMAGE),
    "modules that flatten": (lambda: ModuleBlocks([nn.Flatten(), nn.Sequential(stage(), nn.Flatten())], IMAGE), IMAGE),
    "paths": (
        lambda: randomised(PathBlocks(PathSequential(PathConv2d(4, 3, 2), PathNorm2d(4, 2), nn.ReLU()), 4, IMAGE)),
        IMAGE,
    ),
    "skippable": (lambda: SkippableBlock(ResidualBlock(stage(), nn.Identity()), IMAGE), IMAGE),
    "skippable, projected": (lambda: SkippableBlock(ResidualBlock(stage(4), nn.Conv2d(3, 4, 1)), IMAGE), IMAGE),
}
LAYOUTS = [(name, last) for name, (_, shape) in BANKS.items() for last in (False, True) if shape == IMAGE or not last]


def inputs(shape, rows, numbers, last):
    x = torch.randn(rows, *shape, generator=numbers)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    return x.requires_grad_()


def actions(blocks, rows, numbers):
    """Every form of an action."""
    k = blocks.num_blocks
    dense = torch.rand(rows, k, generator=numbers) + 0.1
    some = dense * (torch.rand(rows, k, generator=numbers) < 0.5)
    pairs = torch.randint(k, (rows, 2), generator=numbers)
    return {
        "integers": torch.randint(k, (rows,), generator=numbers),
        "one block for all": torch.full((rows,), k - 1),
        "all weights": dense.requires_grad_(),
        "some weights": some.requires_grad_(),
        "no weights": torch.zeros(rows, k, requires_grad=True),
        "pairs": (pairs, torch.rand(rows, 2, generator=numbers).requires_grad_()),
    }


def gradients(y, *tensors):
    direction = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return torch.autograd.grad((y * direction).sum(), tensors, materialize_grads=True)


def check(ours, theirs, *tensors):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    if not ours.requires_grad:
        return  # nothing has run
    torch.testing.assert_close(gradients(ours, *tensors), gradients(theirs, *tensors), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "last"), LAYOUTS)
@pytest.mark.parametrize("every", [False, True], ids=["used", "every"])
@pytest.mark.parametrize("rows", [1, 7])
def test_a_bank_computes_what_it_is_defined_to(name, rows, every, last):
    make, shape = BANKS[name]
    torch.manual_seed(0)
    bank, numbers = make(), torch.Generator().manual_seed(rows)
    for part in bank.modules():  # statistics of the rows that run are what tests/blocks/test_skippable.py is about
        part.training = not isinstance(part, nn.BatchNorm2d | PathNorm2d)
    for action in actions(bank, rows, numbers).values():
        x, weights = inputs(shape, rows, numbers, last), action[1] if isinstance(action, tuple) else action
        # The shortcut of a block that can be skipped runs anyway, so that a weight of 0 has a gradient, too.
        wanted = [weights] if weights.requires_grad and not isinstance(bank, SkippableBlock) else []
        with every_block_runs(every):
            check(bank(x, action), Readable(bank)(x, action), x, *bank.parameters(), *wanted)


@pytest.mark.parametrize("name", ["linear", "linear, rectified", "linear, one block", "modules", "paths"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_blocks_run_on_inputs_of_their_own_as_they_are_defined_to(name, share):
    make, shape = BANKS[name]
    torch.manual_seed(0)
    bank = make().eval()
    for tensors in {1, bank.num_blocks}:
        x = torch.randn(5, tensors, *shape, requires_grad=True)
        where = torch.rand(5, bank.num_blocks) < share
        for wanted in (where, None):
            check(bank.run_each(x, wanted), Readable(bank).eval().run_each(x, wanted), x, *bank.parameters())


def test_moving_rows_changes_no_bit():
    torch.manual_seed(0)
    bank = ModuleBlocks([nn.Linear(5, 5), nn.Linear(5, 5), nn.Identity()], (5,))
    x, choice = torch.randn(40, 5), torch.randint(3, (40,))
    assert torch.equal(bank(x, choice), Readable(copy.deepcopy(bank))(x, choice))
    assert torch.equal(WithPass(bank)(x, choice + 1), Readable(WithPass(bank))(x, choice + 1))
