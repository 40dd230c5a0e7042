"""Parameters of the parts of a module, and which parts a batch has used."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class OwnedParameter:
    """A parameter that belongs to one choice as a whole, or, of a stack, its slice `index` along the first axis."""

    parameter: nn.Parameter
    index: int | None = None

    @property
    def value(self) -> Tensor:
        """The parameter, or its slice."""
        return self.parameter if self.index is None else self.parameter[self.index]

    @property
    def grad(self) -> Tensor | None:
        """Gradient of `value`, a view into the parameter's, or None where there is none."""
        grad = self.parameter.grad
        return grad if grad is None or self.index is None else grad[self.index]


class PartlyUsed(nn.Module):
    """Module in parts, of which a batch may use some only: the choices of a network, the readouts of its tasks.

    Whoever runs it notes what has been used; the optimisers of `routing_gym.blocks` then leave the rest alone. What
    belongs to two such modules, a network and one of its banks, has been used where both of them have been.

    Attributes:
        used: `(parts,)` bool, on the module's device: the parts used, with a graph, since the optimiser's last step;
            None, for all of them, where nobody has noted anything.
    """

    used: Tensor | None = None

    @property
    @abstractmethod
    def num_parts(self) -> int:
        """Number of parts."""

    @abstractmethod
    def parts(self) -> Sequence[Sequence[OwnedParameter]]:
        """Parameters of every part; one may belong to several, and is used if any of them is."""

    def note_use(self, part: Tensor, first: int = 0) -> None:
        """Note that parts have been used; without a graph nothing is learned, and nothing noted.

        They are numbers counted from part `first`, int64 of any shape; or bool, for so many parts from there on.
        """
        if not torch.is_grad_enabled():
            return
        if self.used is None:
            self.used = torch.zeros(self.num_parts, dtype=torch.bool, device=part.device)
        own = self.used[first:]
        if part.dtype == torch.bool:
            own[: len(part)] |= part
        else:
            own.index_fill_(0, part.flatten(), True)
