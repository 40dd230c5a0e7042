"""Converting parts of a module into subclasses of what they are, a user's own classes included.

As in `torch.nn.SyncBatchNorm.convert_sync_batchnorm` parameters, buffers and their names stay; so does the part itself,
which only changes its class, as PyTorch's lazy modules do.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

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

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `(B, C, ...)`."""
        if not self.training or x.numel() // max(x.shape[1], 1) >= 2:
            return super().forward(x)
        self.training = False
        try:
            return super().forward(x)
        finally:
            self.training = True


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
