"""Choice blocks of an architecture search cell (Bender et al. 2018): the operations, and the inputs to choose from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from routing_gym.blocks import OwnedParameter, allow_small_groups, group
from routing_gym.networks import actions
from routing_gym.networks.actions import Action

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


class ChosenInputs(nn.Module):
    """Mixes tensors of one shape, each behind a 1x1 convolution of its own.

    With all of them and equal weights this is the 1x1 convolution of the tensors joined along their channels. Only the
    rows and tensors that are used are convolved.

    Args:
        count: How many tensors there are to choose from, n.
        filters: Channels of each, and of what comes out.
    """

    def __init__(self, count: int, filters: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(rectified_conv(filters, filters) for _ in range(count))
        allow_small_groups(self)

    def forward(self, inputs: Sequence[Tensor], action: Action, *, every: bool = False) -> Tensor:
        """Mixture `(r, filters, H, W)`; zeros where a row has no weight at all.

        Args:
            inputs: n tensors of its shape.
            action: Integers `(r,)`, one input per row; or weights `(r, n)`; or a sparse pair.
            every: Run everything, so that weights of 0 have a gradient too.
        """
        if isinstance(action, Tensor) and not action.is_floating_point():
            return self._one_each(inputs, action)
        weights = actions.dense(action, len(self.convs))
        used = torch.ones_like(weights, dtype=torch.bool) if every else weights.detach() != 0
        # Input by input, the rows that use it; the host is asked once.
        numbers, rows = used.t().nonzero().unbind(1)
        counts = torch.bincount(numbers, minlength=len(self.convs)).tolist()
        mixed: Tensor | None = None
        for number, (x, chosen) in enumerate(zip(inputs, rows.split(counts), strict=True)):
            if not len(chosen):
                continue
            whole = len(chosen) == len(x)
            y = self.convs[number](x if whole else x.index_select(0, chosen))
            y = y * weights[:, number].index_select(0, chosen).view(-1, 1, 1, 1)
            y = y if whole else y.new_zeros(inputs[0].shape).index_add_(0, chosen, y)
            mixed = y if mixed is None else mixed + y
        return torch.zeros_like(inputs[0]) if mixed is None else mixed

    def parameters_of(self, choice: int) -> list[OwnedParameter]:
        """Return the parameters of the convolution of an input."""
        return [OwnedParameter(parameter) for parameter in self.convs[choice].parameters()]

    def _one_each(self, inputs: Sequence[Tensor], choice: Tensor) -> Tensor:
        groups = group(choice, len(self.convs))
        counts = groups.counts
        most = max(range(len(counts)), key=counts.__getitem__)
        if counts[most] == len(choice):
            return self.convs[most](inputs[most])  # nothing to move
        pieces = zip(self.convs, inputs, groups.order.split(counts), strict=True)
        y = torch.cat([conv(x.index_select(0, rows)) for conv, x, rows in pieces if len(rows)])
        return y.index_select(0, groups.inverse)
