"""Multiply-accumulates of every layer of torch.nn that holds parameters, against numbers worked by hand."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from routing_gym.blocks import LinearBlocks, ModuleBlocks, count_macs

L, D, H = 7, 6, 5  # time steps, features, hidden units
SEQUENCE, ROW, IMAGE = torch.zeros(1, L, D), torch.zeros(1, D), torch.zeros(1, 4, 9, 8)
PROJECTIONS, PRODUCTS = 4 * L * D * D, 2 * L * L * D  # of self-attention
FEED_FORWARD = 2 * L * D * 10
NUMBERS = torch.zeros(1, 3, dtype=torch.int64)


def batched(kind, **options):
    return kind(D, H, batch_first=True, **options)


def attention(**options):
    return nn.MultiheadAttention(D, 2, batch_first=True, **options)


LAYERS = {
    "linear": (nn.Linear(D, H), (ROW,), D * H),
    "linear on a sequence, no bias": (nn.Linear(D, H, bias=False), (SEQUENCE,), L * D * H),
    "bilinear": (nn.Bilinear(D, L, H), (ROW, torch.zeros(1, L)), D * L * H),
    "conv 1d": (nn.Conv1d(D, H, 3, padding=1), (torch.zeros(1, D, L),), L * 3 * D * H),
    "conv 2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (IMAGE,), 5 * 4 * 9 * 4 * 6),
    "conv 2d in groups": (nn.Conv2d(4, 6, (1, 3), groups=2), (IMAGE,), 9 * 6 * 3 * 2 * 6),
    "conv 3d": (nn.Conv3d(2, 4, 3), (torch.zeros(1, 2, 5, 4, 3),), 3 * 2 * 1 * 27 * 2 * 4),
    "transposed conv 1d": (nn.ConvTranspose1d(D, H, 3, stride=2), (torch.zeros(1, D, L),), L * 3 * D * H),
    "transposed conv 2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (IMAGE,), 72 * 9 * 2 * 6),
    "transposed conv 3d": (nn.ConvTranspose3d(2, 4, 3), (torch.zeros(1, 2, 5, 4, 3),), 60 * 27 * 2 * 4),
    "rnn": (batched(nn.RNN), (SEQUENCE,), L * (D * H + H * H)),
    "gru": (batched(nn.GRU), (SEQUENCE,), L * 3 * (D * H + H * H)),
    "lstm": (batched(nn.LSTM), (SEQUENCE,), L * 4 * (D * H + H * H)),
    "lstm, time first, no bias": (nn.LSTM(D, H, bias=False), (torch.zeros(L, 1, D),), L * 4 * (D * H + H * H)),
    "lstm both ways, two layers": (
        batched(nn.LSTM, bidirectional=True, num_layers=2),
        (SEQUENCE,),
        2 * L * 4 * (D * H + H * H) + 2 * L * 4 * (2 * H * H + H * H),
    ),
    "gru both ways, two layers": (
        batched(nn.GRU, bidirectional=True, num_layers=2),
        (SEQUENCE,),
        2 * L * 3 * (D * H + H * H) + 2 * L * 3 * (2 * H * H + H * H),
    ),
    "lstm with projection": (batched(nn.LSTM, proj_size=3), (SEQUENCE,), L * (4 * (D * H + 3 * H) + 3 * H)),
    "rnn cell": (nn.RNNCell(D, H), (ROW,), D * H + H * H),
    "gru cell": (nn.GRUCell(D, H), (ROW,), 3 * (D * H + H * H)),
    "lstm cell": (nn.LSTMCell(D, H), (ROW,), 4 * (D * H + H * H)),
    "attention": (attention(), (SEQUENCE,) * 3, PROJECTIONS + PRODUCTS),
    "attention to others": (
        attention(kdim=4, vdim=3),
        (SEQUENCE, torch.zeros(1, 9, 4), torch.zeros(1, 9, 3)),
        2 * L * D * D + 9 * 4 * D + 9 * 3 * D + 2 * L * 9 * D,
    ),
    "encoder layer": (
        nn.TransformerEncoderLayer(D, 2, 10, batch_first=True),
        (SEQUENCE,),
        PROJECTIONS + PRODUCTS + FEED_FORWARD,
    ),
    "encoder": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 2, 10, batch_first=True), 3, enable_nested_tensor=False),
        (SEQUENCE,),
        3 * (PROJECTIONS + PRODUCTS + FEED_FORWARD),
    ),
    "decoder layer": (
        nn.TransformerDecoderLayer(D, 2, 10, batch_first=True),
        (SEQUENCE, SEQUENCE),
        2 * (PROJECTIONS + PRODUCTS) + FEED_FORWARD,
    ),
    "embedding": (nn.Embedding(9, D), (NUMBERS,), 0),
    "embedding bag": (nn.EmbeddingBag(9, D), (NUMBERS,), 0),
    "batch norm": (nn.BatchNorm2d(4), (IMAGE,), 0),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), (IMAGE,), 0),
    "group norm": (nn.GroupNorm(2, 4), (IMAGE,), 0),
    "layer norm of two axes": (nn.LayerNorm((L, D)), (SEQUENCE,), 0),
    "rms norm of two axes": (nn.RMSNorm((L, D)), (SEQUENCE,), 0),
    "prelu": (nn.PReLU(4), (IMAGE,), 0),
    "stacked linear blocks": (LinearBlocks(3, D, H), (ROW, torch.tensor([1])), D * H),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_costs_what_is_counted_by_hand_and_nothing_warns(name):
    module, inputs, macs = LAYERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "LSTM with projections")  # PyTorch's own
        assert count_macs(module, *inputs) == macs
    assert module.training and torch.backends.mha.get_fastpath_enabled()


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from([nn.RNN, nn.GRU, nn.LSTM]),
    inputs=st.integers(1, 5),
    hidden=st.integers(1, 5),
    layers=st.integers(1, 3),
    both=st.booleans(),
    steps=st.integers(1, 6),
)
def test_recurrent_layers_of_any_form(kind, inputs, hidden, layers, both, steps):
    module = kind(inputs, hidden, layers, bidirectional=both, batch_first=True)
    matrices = sum(parameter.numel() for parameter in module.parameters() if parameter.ndim == 2)
    assert count_macs(module, torch.zeros(1, steps, inputs)) == steps * matrices


def test_what_multiplies_and_cannot_be_counted_is_named():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(D, H))

        def forward(self, x):
            return (x.unsqueeze(-1) * self.weight).sum(-2)

    class Scale(Product):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, D, 1))

        def forward(self, x):
            return x * self.weight[..., 0]

    with pytest.warns(UserWarning, match=r"2\.0 \(Product\) holds a matrix of parameters, but no multiply-accumulate"):
        assert count_macs(nn.Sequential(nn.Linear(D, D), Scale(), nn.Sequential(Product())), ROW) == D * D
    unused = nn.Sequential(nn.Linear(D, D))
    unused[0].never = Product()
    assert count_macs(unused, ROW) == D * D
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(D, D))
    assert count_macs(nn.Sequential(normed, nn.Linear(D, D)), ROW) == 2 * D * D  # and nobody is warned


class Repeats(nn.Module):
    """Calls a layer as often as it is told."""

    def __init__(self, times, options=None):
        super().__init__()
        self.layer, self.times, self.options = nn.Linear(D, D), times, options

    def forward(self, x):
        CALLS.append(self)
        for _ in range(self.times):
            x = self.layer(x)
        return x


CALLS = []


def test_blocks_of_one_bank_that_are_alike_are_run_once():
    CALLS.clear()
    blocks = ModuleBlocks([Repeats(1), Repeats(2), Repeats(2), Repeats(1)], (D,))
    assert blocks.macs == tuple(D * D * times for times in (1, 2, 2, 1)) and len(CALLS) == 2
    ModuleBlocks([Repeats(1)], (D,))
    assert len(CALLS) == 3, "another bank asks again: the code may be another by now"
    ModuleBlocks([Repeats(1, object()), Repeats(1, object())], (D,))
    assert len(CALLS) == 5, "nobody knows what an object holds"
    ModuleBlocks([Repeats(1, {"a": [1]}), Repeats(1, {"a": [2]}), Repeats(1, {"a": [1]})], (D,))
    assert len(CALLS) == 7


@pytest.mark.parametrize(
    ("modules", "macs"),
    [
        ([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=2)], [144, 72, 72]),
        ([nn.MaxPool2d(3, 1), nn.AvgPool2d(3, 1), nn.Conv2d(4, 4, 3, bias=False)], [0, 0, 144]),
        ([nn.Conv2d(4, 4, (1, 3), padding=(0, 0)), nn.Conv2d(4, 4, (1, 3), padding=0)], [48, 48]),
    ],
)
def test_modules_of_like_parameters_and_unlike_cost(modules, macs):
    pixels = 1 if modules[0].kernel_size in (3, (3, 3)) else 3
    for _ in range(2):
        assert ModuleBlocks(modules, (4, 3, 3)).macs == tuple(float(cost * pixels) for cost in macs)
    single = ModuleBlocks(modules, (4, 3, 4))
    assert single.macs == tuple(count_macs(module, torch.zeros(1, 4, 3, 4)) for module in modules)


def test_a_hook_is_part_of_what_a_block_is_like():
    plain, hooked = nn.Linear(D, D), nn.Linear(D, D)
    hooked.register_forward_hook(lambda module, inputs, output: module.weight @ output.squeeze(0))
    assert [ModuleBlocks([block], (D,)).macs for block in (plain, hooked)] == [(D * D,), (2.0 * D * D,)]


class Products(nn.Module):
    """Products of a matrix and vectors or of batches, with a sum: PyTorch's counter knows none of them."""

    def __init__(self):
        super().__init__()
        self.matrix, self.stack = nn.Parameter(torch.zeros(H, D)), nn.Parameter(torch.zeros(3, D, H))

    def forward(self, x):
        first = torch.addmv(torch.zeros(H), self.matrix, x[0])
        summed = torch.addbmm(torch.zeros(1, H), x.expand(3, 1, D), self.stack)
        return first + summed[0] + torch.vdot(x[0], x[0])


def test_products_with_a_sum_are_counted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count_macs(Products(), ROW) == H * D + 3 * D * H + D
