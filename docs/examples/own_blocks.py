"""Function blocks: low-rank residual layers, in a network of their own.

routing-gym compare --plugin docs/examples/own_blocks.py --env example/LowRank-v0 --agents wpl task-specific-all
"""

import math

import torch
from torch import nn

import routing_gym
from routing_gym.blocks import FunctionBlocks, LinearBlocks
from routing_gym.networks import EXIT, BankedNetwork, Decision


class LowRankBlocks(FunctionBlocks):
    """k blocks x -> relu(x + (x A_c) B_c)."""

    def __init__(self, num_blocks, width, rank):
        super().__init__(num_blocks)
        self.down, self.up = LinearBlocks(num_blocks, width, rank), LinearBlocks(num_blocks, rank, width)
        self.macs = (2.0 * width * rank,) * num_blocks

    def run_block(self, x, number):
        return torch.relu(x + self.up.run_block(self.down.run_block(x, number), number))

    def parameters_of(self, choice):
        return self.down.parameters_of(choice) + self.up.parameters_of(choice)


class LowRank(BankedNetwork):
    """A shared layer, three routed low-rank layers, a shared readout."""

    def __init__(self, input_shape, num_classes, num_blocks, *, width: int = 48, num_tasks: int = 1):
        banks = [LowRankBlocks(num_blocks, width, rank=4) for _ in range(3)]
        ways = [(target,) * num_blocks for target in (1, 2, EXIT)]
        decisions = [Decision(f"layer {i}", bank.macs, ways[i], width=width) for i, bank in enumerate(banks)]
        shared = math.prod(input_shape) * width + width * num_classes
        super().__init__(decisions, num_classes=num_classes, input_shape=input_shape, stem_macs=shared)
        self.first, self.last = nn.Linear(math.prod(input_shape), width), nn.Linear(width, num_classes)
        self.banks = nn.ModuleList(banks)

    def stem(self, images, task):
        return (self.first(images.flatten(1)),)

    def readout(self, decision, choice, activation, task):
        return self.last(activation[0])


routing_gym.register_network("low-rank", LowRank)
routing_gym.register_env("example/LowRank-v0", dataset="digits", network="low-rank")
