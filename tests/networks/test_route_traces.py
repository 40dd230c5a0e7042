"""What a trace of a user's module does not see, and weights that are computed."""

import itertools
import threading
import types

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization

from routing_gym.networks import route


class InTurn(nn.Module):
    def __init__(self, of=lambda layer: layer):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 8), of(nn.Linear(8, 8)), nn.Linear(8, 3)

    def forward(self, x):
        return self.c(self.b(self.a(x.flatten(1))))


class Reading(InTurn):
    def forward(self, x):
        return super().forward(x) + self.c(nn.functional.linear(self.a(x.flatten(1)), self.b.weight))


class Masked(InTurn):
    def forward(self, x, mask=None):
        return super().forward(x) if mask is None else x


class Flagged(InTurn):
    def forward(self, x, feat=False):
        return x if feat else super().forward(x)


def hooked(before):
    module = InTurn()
    if before:
        module.register_forward_pre_hook(lambda _, given: (given[0] * 3,))
    else:
        module.register_forward_hook(lambda *_: _[2] * 3)
    return module


def put_on():
    module = InTurn()
    module.forward = types.MethodType(lambda self, x: 2 * InTurn.forward(self, x), module)
    return module


def locked():
    module = InTurn()
    module.lock = threading.Lock()
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hooked(before=True), "hooks on it, and a forward that was put on it"),
        (lambda: hooked(before=False), "hooks on it, and a forward that was put on it"),
        (put_on, "hooks on it, and a forward that was put on it"),
        (Reading, "b.weight is read without a call of layer 'b'"),
        (locked, "the module cannot be copied, as blocks are: cannot pickle"),
        (Masked, "it must take images alone: put it into a module that leaves out mask"),
        (Flagged, "it must take images alone: put it into a module that leaves out feat"),
        (lambda: torch.compile(InTurn()), "compiled by torch.compile: route it before that"),
        (lambda: torch.jit.script(InTurn()), "compiled by torch.jit: route it before that"),
    ],
)
def test_what_a_trace_does_not_see_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        route(make(), ["b"], 3, input_shape=(1, 4, 4))


@pytest.mark.parametrize("of", [spectral_norm, weight_norm, orthogonal])
def test_weights_that_are_computed_are_drawn_anew_too(of):
    module = InTurn(of).eval()
    network = route(module, ["b"], 3, input_shape=(1, 4, 4)).eval()
    images = torch.randn(5, 1, 4, 4)
    blocks = [network.static_route([block], 0)[0] for block in range(3)]
    torch.testing.assert_close(blocks[0](images), module(images))
    weights = [block.get_submodule("b").weight.detach() for block in blocks]
    assert all(float((one - other).abs().max()) > 0.1 for one, other in itertools.combinations(weights, 2))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_weights_that_cannot_be_computed_back_are_refused():
    module = InTurn()
    register_parametrization(module.b, "weight", Doubled())
    with pytest.raises(
        ValueError, match="weight of a .* cannot be drawn anew for further blocks .* its parametrization"
    ):
        route(module, ["b"], 3, input_shape=(1, 4, 4))
