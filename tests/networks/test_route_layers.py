"""Routing layers of transformers, recurrent networks, and stand-ins of ConvNeXt and EfficientNet."""

import gymnasium
import pytest
import torch
from stepping import changed_by, routed, step
from torch import nn
from torch.nn import functional
from toys import Residual

from routing_gym.agents import needs
from routing_gym.blocks import count_macs
from routing_gym.networks import route

SHAPE, ROWS = (1, 8, 8), 5


class Transformer(nn.Module):
    """Rows of pixels are tokens."""

    def __init__(self, norm_first=False, masked=False, batch_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, "gelu", batch_first=batch_first, norm_first=norm_first)
        norm = nn.LayerNorm(8) if norm_first else None
        self.encoder = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)
        self.head, self.batch_first = nn.Linear(8, 3), batch_first
        mask = nn.Transformer.generate_square_subsequent_mask(8) if masked else None
        self.register_buffer("mask", mask)

    def forward(self, x):
        x = x.flatten(1, 2)
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.encoder(x) if self.mask is None else self.encoder(x, mask=self.mask)
        return self.head(x.mean(1 if self.batch_first else 0))


class Recurrent(nn.Module):
    """Rows of pixels are steps; read out are the last step and the last layer's state."""

    def __init__(self, kind, **options):
        super().__init__()
        self.first, self.rnn = nn.Linear(8, 6), kind(6, 5, **{"batch_first": True, **options})
        self.head = nn.Linear(10 * (2 if self.rnn.bidirectional else 1), 3)

    def forward(self, x):
        y, state = self.rnn(self.first(x.flatten(1, 2)))
        state = state[0] if isinstance(self.rnn, nn.LSTM) else state
        last = state[-2:].transpose(0, 1).flatten(1) if self.rnn.bidirectional else state[-1]
        return self.head(torch.cat([y[:, -1], last], 1))


class Handed(nn.Module):
    """A recurrent layer whose state begins the next one."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = (nn.LSTM(8, 4, batch_first=True) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = x.flatten(1, 2)
        return self.head(self.decoder(x, self.encoder(x)[1])[0].mean(1))


class Norm2d(nn.LayerNorm):
    """Layer norm over the channels of images."""

    def forward(self, x):
        x = functional.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Depth(nn.Module):
    """Stochastic depth, which is off where `drop` is 0."""

    def __init__(self, drop=0.0):
        super().__init__()
        self.drop = drop

    def forward(self, x):
        if not self.training or self.drop == 0.0:
            return x
        return x * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.drop) / (1 - self.drop)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale, self.depth = nn.Parameter(0.1 * torch.ones(width)), Depth()

    def forward(self, x):
        y = self.narrow(functional.gelu(self.wide(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return x + self.depth((self.scale * y).permute(0, 3, 1, 2))


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 2, 2), Norm2d(4))
        smaller = nn.Sequential(Norm2d(4), nn.Conv2d(4, 6, 2, 2))
        self.blocks = nn.Sequential(ConvNeXtBlock(4), smaller, ConvNeXtBlock(6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))


class SqueezeExcite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.pool, self.down, self.up = nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(functional.silu(self.down(self.pool(x)))))


class MBConv(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        wide = 4 * inputs
        self.expand = nn.Sequential(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU())
        depthwise = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(wide), nn.SiLU())
        self.squeeze = SqueezeExcite(wide)
        self.project = nn.Sequential(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.depth, self.same = Depth(), inputs == outputs and stride == 1

    def forward(self, x):
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + self.depth(y) if self.same else y


class EfficientNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.SiLU())
        self.blocks = nn.Sequential(MBConv(4, 4, 1), MBConv(4, 6, 2))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 3))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


FEED_FORWARD = ["encoder.layers.0.linear1", "encoder.layers.1.linear2"]
CASES = {  # layers, and the channels of their inputs, below 0 where these are the last axis
    "feed-forward": (Transformer, FEED_FORWARD, [-8, -16]),
    "feed-forward, norm first": (lambda: Transformer(True), FEED_FORWARD, [-8, -16]),
    "feed-forward, masked": (lambda: Transformer(masked=True), FEED_FORWARD, [-8, -16]),
    "encoder layers": (Transformer, ["encoder.layers.0", "encoder.layers.1"], [-8, -8]),
    "encoder layers, norm first": (lambda: Transformer(True), ["encoder.layers.1"], [-8]),
    "LSTM": (lambda: Recurrent(nn.LSTM), ["first", "rnn", "head"], [-8, -6, -10]),
    "GRU": (lambda: Recurrent(nn.GRU), ["rnn"], [-6]),
    "RNN": (lambda: Recurrent(nn.RNN), ["rnn"], [-6]),
    "two layers, both ways": (lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), ["rnn"], [-6]),
    "a state handed on": (Handed, ["encoder"], [-8]),
    "ConvNeXt blocks": (ConvNeXt, ["blocks.0", "blocks.1", "blocks.2", "head"], [4, 4, 6, -6]),
    "ConvNeXt layers": (
        ConvNeXt,
        ["stem.1", "blocks.0.depthwise", "blocks.2.norm", "blocks.2.narrow"],
        [4, 4, -6, -24],
    ),
    "around a shortcut": (Residual, ["body", "middle", "head"], [4, 4, 5]),
    "MBConv blocks": (EfficientNet, ["stem", "blocks.0", "blocks.1"], [1, 4, 4]),
    "MBConv layers": (
        EfficientNet,
        ["blocks.0.depthwise", "blocks.0.squeeze", "blocks.1.squeeze.up", "blocks.1.project"],
        [16, 16, 2, 16],
    ),
}


def made(case, num_blocks):
    torch.manual_seed(0)
    make, layers, channels = CASES[case]
    module = make()
    with torch.no_grad():
        for name, value in module.state_dict().items():  # so that norms and their statistics do something
            if value.is_floating_point() and name != "mask":
                value.add_(0.2 * torch.rand_like(value))
    network = route(module.eval(), layers, num_blocks, input_shape=SHAPE).eval()
    assert [decision.name for decision in network.decisions] == layers
    assert [decision.width for decision in network.decisions] == [*map(abs, channels)]
    return module, network


@pytest.mark.parametrize("case", CASES)
def test_with_one_block_it_is_the_module(case):
    """Logits, what was observed, multiply-accumulates, gradients, and a module with the same names again."""
    module, network = made(case, 1)
    inputs = []
    hooks = [module.get_submodule(name).register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
             for name in CASES[case][1]]  # fmt: skip
    images, alone = torch.randn(ROWS, *SHAPE), [torch.zeros(ROWS, dtype=torch.int64)] * len(network.decisions)
    expected, state = module(images), network.start(images, alone[0])
    for hook in hooks:
        hook.remove()
    for x, channels, choice in zip(inputs, CASES[case][2], alone, strict=True):
        seen = x.movedim(1 if channels > 0 else -1, 1).flatten(2).mean(2) if x.ndim > 2 else x
        torch.testing.assert_close(network.observe(state)[:, : abs(channels)], seen)
        state = step(network, state, choice)
    logits = state.exits[0].logits
    torch.testing.assert_close(logits, expected)
    assert set(state.macs.tolist()) == {count_macs(module, images[:1])}
    (static,) = network.static_route([0] * len(alone), 0)
    CASES[case][0]().load_state_dict(static.state_dict())
    torch.testing.assert_close(static.eval()(images), expected)
    for loss in (logits, expected):
        loss.square().sum().backward()
    square = sum(parameter.grad.square().sum() for parameter in module.parameters())
    torch.testing.assert_close(sum(parameter.grad.square().sum() for parameter in network.parameters()), square)


@pytest.mark.parametrize("case", CASES)
def test_each_row_runs_its_own_blocks_and_gradients_reach_no_others(case):
    """Row by row, the layers replaced by the chosen blocks; block 2 is nobody's."""
    module, network = made(case, 3)
    images, choices = torch.randn(ROWS, *SHAPE), [torch.tensor([0, 1, 1, 0, 1]).roll(i) for i in range(4)]
    choices = choices[: len(network.decisions)]
    logits = routed(network, images, choices).exits[0].logits
    for row in range(ROWS):
        (own,) = network.static_route([int(choice[row]) for choice in choices], 0)
        module.load_state_dict(own.state_dict())
        torch.testing.assert_close(logits[row : row + 1], module(images[row : row + 1]))
    logits.square().sum().backward()
    for number in range(len(choices)):
        for choice in range(3):
            parts = network.parameters_of(number, choice)
            reached = [part.grad is not None and bool(part.grad.any()) for part in parts]
            assert any(reached) == (choice < 2), (number, choice)


def test_outputs_and_states_are_mixed_by_their_weights():
    """What is read out is linear in them."""
    _, network = made("GRU", 2)
    images, weights = torch.randn(ROWS, *SHAPE), torch.rand(ROWS, 2).softmax(1)
    mixed = routed(network, images, [weights]).exits[0].logits
    alone = [routed(network, images, [torch.full((ROWS,), choice)]).exits[0].logits for choice in (0, 1)]
    torch.testing.assert_close(mixed, weights[:, :1] * alone[0] + weights[:, 1:] * alone[1])


def test_other_blocks_are_drawn_as_a_fresh_layer_is():
    """Attention draws its own projections, and begins with biases of 0."""
    _, network = made("encoder layers", 2)
    first, second = network.banks[0].blocks
    torch.manual_seed(0)
    own, fresh = second.self_attn, nn.TransformerEncoderLayer(8, 2, 16).self_attn
    assert not torch.equal(own.in_proj_weight, first.self_attn.in_proj_weight)
    assert own.in_proj_weight.abs().max() <= (6 / 32) ** 0.5 and fresh.in_proj_weight.abs().max() <= (6 / 32) ** 0.5
    assert not own.in_proj_bias.any() and not own.out_proj.bias.any() and not fresh.out_proj.bias.any()


@pytest.mark.parametrize("agent", ["wpl", "gumbel"])
@pytest.mark.parametrize("case", ["feed-forward", "LSTM"])
def test_agents_train_it(case, agent):
    data = {"num_tasks": 2, "num_classes": 3, "image_size": 8, "images_per_class": 10}
    network = made(case, 2)[1]
    env = gymnasium.make_vec(
        "routing_gym/SyntheticMTL-v0", network=network, num_envs=12, learning_rate=0.01, **data, **needs(agent)
    )
    assert changed_by(agent, env, 48) == {name for name, _ in network.named_parameters()}


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = x.flatten(1, 2)
        return self.head(self.attention(x, x, x)[0].mean(1))


@pytest.mark.parametrize(
    ("make", "layer", "message"),
    [
        (Transformer, "encoder.layers.0.self_attn", "called with its input and nothing else: put it into a module"),
        (Attending, "attention", "called with its input and nothing else: put it into a module"),
        (Attending, "attention.out_proj", "traced by torch.fx, .*: move what it cannot follow into a"),
        (Handed, "decoder", "called with its input and nothing else: put it into a module"),
        (lambda: Transformer(masked=True), "encoder.layers.0", "called with its input and nothing else"),
        (lambda: Transformer(batch_first=False), "encoder.layers.0", "sequences with their steps first, use batch_fi"),
    ],
)
def test_what_is_refused_says_what_to_do(make, layer, message):
    with pytest.raises(ValueError, match=message):
        route(make().eval(), [layer], 2, input_shape=SHAPE)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_steps_are_not_taken_for_rows_however_many_there_are(steps):
    with pytest.raises(ValueError, match="sequences with their steps first"):
        route(Transformer(batch_first=False).eval(), ["encoder.layers.0"], 2, input_shape=(1, steps, 8))
