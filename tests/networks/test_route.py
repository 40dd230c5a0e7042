"""Routing layers of a user's own module."""

import copy
import io

import numpy as np
import pytest
import torch
from stepping import routed
from torch import nn
from toys import LAYERS, Residual

from routing_gym.networks import make_network, route


def test_first_blocks_give_the_module_itself():
    module = Residual().eval()
    before = copy.deepcopy(module.state_dict())
    network = route(module, LAYERS, 3, input_shape=(1, 4, 4)).eval()
    images = torch.randn(6, 1, 4, 4)
    state = routed(network, images, [torch.zeros(6, dtype=torch.int64)] * 3)
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
    state = routed(network, torch.randn(1, 1, 2, 2), [half, one])
    assert float(state.macs) == 35 + 2 * 20 + 14 and float(state.expected_macs) == 35 + 20 + 14


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: nn.LazyLinear(4), r"1\.weight has no shape yet: call the module once on images"),
        (lambda: torch.jit.script(nn.Linear(16, 4)), "1 is compiled by torch.jit"),
        (lambda: used(nn.utils.weight_norm(nn.Linear(16, 4))), "the module cannot be copied, as blocks are: Only"),
    ],
    ids=["lazy", "scripted", "old weight norm"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_cannot_be_copied_or_traced_is_said_as_such(layer, message):
    with pytest.raises(ValueError, match=message):
        route(nn.Sequential(nn.Flatten(), layer()), ["1"], 2, input_shape=(1, 4, 4))


def used(layer):
    layer(torch.zeros(1, 16))
    return layer


def test_copies_are_independent():
    network = route(Residual(), LAYERS, 2, input_shape=(1, 4, 4)).eval()
    twin = copy.deepcopy(network)
    images, choices = torch.randn(3, 1, 4, 4), [torch.tensor([0, 1, 1])] * 3
    torch.testing.assert_close(
        routed(twin, images, choices).exits[0].logits, routed(network, images, choices).exits[0].logits
    )
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert routed(network, images, choices).exits[0].logits.abs().sum() > 0


def test_the_input_shape_may_be_left_out_where_a_linear_layer_comes_first():
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    network = route(module, ["1", "3"], 3)
    images = torch.randn(4, 1, 2, 3)
    state = routed(network, images, [torch.zeros(4, dtype=torch.int64)] * 2)
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
    with pytest.raises(ValueError, match=r"unknown network 'mpl' \(did you mean 'mlp'\?\); known are .*mlp"):
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
        routed(again, images, choices).exits[0].logits, routed(network, images, choices).exits[0].logits
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
    state = routed(network, images, [torch.zeros(3, dtype=torch.int64)] * 3)
    torch.testing.assert_close(state.exits[0].logits, module(images))


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_what_a_trace_would_get_wrong_is_refused():
    class Frozen(Residual):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5, self.training))

    with pytest.raises(ValueError, match=r"asks whether it is being trained, or draws .* move it into a submodule"):
        route(Frozen(), ["body"], 2, input_shape=(1, 4, 4))

    class Mixing(Residual):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    class Drawing(Residual):
        def __init__(self):
            super().__init__()
            self.noise = Noise()

        def forward(self, x):
            return super().forward(self.noise(x))

    for kind in (Mixing, Drawing):
        with pytest.raises(ValueError, match="other logits when another is added to its batch, or every time"):
            route(kind(), ["body"], 2, input_shape=(1, 4, 4))

    spoilt = Residual()
    nn.init.constant_(spoilt.stem.weight, torch.nan)
    with pytest.raises(ValueError, match="the module gives nan for normal numbers"):
        route(spoilt, ["body"], 2, input_shape=(1, 4, 4))

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


class StochasticDepth(nn.Module):
    """As torchvision has it: the batch is asked for its size, and a branch is taken while training."""

    def __init__(self, drop):
        super().__init__()
        self.drop = drop

    def forward(self, x):
        if not self.training or self.drop == 0.0:
            return x
        kept = torch.empty([x.shape[0]] + [1] * (x.ndim - 1)).bernoulli_(1 - self.drop)
        return x * kept / (1 - self.drop)


class InverseBottleneck(nn.Module):
    """A block of a ConvNeXt."""

    def __init__(self, width, drop):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.block = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.5))
        self.depth = StochasticDepth(drop)

    def forward(self, x):
        result = self.scale * self.block(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        result = self.depth(result)
        result += x
        return result


class Deep(nn.Module):
    def __init__(self, drop=0.5):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 2, 2), InverseBottleneck(4, drop), InverseBottleneck(4, drop))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


@pytest.mark.parametrize("layers", [["head"], ["features.1"], ["features.1.block.3", "features.2.depthwise"]])
def test_submodules_may_ask_whether_they_are_trained(layers):
    module = Deep().eval()
    network = route(module, layers, 2, input_shape=(1, 8, 8))
    images, choices = torch.randn(64, 1, 8, 8), [torch.zeros(64, dtype=torch.int64)] * len(layers)
    torch.testing.assert_close(routed(network.eval(), images, choices).exits[0].logits, module(images))
    logits = [routed(network.train(), images, choices).exits[0].logits for _ in range(2)]
    assert not torch.equal(*logits), "stochastic depth is on in training"


def test_layers_that_give_something_else_than_rows_are_refused_at_the_call():
    class Recurrent(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.rnn, self.head = kind(8, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x):
            y, _ = self.rnn(x.flatten(1, 2))
            return self.head(y[:, -1])

    class Counting(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0], len(x)

    class Summing(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0], self.bias_hh_l0

    for kind in (Counting, Summing):
        with pytest.raises(ValueError, match=rf"layer 'rnn' \({kind.__name__}\) must give tensors .* got a tuple: put"):
            route(Recurrent(kind), ["rnn"], 2, input_shape=(1, 8, 8))
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        module = Recurrent(kind).eval()
        network = route(module, ["head"], 2, input_shape=(1, 8, 8)).eval()
        gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
        assert network.stem_macs == 8 * gates * (8 * 5 + 5 * 5)
        images = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(
            routed(network, images, [torch.zeros(2, dtype=torch.int64)]).exits[0].logits, module(images)
        )


@pytest.mark.parametrize(
    "shape", [(3, 4, 4), (1, 1, 4, 4), (4, 4), (1, 4, 0), (1, 4, -1), (1, 4, 4.0), (1, 4, True), "148", 4]
)
def test_a_wrong_input_shape_is_refused_at_the_call(shape):
    message = r"expected input_shape=\(C, H, W\), three integers of at least 1, got "
    if shape == (3, 4, 4):
        message = r"takes no images of shape \(B, 3, 4, 4\): RuntimeError: .*; input_shape=\(C, H, W\) must be that of"
    with pytest.raises(ValueError, match=message):
        route(Residual(), ["head"], 2, input_shape=shape)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_modules_of_another_type_are_refused_at_the_call(kind):
    with pytest.raises(
        ValueError, match=rf"of torch.float32 parameters .* got stem.weight of {kind} on cpu: call .to\("
    ):
        route(Residual().to(kind), ["head"], 2, input_shape=(1, 4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, ["head"], 2), "takes a torch.nn.Module, got NoneType"),
        ((Residual, ["head"], 2), "takes a torch.nn.Module, got type"),
        ((Residual(), "head", 2), "layers must be a list of names of submodules, got 'head'"),
        ((Residual(), None, 2), "layers must be a list of names of submodules, got None"),
        ((Residual(), [1], 2), r"layers must be a list of names of submodules, got \[1\]"),
        ((Residual(), ["head", "head"], 2), "layers must name every layer once"),
        ((Residual(), ["head"], None), "num_blocks must be an integer of at least 1, got None"),
        ((Residual(), ["head"], True), "num_blocks must be an integer of at least 1, got True"),
        ((Residual(), ["head"], 2.0), "num_blocks must be an integer of at least 1, got 2.0"),
        ((Residual(), ["head"], [2, "2"]), r"one for each of the 1 sets of blocks, got \[2, '2'\]"),
        ((Residual(), ["head", "body"], [2, "2"]), "num_blocks must be an integer of at least 1, got '2'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        route(*arguments, input_shape=(1, 4, 4))


def test_numbers_of_numpy_are_numbers():
    network = route(Residual(), ["head"], np.int64(3), input_shape=np.array([1, 4, 4]))
    assert network.block_counts == (3,) and network.input_shape == (1, 4, 4)


def test_what_is_frozen_stays_frozen():
    module = Residual()
    module.middle.requires_grad_(False)
    module.body.weight.requires_grad_(False)
    module.norm.requires_grad_(False)
    network = route(module, LAYERS, 3, input_shape=(1, 4, 4))
    trains = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    blocks = {name: trains.pop(name) for name in list(trains) if name.startswith("banks.")}
    assert trains == {f"module.{name}": not name.startswith("norm") for name, _ in module.named_parameters()
                      if name.split(".")[0] in ("stem", "norm")}  # fmt: skip
    assert {name.split(".")[-1] for name, kept in blocks.items() if name.startswith("banks.0") and kept} == {"bias"}
    assert not any(kept for name, kept in blocks.items() if name.startswith("banks.1"))
    assert all(kept for name, kept in blocks.items() if name.startswith("banks.2"))


def test_tied_weights_are_not_parted():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    module[3].weight = module[1].weight
    with pytest.raises(ValueError, match="layer '1' shares parameters with '3.weight'"):
        route(module, ["1"], 2)


def test_layers_without_parameters_are_refused():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="layer '2' has no parameters: all its blocks would be the same"):
        route(module, ["1", "2"], 3, input_shape=(1, 2, 2))
