"""A network: residual layers, each of which an instance runs or skips.

routing-gym compare --plugin docs/examples/own_network.py --env example/Skipping-v0 --agents wpl random shared
"""

import math

import torch
from torch import nn

import routing_gym
from routing_gym.blocks import OwnedParameter
from routing_gym.networks import EXIT, Decision, RoutedNetwork, is_weights


class Skipping(RoutedNetwork):
    """h + run * F(h), as often as there are blocks; choice 0 skips, choice 1 runs."""

    def __init__(self, input_shape, num_classes, num_blocks, *, width: int = 32, num_tasks: int = 1):
        cost = float(2 * width * width)
        next_of = [i + 1 for i in range(num_blocks - 1)] + [EXIT]
        super().__init__(
            [Decision(f"layer {i}", macs=(0.0, cost), next=(next_of[i],) * 2, width=width) for i in range(num_blocks)],
            num_classes=num_classes,
            input_shape=input_shape,
            stem_macs=math.prod(input_shape) * width,
        )
        self.first, self.last = nn.Linear(math.prod(input_shape), width), nn.Linear(width, num_classes)
        self.told = nn.Embedding(num_tasks, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(num_blocks)
        )

    def stem(self, images, task):
        return (self.first(images.flatten(1)) + self.told(task),)

    def transition(self, decision, activation, action, task):
        (h,) = activation
        share = action[:, 1] if is_weights(action) else action.to(h.dtype)
        run = share.detach().nonzero().flatten()  # rows that skip cost nothing
        return (h.index_add(0, run, self.layers[decision](h[run]) * share[run, None]),)

    def readout(self, decision, choice, activation, task):
        return self.last(torch.relu(activation[0]))

    def describe(self, decision, activation):
        return activation[0]

    def parameters_of(self, decision, choice):
        return [OwnedParameter(p) for p in self.layers[decision].parameters()] if choice else []


routing_gym.register_network("skipping", Skipping)
routing_gym.register_env("example/Skipping-v0", dataset="digits", network="skipping")
