"""Rows sorted by their block, on the host and on the device."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from routing_gym.blocks import group
from routing_gym.blocks.fast.groups import group_on_device, group_plan


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_group_sorts_stably_and_back(rows):
    plan, num_blocks = torch.tensor(rows, dtype=torch.int64).view(len(rows), 3), [5, 3, 3]
    together = group_plan(plan, num_blocks)
    for number, count in enumerate(num_blocks):
        choice = plan[:, number]
        choices = choice.tolist()
        for groups in (together[number], group(choice, count), group_on_device(choice, count)):
            assert groups.order.tolist() == sorted(range(len(choices)), key=lambda i: choices[i])
            assert torch.equal(choice[groups.order][groups.inverse], choice)
            assert torch.equal(groups.block, choice[groups.order])
            assert groups.counts == [choices.count(c) for c in range(count)]
