"""A reward: right answers count the more the surer they were, wrong ones cost a point.

routing-gym compare --plugin docs/examples/own_reward.py --env-options final_reward=confidence --agents wpl reinforce
"""

import torch

import routing_gym


def confidence(loss, correct):
    """`loss` is the cross-entropy of the rows that leave, `correct` 1 or 0; both `(r,)`, and so is the reward."""
    return torch.where(correct > 0, (-loss).exp(), -1.0)


routing_gym.register_reward("confidence", confidence)
