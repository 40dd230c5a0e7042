"""Training the blocks for agents from outside: finished routes are run again, with a graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.envs.batch import batch_loss
from routing_gym.envs.routes import Routes
from routing_gym.envs.training import BlocksTrainer
from routing_gym.envs.turns import Manner, drive
from routing_gym.networks import RoutedNetwork
from routing_gym.tasks import MultiTaskDataset


class Replayer:
    """Keeps routes that have ended and trains the blocks on them, `batch` at a time, the oldest first."""

    def __init__(
        self,
        network: RoutedNetwork,
        dataset: MultiTaskDataset,
        trainer: BlocksTrainer,
        batch: int,
        precision: str = "float32",
    ) -> None:
        self.network, self.dataset, self.trainer, self.batch = network, dataset, trainer, batch
        self._manner = Manner(graph=True, precision=precision)
        self._waiting: list[Routes] = []

    def push(self, routes: Routes) -> None:
        """Add routes."""
        self._waiting.append(routes)

    def clear(self) -> None:
        """Give up all routes that have not been trained on."""
        self._waiting = []

    def train(self) -> None:
        """Take a step for every full batch there is."""
        while sum(map(len, self._waiting)) >= self.batch:
            routes = Routes.join(self._waiting)
            self._waiting = [routes.pick(slice(self.batch, None))]
            self._replay(routes.pick(slice(self.batch)))

    def _replay(self, routes: Routes) -> None:
        """Run routes again in train mode, as one batch, take a step on their loss, and leave eval mode behind."""
        self.network.train()
        noted = self.trainer.begin()
        try:
            with torch.enable_grad():
                pixels = self.dataset.pixels(routes.instance, routes.augmentation)
                task, label = self.dataset.task[routes.instance], self.dataset.label[routes.instance]
                with self._manner.forward_pass(task.device, graph=True):
                    state = self.network.start(pixels, task, instance=routes.instance, price=routes.price)
                # The action of every row turn by turn; rows whose route has ended get zeros.
                recorded = iter(routes.action[:, : int(routes.length.max())].unbind(1))
                exits: list[tuple[Tensor, Tensor]] = []
                for turn in drive(self.network, state, lambda seen: next(recorded), self._manner):
                    if self.trainer.throughput is not None:
                        self.trainer.throughput.note(turn)
                    for exit in turn.exits:
                        own = label if exit.rows is None else label.index_select(0, exit.rows)
                        exits.append((exit.weight, functional.cross_entropy(exit.logits, own, reduction="none")))
                self.trainer.step(batch_loss(exits, len(routes)), len(routes), noted)
        finally:
            self.network.eval()
