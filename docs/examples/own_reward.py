"""Rewards: right answers count the more the surer they were, and every action costs what it computes.

routing-gym compare --plugin docs/examples/own_reward.py --env-options rewards=thrift final_reward=sure --agents wpl
"""

import torch

import routing_gym


def sure(loss, correct):
    """Of instances that leave: `loss` is the cross-entropy, `correct` 1 or 0; both `(r,)`, and so is the reward."""
    return torch.where(correct > 0, (-loss).exp(), -1.0)


def thrift(macs, depth):
    """Of every action: a millionth of a point for each multiply-accumulate, twice as much at the first decision."""
    return -1e-6 * macs * torch.where(depth == 0, 2.0, 1.0)


routing_gym.register_reward("sure", sure)
routing_gym.register_reward("thrift", thrift, at="action")
