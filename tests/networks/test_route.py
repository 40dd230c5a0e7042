"""Routing layers of a user's own module."""

import copy
import io

import pytest
import torch
from torch import nn
from toys import LAYERS, Residual

from routing_gym.networks import make_network, route


def run(network, images, choices):
    state = network.start(images, torch.zeros(len(images), dtype=torch.int64))
    for choice in choices:
        state = network.step(state, choice)
    assert not bool(state.active.any())
    return state


def test_first_blocks_give_the_module_itself():
    module = Residual().eval()
    before = copy.deepcopy(module.state_dict())
    network = route(module, LAYERS, 3, input_shape=(1, 4, 4)).eval()
    images = torch.randn(6, 1, 4, 4)
    state = run(network, images, [torch.zeros(6, dtype=torch.int64)] * 3)
    torch.testing.assert_close(state.exits[0].logits, module(images))
    assert [d.name for d in network.decisions] == ["body", "middle", "head"]
    assert float(state.macs[0]) == 16 * 9 * 4 + 16 * 9 * 16 + 20 + 15
    assert network.stem_macs == 16 * 9 * 4
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_what_runs_between_is_counted_once_whatever_is_mixed():
    """Two of three 4-to-5 layers, a 5-to-7 layer for all, then one of three 7-to-2 layers."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    network = route(module, ["1", "5"], 3, input_shape=(1, 2, 2)).eval()
    assert network.stem_macs == 35 and [decision.macs for decision in network.decisions] == [(20.0,) * 3, (14.0,) * 3]
    half, one = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    state = run(network, torch.randn(1, 1, 2, 2), [half, one])
    assert float(state.macs) == 35 + 2 * 20 + 14 and float(state.expected_macs) == 35 + 20 + 14


def test_each_row_runs_its_own_blocks():
    torch.manual_seed(0)
    network = route(Residual(), LAYERS, 3, input_shape=(1, 4, 4)).eval()
    images, choices = (
        torch.randn(5, 1, 4, 4),
        [torch.tensor([0, 2, 2, 0, 2]), torch.randint(3, (5,)), torch.randint(3, (5,))],
    )
    state = run(network, images, choices)
    for row in range(5):
        alone = run(network, images[row : row + 1], [choice[row : row + 1] for choice in choices])
        torch.testing.assert_close(state.exits[0].logits[row], alone.exits[0].logits[0])
    state.exits[0].logits.sum().backward()
    used = set(choices[0].tolist())
    assert 0 < len(used) < 3
    for choice in range(3):
        assert (network.parameters_of(0, choice)[0].grad is not None) == (choice in used)


def test_copies_are_independent():
    network = route(Residual(), LAYERS, 2, input_shape=(1, 4, 4)).eval()
    twin = copy.deepcopy(network)
    images, choices = torch.randn(3, 1, 4, 4), [torch.tensor([0, 1, 1])] * 3
    torch.testing.assert_close(
        run(twin, images, choices).exits[0].logits, run(network, images, choices).exits[0].logits
    )
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert run(network, images, choices).exits[0].logits.abs().sum() > 0


def test_the_input_shape_may_be_left_out_where_a_linear_layer_comes_first():
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    network = route(module, ["1", "3"], 3)
    images = torch.randn(4, 1, 2, 3)
    state = run(network, images, [torch.zeros(4, dtype=torch.int64)] * 2)
    torch.testing.assert_close(state.exits[0].logits, module(images))


def test_what_cannot_be_routed_is_refused():
    with pytest.raises(ValueError, match="layers must name submodules"):
        route(Residual(), ["tail"], 2, input_shape=(1, 4, 4))
    with pytest.raises(ValueError, match="layers must name submodules"):
        route(Residual(), [], 2, input_shape=(1, 4, 4))
    with pytest.raises(ValueError, match="input_shape"):
        route(Residual(), ["body"], 2)
    with pytest.raises(ValueError, match="num_blocks"):
        route(Residual(), ["body"], 0, input_shape=(1, 4, 4))

    class Branching(Residual):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else self.head(torch.zeros(1, 5))

    with pytest.raises(ValueError, match=r"torch\.fx"):
        route(Branching(), ["body"], 2, input_shape=(1, 4, 4))

    class Twice(Residual):
        def forward(self, x):
            return self.head(self.middle((self.body(self.body(self.stem(x)))).mean((2, 3))))

    with pytest.raises(ValueError, match="exactly once"):
        route(Twice(), ["body"], 2, input_shape=(1, 4, 4))


def test_networks_by_name():
    network = make_network("mlp", num_tasks=4, num_classes=3)
    assert network.num_choices == 4 and network.num_classes == 3
    with pytest.raises(ValueError, match="unknown network 'mpl'; known are .*mlp"):
        make_network("mpl", num_tasks=4, num_classes=3)
    with pytest.raises(ValueError, match="unexpected keyword argument 'hight'"):
        make_network("mlp", num_tasks=4, num_classes=3, hight=3)


def test_a_routed_network_survives_torch_save():
    network = route(Residual(), LAYERS, 2, input_shape=(1, 4, 4)).eval()
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    images, choices = torch.randn(3, 1, 4, 4), [torch.tensor([0, 1, 1])] * 3
    torch.testing.assert_close(
        run(again, images, choices).exits[0].logits, run(network, images, choices).exits[0].logits
    )


def test_parameters_read_by_the_modules_own_code_reach_every_piece():
    class Scaled(Residual):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([0.5, 2.0, 1.0, -1.0]))

        def forward(self, x):
            x = torch.relu(self.stem(x)) * self.scale.view(-1, 1, 1)
            x = (x + self.body(x)).mean((2, 3)) * self.scale
            return self.head(torch.relu(self.middle(x)))

    module = Scaled().eval()
    network = route(module, LAYERS, 2, input_shape=(1, 4, 4)).eval()
    images = torch.randn(3, 1, 4, 4)
    state = run(network, images, [torch.zeros(3, dtype=torch.int64)] * 3)
    torch.testing.assert_close(state.exits[0].logits, module(images))


def test_what_a_trace_would_get_wrong_is_refused():
    class Frozen(Residual):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5, self.training))

    with pytest.raises(ValueError, match="asks whether it is being trained"):
        route(Frozen(), ["body"], 2, input_shape=(1, 4, 4))

    class Shared(Residual):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.ones(1, 5))

        def forward(self, x):
            twice = self.bias * 2
            return self.head(self.middle(self.body(self.stem(x)).mean((2, 3))) + twice)

    with pytest.raises(ValueError, match=r"not tensors with a row per image: \['mul'\]"):
        route(Shared(), ["body"], 2, input_shape=(1, 4, 4))

    class Power(nn.Linear):
        def forward(self, x, times=1):
            return super().forward(x) * times

    class Arguments(Residual):
        def __init__(self):
            super().__init__()
            self.middle = Power(4, 5)

        def forward(self, x):
            return self.head(self.middle(self.stem(x).mean((2, 3)), 10))

    with pytest.raises(ValueError, match="'middle' must be called with its input and nothing else"):
        route(Arguments(), ["middle"], 2, input_shape=(1, 4, 4))
