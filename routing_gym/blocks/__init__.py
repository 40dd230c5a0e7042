"""Function blocks, their grouped execution, and the cost of running them."""

from routing_gym.blocks.base import (
    Embedding,
    FunctionBlocks,
    OwnedParameter,
    PartlyUsed,
    Sparse,
    blocks_merge,
    every_block_runs,
    first_weights,
)
from routing_gym.blocks.converted import allow_small_groups, conv2d, share_statistics, static_copy, subsample_first
from routing_gym.blocks.fast.chain import Link, SortedRows, plain, run_chain
from routing_gym.blocks.fast.groups import group
from routing_gym.blocks.fast.parallel import (
    PathBlocks,
    PathConv2d,
    PathLinear,
    PathNorm2d,
    PathResidual,
    PathSequential,
    PathSqueezeExcite,
)
from routing_gym.blocks.fast.rows import in_few_sizes
from routing_gym.blocks.linear import LinearBlocks, some_of
from routing_gym.blocks.macs import (
    construction,
    count_macs,
    counting,
    eval_mode,
    plain_attention,
    probe,
    with_gradients,
)
from routing_gym.blocks.modules import ModuleBlocks, WithPass
from routing_gym.blocks.optimizers import SGD, Adam, AdamW, UsedOnly
from routing_gym.blocks.skippable import ResidualBlock, SkippableBlock

__all__ = [
    "Adam", "AdamW", "Embedding", "FunctionBlocks", "LinearBlocks", "Link", "ModuleBlocks", "OwnedParameter",
    "PartlyUsed", "PathBlocks", "PathConv2d", "PathLinear", "PathNorm2d", "PathResidual", "PathSequential",
    "PathSqueezeExcite", "ResidualBlock", "SGD", "SkippableBlock", "SortedRows", "Sparse", "UsedOnly", "WithPass",
    "allow_small_groups", "blocks_merge", "construction", "conv2d", "count_macs", "counting", "eval_mode",
    "every_block_runs", "first_weights", "group", "in_few_sizes", "plain", "plain_attention", "probe", "run_chain",
    "share_statistics", "some_of", "static_copy", "subsample_first", "with_gradients",
]  # fmt: skip
