"""Converting parts of a module into subclasses of what they are, a user's own classes included.

As in `torch.nn.SyncBatchNorm.convert_sync_batchnorm` parameters, buffers and their names stay; so does the part itself,
which only changes its class, as PyTorch's lazy modules do. Converted are batch norms, which a single row may reach, and
1x1 convolutions with a stride.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import handle_torch_function, has_torch_function

from routing_gym.ranks import ALONE, Ranks

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Converted(nn.Module):
    """Base of what parts are converted into; stands in front of their own class, `plain`."""

    plain: ClassVar[type[nn.Module]]

    @classmethod
    def convert(cls, part: nn.Module) -> Self:
        """Change the class of a part; return the part."""
        classes: tuple[Any, Any] = cls, type(part)
        part.__class__ = _subclass(*classes)
        assert isinstance(part, cls)
        return part

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, type(self).__bases__, self.__getstate__()


@cache
def _subclass(kind: Any, plain: Any) -> Any:
    # Of the module of the plain class: traces by torch.fx take the one for a leaf if they do so with the other.
    return type(f"Routed{plain.__name__}", (kind, plain), {"plain": plain, "__module__": plain.__module__})


def _empty(kind: Any, plain: Any) -> nn.Module:
    """Module without a state, for unpickling."""
    cls = _subclass(kind, plain)
    return cls.__new__(cls)


class SmallGroupNorm(Converted):
    """Batch norm that uses its running statistics for inputs of under two values per channel.

    Routing hands a block whatever rows chose it, possibly a single one, of which no variance can be taken.
    """

    ranks: Ranks = ALONE
    """Processes whose rows are normalised together, see `share_statistics`."""
    of_blocks = False
    """Whether it has the rows of a block alone, of which there may be none in this process, or in all."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `(B, C, ...)`."""
        if self.training and self.ranks.count > 1:
            return self._together(x)
        if not self.training or x.numel() // max(x.shape[1], 1) >= 2:
            return super().forward(x)
        self.training = False
        try:
            return super().forward(x)
        finally:
            self.training = True

    def _together(self, x: Tensor) -> Tensor:
        """Rows normalised by the mean and deviation of those of all ranks."""
        norm: Any = self
        axes, form = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        rows = x.new_tensor([x.numel() / x.shape[1]])
        sums, count = self.ranks.total(torch.cat([x.sum(axes), rows])).split([x.shape[1], 1])
        if self.of_blocks and count < 2:  # as in one process
            return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        mean = sums / count
        centred = x - mean.view(form)
        variance = self.ranks.total(centred.square().sum(axes)) / count
        if norm.track_running_stats:
            norm.num_batches_tracked += 1
            rate = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            with torch.no_grad():
                norm.running_mean.lerp_(mean, rate)
                norm.running_var.lerp_(variance * count / (count - 1), rate)
        y = centred * (variance + norm.eps).rsqrt().view(form)
        return y * norm.weight.view(form) + norm.bias.view(form) if norm.affine else y


def share_statistics(module: nn.Module, ranks: Ranks, of_blocks: Collection[nn.Parameter]) -> None:
    """Let batch norms have the statistics of the rows of all ranks.

    Refused, by a `ValueError`, where one belongs to a block whose bank cannot run it on no rows: a rank of which nobody
    chose it would keep the others waiting.
    """
    banks: list[Any] = [part for part in module.modules() if getattr(part, "runs_on_no_rows", False)]
    able = {norm for bank in banks for norm in bank.modules()}
    for name, part in module.named_modules():
        if isinstance(part, SmallGroupNorm):
            part.of_blocks = any(parameter in of_blocks for parameter in part.parameters())
            if part.of_blocks and part not in able:
                raise ValueError(f"{name} normalises the rows of a block: such networks train in one process only")
            part.ranks = ranks
    for bank in banks:
        bank.ranks = ranks


def allow_small_groups(module: ModuleT) -> ModuleT:
    """The module, in which every batch norm has become a `SmallGroupNorm`."""
    for part in module.modules():
        if isinstance(part, _BatchNorm) and not isinstance(part, SmallGroupNorm | LazyModuleMixin):
            SmallGroupNorm.convert(part)
    return module


def static_copy(module: ModuleT) -> ModuleT:
    """Copy of a module with plain batch norms."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        if isinstance(part, SmallGroupNorm):
            part.__class__ = part.plain  # type: ignore[assignment]
    return copied


class SubsampledConv2d(Converted):
    """1x1 convolution with a stride, done as one of stride 1 of a subsampled input.

    Both give the same numbers. On processors without AVX-512 the backward pass of the former, of images with their
    channels last in memory, writes beyond its buffers (oneDNN's `jit_1x1:avx2`), which ends the process some time.
    """

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
        lazy = isinstance(part, LazyModuleMixin)
        if isinstance(part, nn.Conv2d) and not lazy and _applies(part.kernel_size, part.stride, part.padding):
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
