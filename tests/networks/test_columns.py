"""Columns under hard routing: tensors merge, and what nothing was sent to is not run."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import routed

from routing_gym.networks import ColumnsMLP, make_network


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**4), rows=st.integers(1, 6))
def test_hard_routes_against_a_loop(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    network = ColumnsMLP((1, 2, 3), 3, 3, width=4, layers=3, num_tasks=3)
    images = torch.randn(rows, 1, 2, 3, generator=generator)
    task = torch.randint(3, (rows,), generator=generator)
    actions = [torch.randint(3, (rows, 3), generator=generator) for _ in range(3)]
    state = routed(network, images, actions, task)
    logits, spent = state.exits[0].logits, state.macs
    for row in range(rows):
        columns, macs = {j: images[row].flatten() for j in range(3)}, 0.0
        for layer, bank in enumerate(network.banks):
            fed = {}
            for i, activation in columns.items():
                target = int(actions[layer][row, i])
                fed[target] = fed.get(target, 0) + activation
            macs += bank.macs[0] * len(fed)
            columns = {j: x @ bank.weight[j] + bank.bias[j] for j, x in fed.items()}
            if layer < 2:
                columns = {j: x.clamp(min=0) for j, x in columns.items()}
        own = columns.get(int(task[row]), torch.zeros(3))
        torch.testing.assert_close(logits[row], own, rtol=1e-4, atol=1e-5)
        assert float(spent[row]) == macs


def test_the_form_is_an_option_of_networks_by_name():
    network = make_network("simple-convnet", num_tasks=4, num_classes=5, form="columns")
    assert isinstance(network, ColumnsMLP) and network.num_tensors == network.num_choices == 4
    assert network.decisions[0].width == 4 * 128
    for options, message in (
        ({"form": "rows"}, "form must be 'paths' or 'columns', got 'rows'"),
        ({"form": "columns", "recurrent": True}, "neither recurrent=True nor task_input=True"),
        ({"form": "columns", "width": 0}, "width must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make_network("mlp", num_tasks=2, num_classes=2, **options)


@pytest.mark.parametrize("dense_backward", [False, True])
def test_gates_have_a_gradient_towards_what_is_run(dense_backward):
    """Columns 0 and 1 are sent to column 2, column 2 to 0: 1 is not run, and may send nothing on to the task's 0."""
    network = ColumnsMLP((1, 2, 3), 3, 3, width=4, layers=2, num_tasks=3)
    for parameter in network.parameters():
        parameter.data.abs_()  # so that no ReLU is in the way, whatever weights are drawn
    network.dense_backward = dense_backward
    gates = [torch.eye(3)[columns].unsqueeze(0).requires_grad_() for columns in ([2, 2, 0], [0, 0, 0])]
    state = routed(network, torch.rand(1, 1, 2, 3) + 0.1, gates)
    state.exits[0].logits.square().sum().backward()
    assert (gates[0].grad[0] != 0).tolist() == [[True, False, True]] * 3
    assert (gates[1].grad[0] != 0).tolist() == [[True, False, False], [False] * 3, [True, False, False]]
