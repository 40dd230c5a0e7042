"""What becomes of the instances of a batch: loss, correctness, final reward, and where they left."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.envs.config import EnvConfig
from routing_gym.envs.training import batch_loss
from routing_gym.envs.trajectory import SettledExit
from routing_gym.networks import Exit


class Outcome:
    """Adds up, exit by exit, how the instances of a batch fared.

    Args:
        label: `(B,)` int64.
        config: Says what the final reward is.
        keep_graph: Keep the graph, and the exits with it: training needs them.

    Attributes:
        keep_exits: Whether exits are kept; without a graph only where somebody asks, since episodes that never end
            together would pile them up.
        exits: Where the instances left, as far as that is kept.
    """

    def __init__(self, label: Tensor, config: EnvConfig, keep_graph: bool) -> None:
        self.label, self.config, self.keep_graph = label, config, keep_graph
        self.keep_exits = keep_graph
        # One row for each of loss, correct and final_reward.
        self._fared = torch.zeros(3, len(label), dtype=torch.get_default_dtype(), device=label.device)
        self.exits: list[SettledExit] = []

    @property
    def loss(self) -> Tensor:
        """`(B,)` cross-entropy, weighted over exits, detached."""
        return self._fared[0]

    @property
    def correct(self) -> Tensor:
        """`(B,)` share of the instance that was classified right."""
        return self._fared[1]

    @property
    def final_reward(self) -> Tensor:
        """`(B,)`."""
        return self._fared[2]

    def settle(self, exits: tuple[Exit, ...]) -> None:
        """Work out what rows that have just left earn."""
        for exit in exits:
            label = self.label if exit.rows is None else self.label.index_select(0, exit.rows)
            with torch.set_grad_enabled(self.keep_graph):
                loss = functional.cross_entropy(exit.logits, label, reduction="none")
            value = loss.detach()
            correct = classified_right(exit.logits.detach(), label).to(value.dtype)
            fared = torch.stack([value, correct, self.config.final(value, correct).to(value.dtype)])
            fared.mul_(exit.weight.detach())
            # What was told about earlier steps stays as it was.
            self._fared = self._fared + fared if exit.rows is None else self._fared.index_add(1, exit.rows, fared)
            if self.keep_exits:
                self.exits.append(SettledExit(exit.decision, exit.choice, exit.rows, exit.logits, loss, exit.weight))

    def infos(self, macs: Tensor) -> dict[str, Tensor]:
        """Return what is told about instances that have left, `(B,)` each."""
        return {
            "loss": self.loss,
            "correct": self.correct,
            "macs": macs.detach(),
            "label": self.label,
            "final_reward": self.final_reward,
        }

    def block_loss(self) -> Tensor:
        """Return the mean over the batch of the cross-entropy, weighted over each instance's exits, with graph."""
        return batch_loss([exit.weight for exit in self.exits], [exit.loss for exit in self.exits], len(self.label))

    def restart(self, rows: Tensor, label: Tensor) -> None:
        """Forget some rows, which begin anew with other labels."""
        self.label = self.label.index_copy(0, rows, label)
        self._fared = self._fared.index_fill(1, rows, 0)
        dropped = torch.zeros(len(self.label), dtype=torch.bool, device=rows.device)
        dropped[rows] = True
        self.exits = [kept for kept in (_without(exit, dropped) for exit in self.exits) if kept is not None]


def classified_right(logits: Tensor, label: Tensor) -> Tensor:
    """Return `(r,)` bool: the label's logit is larger than all others; a tie counts as wrong, whatever the order."""
    own = label.unsqueeze(1)
    return logits.gather(1, own).squeeze(1) > logits.scatter(1, own, -torch.inf).amax(1)


def _without(exit: SettledExit, dropped: Tensor) -> SettledExit | None:
    """Take dropped rows out of an exit; None where nothing is left."""
    rows = torch.arange(len(dropped), device=dropped.device) if exit.rows is None else exit.rows
    kept = (~dropped[rows]).nonzero().flatten()
    if not len(kept):
        return None
    return dataclasses.replace(
        exit, rows=rows[kept], logits=exit.logits[kept], loss=exit.loss[kept], weight=exit.weight[kept]
    )
