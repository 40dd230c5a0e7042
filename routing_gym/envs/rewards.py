"""The collaboration reward's memory (Rosenbaum et al. 2018, section 3.1.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from routing_gym.networks import Action, claim

FinalReward = Callable[[Tensor, Tensor], Tensor]
"""`(loss (r,), correct (r,)) -> (r,)`: cross-entropy, and 1 or 0 for right or wrong, of the rows that leave."""

FINAL_REWARDS: dict[str, FinalReward] = {
    "correctness": lambda loss, correct: 2 * correct - 1,
    "negative-loss": lambda loss, correct: -loss,
}


def register_reward(name: str, reward: FinalReward) -> None:
    """Make a final reward known under a name, for `final_reward=name`.

    Raises:
        ValueError: The name belongs to another one.
    """
    claim(FINAL_REWARDS, "final reward", name, reward)


class RunningShare:
    """How much of the past went to each choice: one running average per (decision, choice) over all that decided.

    Fed with ones for what was chosen it gives the historical frequency of a block, fed with a policy's probabilities
    its average historical probability. Where m tensors choose, their choices are counted together.

    Args:
        num_decisions: N.
        num_choices: A.
        device: Where to count.
    """

    def __init__(self, num_decisions: int, num_choices: int, device: torch.device) -> None:
        # One row more, for instances that have left: it stays empty.
        self.total = torch.zeros(num_decisions + 1, num_choices, dtype=torch.float64, device=device)

    def of(self, decision: Tensor, choice: Tensor, choosing: Tensor) -> Tensor:
        """Return `(B,)`: the share of each row's choice in all that was decided at its decision, 0 before anything was.

        Args:
            decision: `(B,)` int64.
            choice: `(B,)` or `(B, M)` int64.
            choosing: `(B, M)` bool: which tensors chose; the mean over them is returned, 0 where none did.
        """
        share = (self.total / self.total.sum(-1, keepdim=True).clamp(min=1e-12)).to(torch.get_default_dtype())
        shares = share[decision].gather(1, choice.view(len(choice), -1)) * choosing
        return shares.sum(1) / choosing.sum(1).clamp(min=1)

    def count_choices(self, decision: Tensor, choice: Tensor, choosing: Tensor) -> None:
        """Add the choices of the tensors that chose; arguments as of `of`."""
        choice = choice.view(len(choice), -1)
        place = (decision.unsqueeze(1).expand(choice.shape), choice)
        # index_put, because index_add is not the same twice on a GPU
        self.total.index_put_(place, choosing.to(self.total.dtype), accumulate=True)

    def count_probabilities(self, decision: Tensor, probabilities: Tensor, choosing: Tensor) -> None:
        """Add the probabilities, `(B, A)` or `(B, M, A)`, of the tensors that chose."""
        each = probabilities.detach().to(self.total.dtype).view(len(decision), -1, self.total.shape[1])
        self.total.index_put_((decision,), (each * choosing.unsqueeze(-1)).sum(1), accumulate=True)


@dataclasses.dataclass(frozen=True)
class ActionReward:
    """What an action itself earns: minus the price of its MACs, plus rho for a choice that has often been taken.

    Attributes:
        priced: Whether multiply-accumulates cost anything, whatever the prices of the instances are.
        rho: Weight of the collaboration reward.
        collaboration: `"frequency"`, counted here; `"probability"` is added by the agents, who alone know theirs.
        frequency: What has been taken so far.
    """

    priced: bool
    rho: float
    collaboration: str
    frequency: RunningShare

    @property
    def counts(self) -> bool:
        """Whether choices are counted."""
        return bool(self.rho) and self.collaboration == "frequency"

    def of(self, at: Tensor, choosing: Tensor | None, action: Action, spent: Tensor, price: Tensor) -> Tensor:
        """Return `(B,)`: the reward of each row, 0 where it had left; the choices are counted.

        Args:
            at: `(B,)` int64, the decision of each row.
            choosing: `(B, M)` bool: which tensors chose; needed where choices are counted.
            action: What was done.
            spent: `(B,)` multiply-accumulates of the action.
            price: `(B,)` cost of one of them.
        """
        reward = torch.zeros_like(spent)
        if self.priced:
            reward = reward - price * spent.detach()
        if self.counts:
            assert isinstance(action, Tensor) and choosing is not None
            reward = reward + self.rho * self.frequency.of(at, action, choosing)
            self.frequency.count_choices(at, action, choosing)
        return reward
