"""Chains of linear blocks against their blocks one after the other, row by row."""

from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from damage import same
from hypothesis import given, settings
from hypothesis import strategies as st

from routing_gym.blocks import LinearBlocks, WithPass, plain, run_chain
from routing_gym.blocks.fast import chain, groups, products

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def one_row_at_a_time(blocks, x, choice):
    return torch.cat([blocks.run_block(row, number) for row, number in zip(x.split(1), choice.tolist(), strict=True)])


@pytest.mark.long
@pytest.mark.parametrize(
    "on_host, many_rows, few_numbers",
    [(True, 128, 8192), (True, 128, 0), (True, 1, 0), (False, 128, 8192)],
    ids=["host", "by block", "many", "device"],
)
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 12),
    layers=st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=4),
    double=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_a_chain_gives_what_one_row_at_a_time_gives(on_host, many_rows, few_numbers, batch, layers, double, seed):
    torch.manual_seed(seed)
    banks, columns = [], []
    for count, relu, passes, again in layers:
        bank = LinearBlocks(count, 5, 5, relu=relu)
        banks.append(WithPass(bank) if passes else bank)
        drawn = torch.randint(banks[-1].num_blocks, (batch,))
        alike = again and columns and banks[-1].num_blocks == banks[-2].num_blocks
        columns.append(columns[-1] if alike else drawn)  # the rows need not move then
    banks = [bank.double() for bank in banks] if double else banks
    plan, x = torch.stack(columns, 1), torch.randn(batch, 5, dtype=torch.float64 if double else torch.float32)
    x.requires_grad_()
    gates = torch.ones(plan.shape, dtype=x.dtype, requires_grad=True)
    links = [bank.blocks.link(passes=True) if isinstance(bank, WithPass) else bank.link() for bank in banks]
    there = one = x
    with ExitStack() as stack:
        for module in (chain, groups, products):
            stack.enter_context(mock.patch.object(module, "on_host", lambda x: on_host))
        stack.enter_context(mock.patch.multiple(products, MANY_ROWS=many_rows, FEW_NUMBERS=few_numbers))
        for link, bank, choice, gate in zip(links, banks, columns, gates.split(1, 1), strict=True):
            one = run_chain([link], one, choice.unsqueeze(1), gate)
            there = gate * one_row_at_a_time(bank, there, choice)
        ways = [one, run_chain(links, x, plan, gates)]
        if len(links) > 1:
            first = run_chain(links[:1], x, plan[:, :1], gates[:, :1])
            ways.append(run_chain(links[1:], first, plan[:, 1:], gates[:, 1:]))
        weight, parameters = torch.randn_like(there), [gates, *(p for bank in banks for p in bank.parameters())]
        expected = torch.autograd.grad(
            (there * weight).sum(), [x, *parameters], materialize_grads=True, retain_graph=True
        )
        some = torch.randperm(batch)[: batch // 2]
        for way in ways:
            torch.testing.assert_close(way.index_select(0, some), there[some], **TOLERANCE)
            torch.testing.assert_close(plain(way), there, **TOLERANCE)
            found = torch.autograd.grad((plain(way) * weight).sum(), [x, *parameters], retain_graph=True)
            without = torch.autograd.grad((plain(way) * weight).sum(), [x, *parameters[1:]], retain_graph=True)
            assert same(without, (found[0], *found[2:]))
            torch.testing.assert_close(found, expected, **TOLERANCE)


def test_a_chain_gives_gradients_only_where_they_are_wanted():
    banks = [LinearBlocks(2, 3, 3, relu=True), LinearBlocks(2, 3, 3)]
    links, plan = [bank.link() for bank in banks], torch.tensor([[0, 1], [1, 1], [0, 0]])
    whole = torch.autograd.grad(plain(run_chain(links, torch.ones(3, 3), plan)).sum(), banks[1].weight)
    banks[0].requires_grad_(False)
    banks[1].bias.requires_grad_(False)
    plain(run_chain(links, torch.ones(3, 3), plan)).sum().backward()
    torch.testing.assert_close(banks[1].weight.grad, *whole)
    assert banks[0].weight.grad is None and banks[0].bias.grad is None and banks[1].bias.grad is None
    assert plain(run_chain(links, torch.ones(0, 3), plan[:0])).shape == (0, 3)
