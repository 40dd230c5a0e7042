"""Training the function blocks: one backward pass, one step of their optimiser."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from gymnasium.error import ResetNeeded
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks import SGD, Adam, AdamW, PartlyUsed, UsedOnly
from routing_gym.envs.balance import PCGrad, TaskBalance, Term, Uncertainty
from routing_gym.envs.gradients import exchange_gradients, finite_gradients
from routing_gym.envs.throughput import Throughput
from routing_gym.forms import check_form, check_optimizer
from routing_gym.networks import RoutedNetwork
from routing_gym.networks.state import Exit
from routing_gym.ranks import ALONE, Ranks

OPTIMIZERS: dict[str, Callable[..., UsedOnly]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}


def _in_steps(epoch: float, epochs: float | Sequence[float]) -> float:
    """0.1 to the number of steps that are behind: one every so many epochs, or one at each of several."""
    if isinstance(epochs, int | float):
        return 0.1 ** math.floor(round(epoch / epochs, 9))  # of floats, 0.3 / 0.1 is less than 3
    return 0.1 ** sum(epoch >= step for step in epochs)


SCHEDULES: dict[str, Callable[[float, Any], float]] = {
    "constant": lambda epoch, epochs: 1.0,
    "step": _in_steps,
    "halving": lambda epoch, epochs: 0.5 ** (epoch / epochs),
    "cosine": lambda epoch, epochs: 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs))),
}
"""Factor of the learning rate after some epochs; `epochs` are `schedule_epochs`."""


class TrainingDivergedError(RuntimeError):
    """A loss, a gradient or a weight is no longer a number. The step was not taken: the blocks are as before it."""


class Found(NamedTuple):
    """What a backward pass has found, 0-dimensional: a loss, and whether steps may be taken.

    `sound`: loss and gradients are finite; `allowed`: and so were the actions; `all`: and the gradients of others are.
    """

    loss: Tensor
    sound: Tensor
    allowed: Tensor
    all: Tensor


@dataclasses.dataclass(frozen=True)
class Optimization:
    """How blocks are trained: options of `EnvConfig` (its `seed`, too), and what the split has.

    Those are `epoch`, the instances of a pass, and `num_tasks`.
    """

    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    decayed: str
    schedule: str
    schedule_epochs: float | tuple[float, ...]
    epoch: int
    talr: bool
    block_gradient: str
    max_grad_norm: float | None
    label_smoothing: float
    class_weights: tuple[float, ...] | None
    task_weights: tuple[float, ...] | None
    task_balance: str | None
    num_tasks: int
    seed: int

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimiser of a network's parameters."""
        # Whole numbers are given, too, and a checkpoint says of what type its numbers are.
        options: dict[str, Any] = {"weight_decay": float(self.weight_decay), "decayed": self.decayed}
        if self.optimizer == "sgd":
            options["momentum"] = float(self.momentum)
        return OPTIMIZERS[self.optimizer](network, lr=float(self.learning_rate), **options)

    def rate(self, instances: int) -> float:
        """Learning rate after so many instances trained on."""
        return self.learning_rate * SCHEDULES[self.schedule](instances / self.epoch, self.schedule_epochs)

    def throughput(self, network: RoutedNetwork) -> Throughput | None:
        """What scales the gradients of blocks by how they are used; None where nothing does."""
        rows = self.block_gradient == "rows"
        return Throughput(network, rows=rows) if rows or self.talr else None

    def balance(self, network: RoutedNetwork) -> TaskBalance | None:
        """What joins the losses of tasks; None where they are summed, and nothing else is done."""
        if self.task_balance == "pcgrad":
            return PCGrad(network, self.num_tasks, self.seed)
        if self.task_balance == "uncertainty":
            build = dataclasses.replace(self, weight_decay=0.0).build
            return Uncertainty(self.num_tasks, network.costs.device, build)
        return None

    @property
    def spares(self) -> bool:
        """Whether there are instances that weigh nothing."""
        return 0 in (*(self.class_weights or ()), *(self.task_weights or ()))

    def importance(self, label: Tensor, task: Tensor) -> Tensor | None:
        """Weight `(B,)` of every instance, `class_weights[label] * task_weights[task]`; None where all weigh alike."""
        importance = None
        for weights, index in ((self.class_weights, label), (self.task_weights, task)):
            if weights is not None:
                factor = _on_device(tuple(weights), torch.get_default_dtype(), index.device)[index]
                importance = factor if importance is None else importance * factor
        return importance

    def loss(self, exits: Iterable[Exit], label: Tensor, task: Tensor) -> Tensor:
        """Loss of the blocks, 0-dimensional: mean over a batch of each instance's cross-entropy, weighted over exits.

        The mean is over the instances' `importance`, by label and task, `(B,)` int64 each; a `SettledExit` brings its
        cross-entropy along.
        """
        importance = self.importance(label, task)
        terms = [torch.dot(weight, loss) for weight, loss, _ in self.terms(exits, label, importance)]
        return sum(terms[1:], start=terms[0]) / (len(label) if importance is None else importance.sum())

    def terms(self, exits: Iterable[Exit], label: Tensor, importance: Tensor | None) -> Iterator[Term]:
        """Yield weight and loss, `(r,)` each, of the rows that left at every exit, and which these are."""
        for exit in exits:
            loss, weight, rows = getattr(exit, "loss", None), exit.weight, exit.rows
            if loss is None or self.label_smoothing:
                own = label if rows is None else label.index_select(0, rows)
                smoothing = self.label_smoothing
                loss = functional.cross_entropy(exit.logits, own, reduction="none", label_smoothing=smoothing)
            if importance is not None:
                weight = weight * (importance if rows is None else importance.index_select(0, rows))
            yield weight, loss, rows


@functools.cache
def _on_device(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights as a tensor that is made once: a copy to a GPU in every batch would make it wait."""
    return torch.tensor(weights, dtype=dtype, device=device)


OF_OPTIMIZATION = tuple(
    field.name for field in dataclasses.fields(Optimization) if field.name not in ("epoch", "num_tasks", "seed")
)
"""Fields that are options of the environment by which the training goes on from a checkpoint."""


class BlocksTrainer:
    """Owns the optimiser of a network's parameters.

    Attributes:
        instances: Number of instances trained on, once for each time, since the schedule began.
        carried: Those before, by which the time of the data, which never goes back, is ahead of the schedule's.
        throughput: Of every choice, where gradients are scaled by it.
        balance: What joins the losses of tasks, where they are not simply summed.
        runs: How many runs' rows a batch holds, each with parameters of its own: a mean over all is a mean of each,
            divided by so many, and so would its gradient be (`Population`).
    """

    runs = 1

    def __init__(self, network: RoutedNetwork, optimization: Optimization, ranks: Ranks = ALONE) -> None:
        self.network, self.optimization, self.ranks = network, optimization, ranks
        self.instances = self.carried = 0
        self._batch = network.batch
        self.throughput, self.balance = optimization.throughput(network), optimization.balance(network)
        # The running statistics of batch norm: all that a forward pass changes.
        saved = network.state_dict(keep_vars=True)
        self._statistics = {name: value for name, value in saved.items() if not isinstance(value, nn.Parameter)}
        self._partly_used = [part for part in network.modules() if isinstance(part, PartlyUsed)]

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Optimiser of the blocks, made when first needed; any over the network's parameters may take its place."""
        return self.optimization.build(self.network)

    def loss(self, exits: Iterable[Exit], label: Tensor, task: Tensor) -> Tensor:
        """Loss of a whole batch that is to be stepped on, see `Optimization.loss`.

        Where no instance of the batch weighs anything there is nothing to be stepped on: it is 0, without a graph, so
        that neither momentum nor decay moves what no other loss reaches. Who has such weights waits for a GPU to say.
        """
        importance = self.optimization.importance(label, task)
        if self.throughput is not None:
            self.throughput.weigh(importance, task)
        if self.balance is not None:
            self.balance.forget()
        if importance is not None and self.optimization.spares and not bool(importance.any()):
            return torch.zeros_like(importance[0])
        if self.balance is not None:
            return self.balance.objective(self.optimization.terms(exits, label, importance), importance, task)
        return self.optimization.loss(exits, label, task)

    def step(
        self,
        loss: Tensor,
        instances: int,
        noted: Mapping[str, Tensor],
        before_step: Callable[[], Tensor | None] | None = None,
        doubtful: Tensor | None = None,
    ) -> None:
        """Take one step: `backward`, `check`, `apply`.

        Args:
            loss: 0-dimensional, with graph.
            instances: Number of instances it is of.
            noted: Running statistics to go back to, what `begin` has given.
            before_step: Called between the backward pass and the step: sees and may change the gradients; may return
                whether those of others, which step then, are finite, a 0-dimensional bool.
            doubtful: 0-dimensional bool: something of this batch was not allowed.

        Raises:
            TrainingDivergedError: The loss or a gradient is not finite, or the batch is doubtful; all read at once.
            ResetNeeded: Another environment has begun a batch on this network: which blocks this one used is forgotten.
        """
        if self._batch is not self.network.batch:
            raise ResetNeeded("another environment over this network has begun a batch since: call reset()")
        self.check(self.backward(loss, before_step, doubtful), noted)
        self.apply(noted)
        self.instances += instances

    def backward(
        self,
        loss: Tensor,
        before_step: Callable[[], Tensor | None] | None = None,
        doubtful: Tensor | None = None,
    ) -> Found:
        """Find gradients; arguments as of `step`."""
        trained = self._trained
        for parameter in trained:
            parameter.grad = None
        if loss.requires_grad:  # else all that this batch used is frozen, and whoever decides learns without a gradient
            again = self.balance is not None and self.balance.keeps_graph
            loss.backward(loss.new_full((), self.runs), retain_graph=again)
            if self.balance is not None:
                self.balance.adjust(trained)
        others = None if before_step is None else before_step()
        if self.ranks.count > 1:
            doubtful = exchange_gradients(self.network, trained, self.ranks, loss.detach().isfinite(), doubtful)
        if self.throughput is not None:
            self.throughput.scale()
        sound = finite_gradients(trained, loss.detach())
        allowed = sound if doubtful is None else sound & ~doubtful
        return Found(loss.detach(), sound, allowed, allowed if others is None else allowed & others)

    def check(self, found: Found, noted: Mapping[str, Tensor]) -> None:
        """Raise where gradients must not be applied, and put running statistics back; a GPU is waited for once."""
        if bool(found.all):
            return
        what = "an action was out of range, masked or not finite" if bool(found.sound) else "a gradient is not finite"
        if bool(found.allowed):
            what = "the agent's gradients are not finite"
        elif not bool(found.loss.isfinite()):
            what = f"the loss is {float(found.loss)}"
        for name, statistic in noted.items():
            self._statistics[name].copy_(statistic)
        self.optimizer.zero_grad(set_to_none=True)
        raise TrainingDivergedError(
            f"training of the blocks stopped after {self.instances} instances: {what}; the step was not taken"
        )

    def apply(self, noted: Mapping[str, Tensor]) -> None:
        """Take the step of the gradients there are."""
        if self.optimization.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, self.optimization.max_grad_norm)
        if self.optimization.schedule != "constant":
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate
        if self.network.dense_backward:
            self._restore_untaken(noted)
        self.optimizer.step()
        if self.balance is not None:
            self.balance.step(self.rate)

    def _restore_untaken(self, noted: Mapping[str, Tensor]) -> None:
        """Put the running statistics of modules back that have run only for the weights' sake."""
        if self.network.used is None:
            return
        taken: dict[nn.Parameter, bool] = {}
        for used, part in zip(self.network.used.tolist(), self.network.parts(), strict=True):
            for owned in part:
                taken[owned.parameter] = used or owned.index is not None or taken.get(owned.parameter, False)
        for name, module in self.network.named_modules():
            own = list(module.parameters(recurse=False))
            if own and not any(taken.get(parameter, True) for parameter in own):
                for buffer, _ in module.named_buffers(name, recurse=False):
                    self._statistics[buffer].copy_(noted[buffer])

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def passes(self) -> float:
        """Passes over the split of the blocks' training: the time that `MultiTaskDataset.during` means."""
        return (self.instances + self.carried) / self.optimization.epoch

    @property
    def rate(self) -> float:
        """The learning rate of the next step; a constant one is the optimiser's, which a checkpoint brings."""
        if self.optimization.schedule == "constant":
            return self.optimizer.param_groups[0]["lr"]
        return self.optimization.rate(self.instances)

    def seed(self, seed: int) -> None:
        """Start over the random numbers that the blocks' training draws."""
        if self.balance is not None:
            self.balance.seed(seed)

    def begin(self) -> dict[str, Tensor]:
        """Get ready for a batch; copies of the running statistics, so that one that fails leaves no trace."""
        for part in self._partly_used:
            if part.used is not None:
                part.used = None
        self._batch = self.network.batch = object()
        if self.throughput is not None:
            self.throughput.begin()
        return {name: statistic.clone() for name, statistic in self._statistics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Copies of the network's parameters and of the optimiser's state."""
        return {
            "network": {key: value.clone() for key, value in self.network.state_dict().items()},
            "optimizer_name": type(self.optimizer).__name__,
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "instances": self.instances,
            "carried": self.carried,
            "balance": {} if self.balance is None else self.balance.state_dict(),
            "optimization": {option: getattr(self.optimization, option) for option in OF_OPTIMIZATION},
        }

    def load_state_dict(self, state: dict[str, Any], optimization: Optimization) -> None:
        """Put saved parameters into the network and go on with the saved optimiser, from here on by `optimization`.

        Raises:
            ValueError: The state is of another network or optimiser. Nothing has changed then.
        """
        state = {"carried": 0, **state}  # of a time that did not know it
        check_form(state, {**self.state_dict(), "optimizer": dict, "optimization": dict, "balance": dict}, "blocks")
        name = type(self.optimizer).__name__
        if state["optimizer_name"] != name:
            raise ValueError(f"the blocks were trained by {state['optimizer_name']}, here the optimizer is {name}")
        check_optimizer(state["optimizer"], self.optimizer, "blocks.optimizer")
        balance, before = optimization.balance(self.network), state["optimization"]
        if balance is not None and optimization.task_balance == before["task_balance"]:
            balance.load_state_dict(state["balance"])
        self.balance = balance
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.instances, self.carried = state["instances"], state["carried"]
        self.optimization = optimization
        new = {name for name in before if getattr(optimization, name) != before[name]}
        for number, group in enumerate(self.optimizer.param_groups):
            spared = {"weight_decay"} if number and optimization.decayed == "weights" else set()
            group |= {name: getattr(optimization, name) for name in (new & {"momentum", "weight_decay"}) - spared}
            if new & {"learning_rate", "schedule", "schedule_epochs"}:
                group["lr"] = optimization.rate(self.instances)
        self.throughput = optimization.throughput(self.network)

    def take_back(self, state: dict[str, Any]) -> None:
        """Go back to a saved state, its schedule included, at the time that it is for the data."""
        now = self.instances + self.carried
        self.load_state_dict(state, self.optimization)
        self.carried = now - self.instances
