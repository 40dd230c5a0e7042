"""Training the function blocks: one backward pass, one step of their optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.envs.routes import Routes, replayed_actions
from routing_gym.networks import Exit, RoutedNetwork
from routing_gym.tasks import MultiTaskDataset

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number. The step was not taken: the blocks are as they were before it."""


class BlocksTrainer:
    """Owns the optimiser of a network's parameters.

    Args:
        network: The network to train.
        optimizer: One of `OPTIMIZERS`.
        learning_rate: Step size.

    Attributes:
        optimizer: May be replaced by any optimiser over the network's parameters.
        steps: How many steps have been taken.
    """

    def __init__(self, network: nn.Module, optimizer: str, learning_rate: float) -> None:
        self.network = network
        self.optimizer = OPTIMIZERS[optimizer](network.parameters(), lr=learning_rate)
        self.steps = 0

    def step(self, loss: Tensor, before_step: Callable[[], None] | None = None, doubtful: Tensor | None = None) -> None:
        """Take one step.

        Args:
            loss: 0-dimensional, with graph.
            before_step: Called between the backward pass and the step: sees and may change the gradients.
            doubtful: 0-dimensional bool: some action of this batch was not allowed. Read here, once per batch.

        Raises:
            TrainingDivergedError: The loss is not finite, or the batch is doubtful.
        """
        value = loss.detach()
        failed = ~value.isfinite() if doubtful is None else ~value.isfinite() | doubtful
        if bool(failed):
            finite = bool(value.isfinite())
            what = "an action was out of range, masked or not finite" if finite else f"the loss is {float(value)}"
            raise TrainingDivergedError(
                f"training stopped before step {self.steps + 1} of the blocks: {what}; the blocks are unchanged"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if before_step is not None:
            before_step()
        self.optimizer.step()
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the network's parameters and of the optimiser's state."""
        return {
            "network": {key: value.clone() for key, value in self.network.state_dict().items()},
            "optimizer_name": type(self.optimizer).__name__,
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put saved parameters into the network and go on with the saved optimiser, its learning rate included.

        Raises:
            ValueError: The state is of another network or optimiser. Nothing has changed then.
        """
        ours, saved = self.network.state_dict(), state["network"]
        for key in sorted(ours.keys() | saved.keys()):
            there, here = (tuple(part[key].shape) if key in part else None for part in (saved, ours))
            if there != here:
                raise ValueError(f"this is the state of another network: {key} has shape {there}, here {here}")
        name = type(self.optimizer).__name__
        if state["optimizer_name"] != name:
            raise ValueError(f"the blocks were trained by {state['optimizer_name']}, here the optimizer is {name}")
        self.network.load_state_dict(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]


def exit_loss(exit: Exit, label: Tensor) -> Tensor:
    """Return the cross-entropy of the rows of an exit, `(r,)`; `label` is of the whole batch."""
    own = label if exit.rows is None else label.index_select(0, exit.rows)
    return functional.cross_entropy(exit.logits, own, reduction="none")


def replay(
    network: RoutedNetwork,
    dataset: MultiTaskDataset,
    routes: Routes,
    trainer: BlocksTrainer,
    doubtful: Tensor | None = None,
) -> None:
    """Run recorded routes again in train mode, as one batch, take a step on their loss, and leave eval mode behind."""
    network.train()
    try:
        with torch.enable_grad():
            pixels = dataset.pixels(routes.instance, routes.augmentation)
            state = network.start(pixels, dataset.task[routes.instance], instance=routes.instance, price=routes.price)
            for action in replayed_actions(routes):
                state = network.advance(state, action)
            label = dataset.label[routes.instance]
            losses = [(exit.weight * exit_loss(exit, label)).sum() for exit in state.exits]
            trainer.step(torch.stack(losses).sum() / len(routes), doubtful=doubtful)
    finally:
        network.eval()
