"""Evaluation of a router on a whole split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from routing_gym.blocks import eval_mode
from routing_gym.envs.batch import Trajectory, classified_right, rollout
from routing_gym.envs.routes import sizes
from routing_gym.envs.vector import RoutingVectorEnv, core_of
from routing_gym.networks import RoutedNetwork
from routing_gym.ranks import ALONE, Ranks
from routing_gym.tasks.checking import whole_number

EVALUATION_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results of a router on a whole split.

    Attributes:
        split: Name of the split.
        accuracy: Share of instances classified right, 0 to 1.
        task_accuracy: The same for each task.
        loss: Mean cross-entropy.
        macs: Mean multiply-accumulates per instance, the router's own included.
        router_macs: The router's own share of `macs`.
        task_macs: `macs` for each task.
        blocks_used: Number of (decision, choice) pairs that any instance took.
        route: `(R,)` int64: the number of the route that each row of the split took.
        taken: `(P, N, A)` bool: the choices of each route at each decision; none where it did not come.
        live_paths: `(N,)` float64: mean number of different choices that an instance took at each decision, of those
            that came there; 0 where nobody did. Under hard routing 1, or where M tensors choose up to M, less where
            some choose the same; of weights those that are not 0 count.
        routes: `(T, N, A)` int64: number of instances of each task that took each choice at each decision.
        routes_by_label: `(C, N, A)` int64: the same by label instead of by task.
        weights: `(T, N, A)` float64: as `routes`, but a choice counts as the size of its weight, times the share of the
            instance that was there; an integer choice weighs 1.
        exits: `(N, A, C, 2)` int64: number of instances of each label that left by each choice of each decision, wrong
            (0) and right (1) by the logits there. An instance counts once: where it is shared out among several exits,
            at the one of largest weight, the earliest of equals. Where all ways lead to one classifier they are all at
            the last decision, choice 0. See `ways_out`.
    """

    split: str
    accuracy: float
    task_accuracy: list[float]
    loss: float
    macs: float
    router_macs: float
    task_macs: list[float]
    blocks_used: int
    route: Tensor
    taken: Tensor
    live_paths: Tensor
    routes: Tensor
    routes_by_label: Tensor
    weights: Tensor
    exits: Tensor

    @property
    def paths(self) -> int:
        """Number of different routes."""
        return len(self.taken)

    @property
    def use(self) -> Tensor:
        """`(N, A)` float64: the share of each choice in all weight at its decision; 0 where nobody arrived."""
        total = self.weights.sum(0)
        return total / total.sum(-1, keepdim=True).clamp(min=torch.finfo(total.dtype).tiny)

    def cost(self, k_cpt: float) -> float:
        """c_inf, the mean cost of inference, Eqs. 1 and 2 of McGill and Perona (2017): `loss` + `k_cpt` × `macs`."""
        return self.loss + k_cpt * self.macs


@torch.no_grad()
def evaluate(
    router: Any,
    env: Any,
    *,
    split: str = "test",
    deterministic: bool = True,
    batch_size: int = EVALUATION_BATCH,
    k_cpt: float | None = None,
) -> Evaluation:
    """Route a whole split, in eval mode.

    The network computes in float32 whatever the environment's `precision`. Neither the environment's own episodes nor
    modes and random numbers of network and router are disturbed.

    Args:
        router: An agent, or anything with `act(observation, context)`.
        env: An environment of routing_gym, or a face of one.
        split: Name of the split.
        deterministic: Whether the router takes its best action or acts as in training.
        batch_size: Instances routed together.
        k_cpt: Cost of one multiply-accumulate, where the router is shown it (`price=True`); by default as in training,
            several prices being dealt out in the same way each time.

    Raises:
        ValueError: A price that nobody is shown or that is negative, an agent of another environment, an unknown split.
    """
    core = core_of(env)
    if not callable(getattr(router, "act", None)):
        raise ValueError(f"router must be an agent, or anything with act(observation, context), got {router!r}")
    if not isinstance(split, str) or split not in core.datasets:
        mend = "hand a test split over with the others, or judge on one there is" if split == "test" else "name one"
        raise ValueError(f"split must be one of {sorted(core.datasets)}, got {split!r}: {mend}")
    size = min(whole_number("batch_size", batch_size), len(core.datasets[split]))
    sizes_here = {"num_tasks": core.dataset.num_tasks, "num_decisions": len(core.network.decisions)}
    for attribute, here in {**sizes_here, "num_choices": core.network.num_choices}.items():
        if getattr(router, attribute, here) != here:
            raise ValueError(f"the agent has {attribute} {getattr(router, attribute)}, this environment {here}")
    own = getattr(router, "env", core)
    if isinstance(own, type(core)) and own.network is not core.network:
        raise ValueError(
            f"agent {getattr(router, 'name', '')!r} is of another environment, whose blocks it was trained with, not "
            "these: judge it on agent.env, on a sibling of that, or load its checkpoint into this environment"
        )
    if k_cpt is not None and not core.config.price:
        raise ValueError(f"k_cpt={k_cpt!r} is for environments made with price=True: here nobody sees it")
    # Rewards are not looked at: prices matter where they are seen.
    prices = (core.config.k_cpt if k_cpt is None else k_cpt) if core.config.price else 0.0
    options = {"train": False, "precision": "float32", "render_mode": None, "k_cpt": prices, "rho": 0.0, "seed": 0}
    judged = core.sibling(size, split=split, autoreset_mode="disabled", **options)
    network, dataset, device = judged.network, judged.dataset, judged.device
    num_tasks, num_classes, num_choices = dataset.num_tasks, dataset.num_classes, network.num_choices
    router_macs = torch.tensor([*macs_of(router, network), 0.0], device=device)

    # One decision more, for rows that have left.
    places = (len(network.decisions) + 1, num_choices)
    routes = torch.zeros(num_tasks, num_classes, *places, dtype=torch.int64, device=device)
    # In float64 so that the order in which batches come makes no difference that anyone could see.
    weights = torch.zeros(num_tasks, *places, dtype=torch.float64, device=device)
    arrived = torch.zeros(places[0], dtype=torch.int64, device=device)
    exits = torch.zeros(places[0] - 1, num_choices, num_classes, 2, dtype=torch.int64, device=device)
    known: dict[tuple, int] = {}  # routes by their choices
    route, columns = [], []
    ranks = core.ranks if len(dataset) >= core.ranks.count else ALONE
    for batch, kept in route_split(router, judged, deterministic, ranks):
        spent = spent_by_router(batch, router_macs)
        columns.append(torch.stack([batch.correct, batch.loss, batch.macs, spent])[:, kept])
        rows = torch.arange(size, device=device)
        used = torch.zeros(size, *places, dtype=torch.bool, device=device)
        weighed = torch.zeros(size, *places, dtype=torch.float64, device=device)
        for step in batch.steps:
            own = sizes(step.action, step.choosing, num_choices)
            used[rows, step.decision] = own > 0
            weighed[rows, step.decision] = (own * step.reach.unsqueeze(1)).double()
            arrived += torch.bincount(step.decision[kept], minlength=places[0])
        task, label = batch.task[kept], batch.label[kept]
        routes.index_put_((task, label), used[kept].long(), accumulate=True)
        weights.index_put_((task,), weighed[kept], accumulate=True)
        left, right, _ = (column[kept] for column in departures(batch, num_choices))
        exits.flatten(0, 1).index_put_((left, label, right.long()), torch.ones_like(label), accumulate=True)
        different, which = used[kept, :-1].flatten(1).unique(dim=0, return_inverse=True)
        numbers = [known.setdefault(tuple(choices), len(known)) for choices in different.tolist()]
        route.append(torch.tensor(numbers, device="cpu")[which.cpu()])
    of_rows, route_of_all = torch.cat(columns, 1), torch.cat(route)
    if ranks.count > 1:
        ranks.sum_([routes, arrived, exits])
        ranks.sum_([weights])
        routes_here = list(known)
        parts = ranks.objects((of_rows.cpu(), [routes_here[number] for number in route_of_all.tolist()]))
        of_rows = torch.cat([part for part, _ in parts], 1).to(device)
        known = {}
        route_of_all = torch.tensor(
            [known.setdefault(own, len(known)) for _, part in parts for own in part], device="cpu"
        )
    correct, loss, macs, spent = of_rows.double()
    count = torch.bincount(dataset.task, minlength=num_tasks)

    def per_task(values: Tensor) -> list[float]:
        return (torch.zeros_like(count, dtype=values.dtype).index_add(0, dataset.task, values) / count).tolist()

    macs = macs + spent
    return Evaluation(
        split=split,
        accuracy=float(correct.mean()),
        task_accuracy=per_task(correct),
        loss=float(loss.mean()),
        macs=float(macs.mean()),
        router_macs=float(spent.mean()),
        task_macs=per_task(macs),
        blocks_used=int((routes.sum((0, 1))[:-1] > 0).sum()),
        route=route_of_all,
        taken=torch.tensor(list(known), device="cpu").unflatten(1, (places[0] - 1, num_choices)),
        live_paths=(routes.sum((0, 1, 3)).double() / arrived.clamp(min=1))[:-1].cpu(),
        routes=routes.sum(1)[:, :-1].cpu(),
        routes_by_label=routes.sum(0)[:, :-1].cpu(),
        weights=weights[:, :-1].cpu(),
        exits=exits.cpu(),
    )


def macs_of(router: Any, network: RoutedNetwork) -> list[float]:
    """Multiply-accumulates that whoever decides spends on each decision; refused where its `macs` gives no numbers."""
    spent = [router.macs(number) if hasattr(router, "macs") else 0.0 for number in range(len(network.decisions))]
    for number, macs in enumerate(spent):
        if not (isinstance(macs, int | float | np.number) and 0 <= macs < float("inf")):
            name = getattr(router, "name", "") or type(router).__name__
            raise ValueError(f"agent {name!r}: macs({number}) must be a finite number of at least 0, got {macs!r}")
    return [float(macs) for macs in spent]


def spent_by_router(batch: Trajectory, of_decision: Tensor) -> Tensor:
    """Multiply-accumulates `(B,)` of whoever decided: what it has recorded, or by decision, `(N + 1,)`."""
    return torch.stack([step.record.get("macs", of_decision[step.decision]) for step in batch.steps]).sum(0)


@torch.no_grad()
def route_split(
    router: Any, env: RoutingVectorEnv, deterministic: bool = True, ranks: Ranks = ALONE
) -> Iterator[tuple[Trajectory, slice]]:
    """Route every instance of the split of an environment made with `train=False` once, in eval mode; or a rank's part.

    Yields batches in the order of the split, and which of their rows count, since the last one is filled up from the
    front. Modes and random numbers of network and router are as before in the end.
    """
    size = env.num_envs
    first, last = (len(env.dataset) * (ranks.number + end) // ranks.count for end in (0, 1))
    generator: torch.Generator | None = getattr(router, "generator", None)
    drawn = None if generator is None else generator.get_state()
    try:
        with eval_mode(*(part for part in (env.network, router) if isinstance(part, nn.Module))):
            for start in range(first, last, size):
                instances = torch.arange(start, start + size, device="cpu").remainder(len(env.dataset))
                batch = rollout(router, env, instances=instances, deterministic=deterministic)
                yield batch, slice(min(size, last - start))
    finally:
        if generator is not None and drawn is not None:
            generator.set_state(drawn)  # judging an agent must not change how it goes on


def departures(batch: Trajectory, num_choices: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each instance its way out, `(B,)` int64 `decision * A + choice`, if it was right, bool, and its class, int64.

    Of one that leaves by several exits it is that of the largest weight.
    """
    label, most = batch.label, torch.full_like(batch.macs, -1.0)
    left, right, told = torch.zeros_like(label), torch.zeros_like(label, dtype=torch.bool), torch.zeros_like(label)
    for exit in batch.exits:
        rows = torch.arange(len(label), device=label.device) if exit.rows is None else exit.rows
        larger = exit.weight > most[rows]
        most[rows] = torch.where(larger, exit.weight, most[rows])
        left[rows] = torch.where(larger, exit.decision * num_choices + exit.choice, left[rows])
        right[rows] = torch.where(larger, classified_right(exit.logits, label[rows]), right[rows])
        told[rows] = torch.where(larger, exit.logits.argmax(1), told[rows])
    return left, right, told
