"""Experts of unlike architecture on images (Ramachandran and Le 2019), by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from routing_gym.blocks.modules import ModuleBlocks
from routing_gym.options import unknown_name

SQUARE = {"conv3": (3, 3), "conv5": (5, 5), "conv7": (7, 7)}
"""Kernels of the experts that have a square one."""

CHANNELS_PER_GROUP = 16
REDUCTION = 16


def double_expert(name: str, channels: int, middle: int) -> nn.Module:
    """Expert of the Omniglot networks (Ramachandran and Le 2019, section 4.2), by name.

    - `"conv3"`, `"conv5"`, `"conv7"`: two convolutions of that size, `middle` channels in between;
    - `"conv1x7"`: 1x7 and then 7x1, `channels` in between whatever `middle` is: it is one 7x7 convolution taken apart;
    - `"max-pool"`, `"average-pool"`: 3x3, stride 1; the average leaves out what lies beyond the edge;
    - `"identity"`; any other name is refused.

    "Each convolution and expert layer is followed by GroupNorm and ReLU" is read as: every convolution, and the mixture
    as a whole, which is the network's affair. Section 2.2 puts the nonlinearity inside the gate and around convolutions
    only, and in section 4.1 every expert ends in its own normalisation. Pooling and identity end in nothing.
    """
    if kernel := SQUARE.get(name):
        return nn.Sequential(_conv_norm_relu(channels, middle, kernel), _conv_norm_relu(middle, channels, kernel))
    if name == "conv1x7":
        return nn.Sequential(_conv_norm_relu(channels, channels, (1, 7)), _conv_norm_relu(channels, channels, (7, 1)))
    return _without_parameters(name, (*SQUARE, "conv1x7"))


def single_expert(name: str, channels: int) -> nn.Module:
    """Expert of the ResNet-50 variant (Ramachandran and Le 2019, section 4.2.2), by name.

    - `"conv3"`, `"conv5"`, `"conv7"`: one convolution;
    - `"conv1x7"`: 1x7, batch norm, ReLU, 7x1;
    - `"squeeze-excite"`;
    - `"max-pool"`, `"average-pool"`, `"identity"` as in `double_expert`.

    Convolutions end in nothing: they stand where a bottleneck has its 3x3 convolution, and the batch norm and ReLU
    behind it are the bottleneck's own, for all experts together.
    """
    if kernel := SQUARE.get(name):
        return _conv(channels, channels, kernel)
    if name == "conv1x7":
        wide, high = _conv(channels, channels, (1, 7)), _conv(channels, channels, (7, 1))
        return nn.Sequential(wide, nn.BatchNorm2d(channels), nn.ReLU(), high)
    if name == "squeeze-excite":
        return SqueezeExcite(channels)
    return _without_parameters(name, (*SQUARE, "conv1x7", "squeeze-excite"))


def image_bank(experts: Sequence[nn.Module], input_shape: Sequence[int]) -> ModuleBlocks:
    """Bank of experts that leave the shape `(C, H, W)` of an image as it is; their weights have the channels last.

    On a CPU 3x3 pooling is then ten times as fast, and convolutions of 48 channels are a tenth to two fifths faster.
    """
    turned = (expert.to(memory_format=torch.channels_last) for expert in experts)  # type: ignore[call-overload]
    return ModuleBlocks(turned, input_shape)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018): scales C channels by a network of their means, C -> C / 16 -> C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.scale = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Scaled `(B, C, H, W)`."""
        return x * self.scale(x.mean((2, 3))).unsqueeze(-1).unsqueeze(-1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 16 channels per group, as Wu and He (2018) have it.

    The paper does not say how many. Where 16 do not divide the channels the groups are the smallest ones above: 48
    channels are three groups, 24 are one.
    """
    groups = [n for n in range(1, channels + 1) if channels % n == 0 and channels // n >= CHANNELS_PER_GROUP]
    return nn.GroupNorm(max(groups, default=1), channels)


def _conv(inputs: int, outputs: int, kernel: tuple[int, int]) -> nn.Conv2d:
    # No bias: a normalisation follows.
    return nn.Conv2d(inputs, outputs, kernel, padding=(kernel[0] // 2, kernel[1] // 2), bias=False)


def _conv_norm_relu(inputs: int, outputs: int, kernel: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, kernel), group_norm(outputs), nn.ReLU())


def _without_parameters(name: str, others: Sequence[str]) -> nn.Module:
    known = {
        "max-pool": nn.MaxPool2d(3, stride=1, padding=1),
        "average-pool": nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
        "identity": nn.Identity(),
    }
    if name not in known:
        raise ValueError(unknown_name("expert", name, (*others, *known)))
    return known[name]
