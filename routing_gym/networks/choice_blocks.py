"""Choice blocks of an architecture search cell (Bender et al. 2018): the operations, and the inputs to choose from."""

from __future__ import annotations

from torch import Tensor, nn

from routing_gym.blocks import ModuleBlocks

OPERATIONS = (
    "separable 3x3",
    "separable 5x5",
    "separable 7x7",
    "1x7 then 7x1",
    "max-pool 3x3",
    "average-pool 3x3",
    "identity",
)
"""What the choices of an operation decision are, in their order."""


def make_operations(filters: int) -> list[nn.Module]:
    """Build the seven operations of a choice block, for `(B, filters, H, W)`, which is also what they give."""
    return [
        *(nn.Sequential(*_separable(filters, size), *_separable(filters, size)) for size in (3, 5, 7)),
        nn.Sequential(*rectified_conv(filters, filters, (1, 7)), *rectified_conv(filters, filters, (7, 1))),
        nn.Sequential(nn.MaxPool2d(3, 1, padding=1), *rectified_conv(filters, filters)),
        nn.Sequential(nn.AvgPool2d(3, 1, padding=1, count_include_pad=False), *rectified_conv(filters, filters)),
        nn.Identity(),
    ]


def rectified_conv(inputs: int, outputs: int, size: tuple[int, int] = (1, 1)) -> nn.Sequential:
    """Build ReLU, a convolution that keeps the image's size, and batch norm."""
    padding = (size[0] // 2, size[1] // 2)
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(inputs, outputs, size, padding=padding, bias=False), nn.BatchNorm2d(outputs)
    )


def _separable(filters: int, size: int) -> nn.Sequential:
    """Build ReLU, a convolution of each channel alone, and one across channels, each with batch norm."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(filters, filters, size, padding=size // 2, groups=filters, bias=False),
        nn.BatchNorm2d(filters),
        nn.Conv2d(filters, filters, 1, bias=False),
        nn.BatchNorm2d(filters),
    )


def make_inputs(count: int, filters: int, size: tuple[int, int]) -> ModuleBlocks:
    """Build a choice of several tensors `(B, count, filters, H, W)`, each behind a 1x1 convolution of its own.

    With all of them and equal weights this is the 1x1 convolution of the tensors joined along their channels.
    """
    convs = (OfOne(number, *rectified_conv(filters, filters)) for number in range(count))
    return ModuleBlocks(convs, (count, filters, *size))


class OfOne(nn.Sequential):
    """Layers that read one of several tensors `(B, n, C, H, W)`.

    Args:
        number: Which.
        layers: What runs on it.
    """

    def __init__(self, number: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.number = number

    def forward(self, tensors: Tensor) -> Tensor:
        """Return what the layers make of it."""
        return super().forward(tensors[:, self.number])
