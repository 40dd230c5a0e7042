"""What blocks are not made of."""

import pytest
import torch
from torch import nn

from routing_gym.blocks import (
    ModuleBlocks,
    PathBlocks,
    PathConv2d,
    PathLinear,
    PathNorm2d,
    PathSequential,
    ResidualBlock,
    SkippableBlock,
    WithPass,
)


@pytest.mark.parametrize("wrong", [None, "a", -1, 0, 2.5, float("nan"), [], {}, True, object])
def test_whatever_is_no_block_or_no_number_of_them_is_refused(wrong):
    kept = nn.Identity()
    for refused, message in (
        (lambda: ModuleBlocks(wrong, (3, 4, 4)), "blocks must be modules|num_blocks must be"),
        (lambda: ModuleBlocks([kept, wrong], (3, 4, 4)), "blocks must be modules"),
        (lambda: ModuleBlocks([kept], (3, wrong)), "input_shape must be integers of at least 1"),
        (lambda: WithPass(wrong), "PASS joins a set of blocks"),
        (lambda: SkippableBlock(wrong, (3, 4, 4)), "a ResidualBlock, got"),
        (lambda: SkippableBlock(ResidualBlock(kept, kept), (3, wrong, 4)), "input_shape must be integers"),
        (lambda: PathConv2d(wrong, 2, 2), "paths of parallel layers must be an integer of at least 1, got"),
        (lambda: PathConv2d(2, 2, 2, 1, stride=wrong), "stride of parallel layers must be an integer"),
        (lambda: PathNorm2d(2, wrong), "channels of parallel layers must be an integer"),
        (lambda: PathLinear(2, wrong, 2), "inputs of parallel layers must be an integer"),
        (lambda: PathBlocks(wrong, 2, (3,)), "the layers of paths are a PathSequential, got"),
        (lambda: PathBlocks(PathSequential(PathLinear(2, 3, 4)), 2, (wrong,)), "input_shape must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_modules_may_come_from_anything_that_gives_them():
    blocks = ModuleBlocks((nn.Linear(3, 3) for _ in range(2)), torch.Size([3]))
    assert blocks.num_blocks == 2 and blocks.output_shape == (3,)
