"""Convolutions of kernel 1x1 with a stride, done as a subsampling and a convolution of stride 1.

Both give the same numbers. On processors without AVX-512 the backward pass of the former, images with their channels
last in memory, writes beyond its buffers (oneDNN's `jit_1x1:avx2`), which ends the process sooner or later.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import handle_torch_function, has_torch_function

from routing_gym.blocks.converted import Converted, ModuleT


class SubsampledConv2d(Converted):
    """1x1 convolution of stride 1 of an input subsampled by the stride it had before."""

    subsampling: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs `(B, C, H, W)`."""
        return super().forward(_subsampled(x, self.subsampling))

    def extra_repr(self) -> str:
        """Convolution and subsampling in the module's printout."""
        return f"{super().extra_repr()}, subsampling={self.subsampling}"


def subsample_first(module: ModuleT) -> ModuleT:
    """The module, in which every 1x1 convolution with a stride has become a `SubsampledConv2d`."""
    for part in module.modules():
        if not isinstance(part, nn.Conv2d) or isinstance(part, LazyModuleMixin):
            continue
        if _applies(part.kernel_size, part.stride, part.padding):
            stride, part.stride = part.stride, (1, 1)
            SubsampledConv2d.convert(part).subsampling = stride
    return module


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """As `torch.nn.functional.conv2d`, subsampling first where the kernel is 1x1."""
    if has_torch_function((x, weight)):  # a trace comes by, to which this is one operation
        return handle_torch_function(conv2d, (x, weight), x, weight, bias, stride, padding, dilation, groups)
    if _applies(weight.shape[2:], stride, padding):
        x, stride = _subsampled(x, _pair(stride)), 1
    return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _applies(kernel: Sequence[int], stride: int | Sequence[int], padding: str | int | Sequence[int]) -> bool:
    unpadded = padding == "valid" if isinstance(padding, str) else _pair(padding) == (0, 0)
    return tuple(kernel) == (1, 1) and _pair(stride) != (1, 1) and unpadded


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _subsampled(x: Tensor, stride: Sequence[int]) -> Tensor:
    if has_torch_function((x,)):
        return handle_torch_function(_subsampled, (x,), x, stride)
    taken = x[..., :: stride[0], :: stride[1]]
    last = torch.channels_last
    # Of what is left of an odd number of pixels nobody can tell that channels were last in memory.
    return taken.contiguous(memory_format=last) if x.ndim == 4 and x.is_contiguous(memory_format=last) else taken
