"""What one decision of a routed network is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

EXIT = -1
"""In `Decision.next`: the choice leads out of the network."""

Mixing = Literal["activation", "outcome"]


@dataclasses.dataclass(frozen=True)
class Decision:
    """A place in a routed network where the way on is chosen.

    Attributes:
        name: Name, for pictures and messages.
        macs: Multiply-accumulates of one row by each choice: all that runs until the next decision or the exit.
        next: For each choice the number of the decision it leads to, or `EXIT`.
        mixing: What weights mean. `"activation"`: they mix the outputs of the choices, and all choices lead to the
            same place. `"outcome"`: they share the instance out among the places the choices lead to.
        m: Number of tensors that arrive here, each of which chooses (an m x n gate); 1 for an ordinary decision.
        width: Width of the observation here.
    """

    name: str
    macs: tuple[float, ...]
    next: tuple[int, ...]
    mixing: Mixing = "activation"
    m: int = 1
    width: int = 1

    @property
    def n(self) -> int:
        """Number of choices."""
        return len(self.next)


def check_decisions(decisions: tuple[Decision, ...]) -> None:
    """Refuse decisions that do not form a routed network.

    Raises:
        ValueError: Names the decision, what was expected and what was found.
    """
    if not decisions:
        raise ValueError("a routed network needs at least one decision")
    for number, decision in enumerate(decisions):
        where = f"decision {number} ({decision.name!r})"
        if decision.mixing not in ("activation", "outcome"):
            raise ValueError(f"{where}: mixing must be 'activation' or 'outcome', got {decision.mixing!r}")
        if decision.n < 2 and decision.mixing == "outcome":
            raise ValueError(f"{where}: a place with a single way on is no decision")
        if decision.n < 1 or decision.m < 1 or decision.width < 1:
            raise ValueError(
                f"{where}: choices, tensors and width must be at least 1, got {decision.n}, {decision.m}, "
                f"{decision.width}"
            )
        if len(decision.macs) != decision.n:
            raise ValueError(f"{where}: needs one cost per choice ({decision.n}), got {len(decision.macs)}")
        for target in decision.next:
            if target != EXIT and not number < target < len(decisions):
                raise ValueError(
                    f"{where}: a choice leads to EXIT or to a later decision (below {len(decisions)}), got {target}"
                )
        if decision.mixing == "activation" and len(set(decision.next)) != 1:
            raise ValueError(
                f"{where}: activations can be mixed only where all choices lead to one place, got {decision.next}"
            )
        if decision.mixing == "outcome" and decision.m != 1:
            raise ValueError(f"{where}: outcomes are shared out for one tensor, got m = {decision.m}")


def ways_out(decisions: Sequence[Decision]) -> list[tuple[int, int]]:
    """Pairs `(decision, choice)` by which instances leave a network."""
    return [
        (number, choice)
        for number, decision in enumerate(decisions)
        # All choices of a decision that mixes activations lead to the same place.
        for choice, target in enumerate(decision.next if decision.mixing == "outcome" else decision.next[:1])
        if target == EXIT
    ]


def legal_table(decisions: tuple[Decision, ...], masks: Tensor | None) -> Tensor:
    """Legal choices `(N + 1, M, A)` bool at each decision; the last row, for instances that have left, is True.

    Args:
        decisions: N decisions.
        masks: `(N, M, A)` bool, further restrictions; None for none.

    Raises:
        ValueError: The masks are of the wrong form or leave a tensor no choice.
    """
    tensors, choices = max(d.m for d in decisions), max(d.n for d in decisions)
    # On the host whatever the default device: its values are looked at here.
    table = torch.zeros(len(decisions) + 1, tensors, choices, dtype=torch.bool, device="cpu")
    if masks is not None and (masks.dtype != torch.bool or masks.shape != table[:-1].shape):
        raise ValueError(
            f"masks must be bool of shape {tuple(table[:-1].shape)}, got {masks.dtype} of {tuple(masks.shape)}"
        )
    for number, decision in enumerate(decisions):
        table[number, :, : decision.n] = True
        if masks is not None:
            table[number, : decision.m] &= masks[number, : decision.m]
        table[number, decision.m :] = True  # tensors that do not exist here: every choice legal and ignored
        empty = (~table[number].any(-1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"decision {number} ({decision.name!r}): the mask leaves tensor {empty[0]} no choice")
    table[-1] = True
    return table
