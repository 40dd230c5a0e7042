"""What a layer of a user's module becomes: a bank of blocks of its kind."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from routing_gym.blocks import FunctionBlocks, LinearBlocks, ModuleBlocks, probe


class OfSeveral(nn.Module):
    """Layer that gives several tensors as one that gives `(B, F)`: theirs side by side, each flattened, rows first.

    Which axis has the rows, the second of a recurrent layer's state, is what two numbers of rows differ in.

    Args:
        layer: Called with one tensor.
        x: Rows of its input, two or more.

    Raises:
        ValueError: It gives something else than floating-point tensors with a row for each of x.
    """

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.parts: list[tuple[int, tuple[int, ...]]] = []
        both = [probe(layer, partial(layer, x[:rows])) for rows in (1, len(x))]
        for one, two in zip(*map(_leaves, both), strict=True):
            if not isinstance(one, Tensor) or not isinstance(two, Tensor) or not two.is_floating_point():
                raise ValueError
            unlike = [axis for axis, sizes in enumerate(zip(one.shape, two.shape, strict=True)) if len({*sizes}) > 1]
            if len(unlike) != 1 or two.shape[unlike[0]] != len(x):
                raise ValueError
            self.parts.append((unlike[0], tuple(one.movedim(unlike[0], 0).shape[1:])))
        places = iter(range(len(self.parts)))
        self.form = fx.node.map_aggregate(both[1], lambda _: next(places))

    def forward(self, x: Tensor) -> Tensor:
        """All that the layer gives, `(B, F)`."""
        parts = zip(_leaves(self.layer(x)), self.parts, strict=True)
        return torch.cat([part.movedim(axis, 0).flatten(1) for part, (axis, _) in parts], 1)

    def apart(self, y: Tensor) -> Any:
        """What the layer gives, made of `(B, F)`."""
        pieces = y.split([math.prod(shape) for _, shape in self.parts], 1)
        parts = zip(pieces, self.parts, strict=True)
        several = [piece.unflatten(1, shape).movedim(0, axis) for piece, (axis, shape) in parts]
        return fx.node.map_aggregate(self.form, lambda place: several[cast(int, place)])


def _leaves(value: Any) -> list[Any]:
    """What tuples and lists in one another hold, in order."""
    found: list[Any] = []
    fx.node.map_aggregate(value, found.append)
    return found


CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention, nn.LSTM, nn.GRU, nn.RNN)
CHANNELS_FIRST = (_ConvNd, _NormBase, nn.GroupNorm)


def channels_of(layer: nn.Module) -> int:
    """Axis of the channels in a layer's input, by the first of its parts that tells: 1, or -1."""
    for part in layer.modules():
        if isinstance(part, CHANNELS_FIRST):
            return 1
        if type(part) in CHANNELS_LAST:  # a subclass of LayerNorm may well turn images
            return -1
    return 1


def _draw_anew(module: nn.Module) -> None:
    """Draw first weights, of parts before what holds them, which may have a word on them."""
    for part in module.children():
        _draw_anew(part)
    for name in ("reset_parameters", "_reset_parameters"):  # the latter of PyTorch's attention
        if callable(reset := getattr(module, name, None)):
            with parametrize.cached():  # what is computed of other weights is kept while it is drawn
                computed = getattr(module, "parametrizations", {}) if parametrize.is_parametrized(module) else {}
                drawn = {weight: getattr(module, weight) for weight in computed}
                reset()
            for weight, value in drawn.items():
                _give(module, weight, value.detach())
            break


def _give(module: nn.Module, weight: str, value: Tensor) -> None:
    """Let a weight that is computed of others be a value."""
    try:
        setattr(module, weight, value)
    except (RuntimeError, NotImplementedError) as error:  # the parametrization has no `right_inverse`, or it refuses
        raise ValueError(
            f"{weight} of a {type(module).__name__} is computed of others, and cannot be drawn anew for further blocks "
            f"({error}): route the layer without its parametrization"
        ) from error


def blocks_like(layer: nn.Module, num_blocks: int, input_shape: tuple[int, ...]) -> FunctionBlocks:
    """Bank of k blocks of a layer's kind: the first with its weights, the others drawn anew."""
    if type(layer) is nn.Linear and layer.bias is not None and len(input_shape) == 1:
        linear = LinearBlocks(num_blocks, layer.in_features, layer.out_features)
        with torch.no_grad():
            linear.weight[0], linear.bias[0] = layer.weight.t(), layer.bias
        linear.weight.requires_grad_(layer.weight.requires_grad)
        linear.bias.requires_grad_(layer.bias.requires_grad)
        return linear
    copies = [copy.deepcopy(layer) for _ in range(num_blocks)]
    for block in copies[1:]:
        _draw_anew(block)
    return ModuleBlocks(copies, input_shape)
