"""How the losses of a batch's tasks become one step of the blocks: gradient surgery, and weights by uncertainty."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from routing_gym.blocks import Embedding, PartlyUsed
from routing_gym.forms import check_form, check_optimizer
from routing_gym.tasks.checking import seed_number
from routing_gym.tasks.sampling import sent

Term = tuple[Tensor, Tensor, Tensor | None]
"""Weights and losses, `(r,)` each, of rows that left, and which these are; None for all."""


class TaskBalance(ABC):
    """What stands between the losses of tasks and the step that is taken on them."""

    keeps_graph = False
    """Whether `adjust` goes back through the graph again."""

    def __init__(self, num_tasks: int) -> None:
        self.num_tasks = num_tasks

    def objective(self, terms: Iterable[Term], importance: Tensor | None, task: Tensor) -> Tensor:
        """Loss of a batch, 0-dimensional, of `Optimization.terms`; `importance (B,)` weighs instances; None: alike."""
        # Products and no scattered sums, whose order nobody knows on a GPU.
        own = (task.unsqueeze(1) == torch.arange(self.num_tasks, device=task.device)).to(torch.get_default_dtype())
        shares = own.sum(0) if importance is None else importance @ own
        losses = [(weight * loss) @ (own if rows is None else own[rows]) for weight, loss, rows in terms]
        whole = shares.sum()
        return self.join(sum(losses[1:], start=losses[0]) / whole, shares / whole, task)

    @abstractmethod
    def join(self, losses: Tensor, shares: Tensor, task: Tensor) -> Tensor:
        """Loss of a batch, 0-dimensional.

        Each of the T `losses` is a task's part in the mean over the batch, which is their sum; of the T `shares`, whose
        sum is 1, each is a task's part in its weight.
        """

    def factors(self, task: Tensor) -> Tensor:
        """What losses of tasks `(B,)` are multiplied by, `(B,)`, without graph."""
        return torch.ones_like(task, dtype=torch.get_default_dtype())

    def forget(self) -> None:
        """Forget a batch that was given up, or trained on."""
        return None

    def adjust(self, parameters: Sequence[nn.Parameter]) -> None:
        """Change the gradients of the objective, once there are any."""
        return None

    def step(self, rate: float) -> None:
        """Take a step of one's own beside the blocks', at their learning rate."""
        return None

    def seed(self, seed: int) -> None:
        """Start random numbers over from a seed."""
        return None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """State from which to go on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; a `ValueError`, and nothing has changed, where it is of another form."""


class PCGrad(TaskBalance):
    """Projects conflicting gradients of tasks, "gradient surgery" (Yu et al. 2020, Algorithm 1).

    The gradient of each task in the batch is projected off those of the others, in random order, wherever the two
    point apart (their product is negative); the sum of what is left is the gradient of the step. A task's loss is its
    part of the mean over the batch, so that tasks in which no gradients conflict are trained as without it.

    Gradients are over shared parameters, as in the paper: pieces, slices of a stack or whole parameters, of which at
    least two tasks in the batch have a gradient that is not zero everywhere; there a task that does not use one has
    zeros. What one task alone has a gradient of, and what auxiliary losses add, stays as it is. As every projection
    adds a positive multiple of one task's gradient, the sum is one of tasks' gradients by weights of at least 1.
    """

    keeps_graph = True

    def __init__(self, network: nn.Module, num_tasks: int, seed: int) -> None:
        super().__init__(num_tasks)
        self.generator = torch.Generator()
        self.seed(seed)
        owners = [part for part in network.modules() if isinstance(part, PartlyUsed)]
        owned = [of for owner in owners for part in owner.parts() for of in part]
        self._stacks = {of.parameter for of in owned if of.index is not None}
        self._losses: Tensor | None = None
        self._tasks: list[int] = []

    def join(self, losses: Tensor, shares: Tensor, task: Tensor) -> Tensor:
        """Mean over the batch."""
        # On a GPU nobody knows which tasks are there: the others have gradients of zero.
        self._tasks = task.unique().tolist() if task.is_cpu else list(range(self.num_tasks))
        self._losses = losses
        return losses.sum()

    @torch.no_grad()
    def adjust(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the sum of the tasks' gradients by the sum of those that were projected."""
        losses, self._losses, tasks = self._losses, None, self._tasks
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if losses is None or not losses.requires_grad or len(tasks) < 2 or not trained:
            return
        chance = torch.rand(self.num_tasks, self.num_tasks, generator=self.generator, device="cpu")
        order = chance[tasks][:, tasks].argsort(1)
        found = []
        each = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
        for number in tasks:
            again = number != tasks[-1]
            found.append(torch.autograd.grad(losses, trained, each[number], retain_graph=again, allow_unused=True))
        gram, shared = losses.new_zeros(len(tasks), len(tasks), dtype=torch.float64), []
        for parameter, grads in zip(trained, zip(*found, strict=True), strict=True):
            if sum(grad is not None for grad in grads) < 2:
                continue
            pieces = len(parameter) if parameter in self._stacks else 1
            rows = torch.stack([_rows(grad, parameter, pieces) for grad in grads])
            rows *= rows.ne(0).any(2).sum(0).ge(2).unsqueeze(1)  # 0 in pieces that are not shared
            rows = rows.flatten(1)
            gram += rows @ rows.t()
            shared.append((parameter, rows))
        more = surgery_weights(gram, sent(order, losses.device)) - 1
        for parameter, rows in shared:
            grad = parameter.grad
            assert grad is not None
            added = (more.to(rows.dtype) @ rows).view_as(parameter)
            parameter.grad = (grad.to_dense() if grad.is_sparse else grad).add_(added)

    def forget(self) -> None:
        """Forget the losses of tasks."""
        self._losses = None

    def seed(self, seed: int) -> None:
        """Start the order of projections over from a seed."""
        self.generator.manual_seed(seed_number("seed", seed))

    def state_dict(self) -> dict[str, Any]:
        """State of the random numbers that the order of projections comes from."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with saved random numbers."""
        check_form(state, self.state_dict(), "blocks.balance")
        try:
            self.generator.set_state(state["generator"])
        except RuntimeError as error:
            raise ValueError(f"blocks.balance.generator: {error}") from error


def surgery_weights(gram: Tensor, order: Tensor) -> Tensor:
    """Weights `(T,)` by which the sum of tasks' gradients is that of their projections (Yu et al. 2020, Algorithm 1).

    Args:
        gram: Products `(T, T)` of the gradients g_i.
        order: `(T, T)` int64: by row i the tasks in the order in which g_i is projected off them; i itself is skipped.
    """
    rows = torch.arange(len(gram), device=gram.device)
    mix = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)  # g_i^PC = Σ_k mix[i, k] g_k
    for other in order.unbind(1):
        product, norm = (mix * gram[other]).sum(1), gram.diagonal()[other]
        projected = (other != rows) & (norm > 0)
        mix[rows, other] -= torch.where(projected, product.clamp(max=0) / norm, 0.0)
    return mix.sum(0)


def _rows(grad: Tensor | None, like: Tensor, pieces: int) -> Tensor:
    """Gradient of a parameter by pieces, `(pieces, n)`; zeros where there is none."""
    if grad is None:
        return torch.zeros_like(like).reshape(pieces, -1)
    return (grad.to_dense() if grad.is_sparse else grad).reshape(pieces, -1)


class Uncertainty(TaskBalance):
    """Weighs the losses of tasks by learned uncertainty (Kendall et al. 2018, Eq. 10, the part of classification).

    Σ_t n_t / B (exp(-s_t) L_t + s_t / 2), with L_t the mean loss of the n_t instances of task t in a batch of B: the
    paper's L_t / σ_t² + log σ_t in terms of s_t = log σ_t², as a mean over instances instead of a sum over tasks, so
    that it begins as the mean that is trained on without it. Of a loss L_t that stays the best s_t is log 2 L_t.

    Attributes:
        log_variance: s, 0 at first, trained by an optimiser of the blocks' kind and rate, without decay.
    """

    def __init__(
        self, num_tasks: int, device: torch.device, build: Callable[[nn.Module], torch.optim.Optimizer]
    ) -> None:
        super().__init__(num_tasks)
        self.log_variance = Embedding(torch.zeros(num_tasks, device=device))
        self.optimizer = build(self.log_variance)

    def join(self, losses: Tensor, shares: Tensor, task: Tensor) -> Tensor:
        """Mean over the batch, weighed."""
        own = self.log_variance
        own.note_use(task)
        return torch.dot(own.weight.neg().exp(), losses) + torch.dot(shares, own.weight) / 2

    def factors(self, task: Tensor) -> Tensor:
        """exp(-s) of every task."""
        return self.log_variance.weight.detach().neg().exp().index_select(0, task)

    def forget(self) -> None:
        """Forget the gradient of s, and which tasks there were."""
        self.log_variance.weight.grad = self.log_variance.used = None

    def step(self, rate: float) -> None:
        """Move s."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Copies of s and of its optimiser's state."""
        own = {"log_variance": self.log_variance.weight.detach(), "optimizer": self.optimizer.state_dict()}
        return copy.deepcopy(own)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with saved s, by the options of the optimiser there is."""
        check_form(state, {**self.state_dict(), "optimizer": dict}, "blocks.balance")
        check_optimizer(state["optimizer"], self.optimizer, "blocks.balance.optimizer")
        options = [dict(group) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        for group, ours in zip(self.optimizer.param_groups, options, strict=True):
            group.update(ours)
        with torch.no_grad():
            self.log_variance.weight.copy_(state["log_variance"])
