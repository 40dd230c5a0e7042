"""Timing steps in turns, and the most memory one of them holds."""

from __future__ import annotations

import dataclasses
import gc
import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from routing_gym.experiments.engine.records import Record

Step = Callable[[], object]
Case = TypeVar("Case", bound=Hashable)

WARM_UP = 5
"""Rounds that are not counted."""

MEASURED = "measured step"


@dataclasses.dataclass(frozen=True)
class Steps:
    """What is measured of one network.

    Attributes:
        train: A whole training step: draw a batch, forward, backward, the optimisers, what the agent learns.
        infer: The same batch without training.
    """

    train: Step
    infer: Step


@dataclasses.dataclass(frozen=True)
class Measured:
    """What has been measured of one network.

    Attributes:
        train: Seconds of a training step, one per round.
        infer: Seconds of an inference step, one per round.
        peak_memory: Bytes at most held in a training step, see `peak_memory`.
    """

    train: list[float]
    infer: list[float]
    peak_memory: float


def steps_of(
    module: nn.Module,
    forward: Step,
    backward: Step,
    optimizer: torch.optim.Optimizer | None = None,
    leaves: Sequence[Tensor] = (),
) -> Steps:
    """Return the steps of a module.

    Args:
        module: It is put in training or eval mode where it is not, not in every step.
        forward: Runs it.
        backward: Runs it, and goes back.
        optimizer: Moves its parameters; None leaves them.
        leaves: What else has gradients.
    """

    def train() -> None:
        if not module.training:
            module.train()
        (optimizer or module).zero_grad()
        for leaf in leaves:
            leaf.grad = None
        backward()
        if optimizer is not None:
            optimizer.step()

    @torch.no_grad()
    def infer() -> None:
        if module.training:
            module.eval()
        forward()

    return Steps(train, infer)


def measure(
    makers: Mapping[Case, Callable[[], Steps]], rounds: int, device: torch.device | None = None
) -> dict[Case, Measured]:
    """Measure several networks: first memory, one after the other, then time, in turns.

    Args:
        makers: Build a network, with optimiser and whatever else it needs, and return its steps.
        rounds: Steps timed of each.
        device: Where they run.
    """
    peaks = {case: peak_memory(lambda make=make: make().train, device) for case, make in makers.items()}  # type: ignore
    steps = {case: make() for case, make in makers.items()}
    train = in_turns({case: own.train for case, own in steps.items()}, rounds, device)
    infer = in_turns({case: own.infer for case, own in steps.items()}, rounds, device)
    return {case: Measured(train[case], infer[case], peaks[case]) for case in makers}


def against(routed: Measured, static: Measured, batch: int) -> Record:
    """Return what a record says of a routed network and of a static one measured in the same run.

    Ratios are of samples per second, routed over static: the median over rounds of static time / routed time.
    """
    return {
        "train_ratio": median_ratio(static.train, routed.train),
        "inference_ratio": median_ratio(static.infer, routed.infer),
        "train_samples_per_second": batch / statistics.median(routed.train),
        "inference_samples_per_second": batch / statistics.median(routed.infer),
        "static_train_samples_per_second": batch / statistics.median(static.train),
        "static_inference_samples_per_second": batch / statistics.median(static.infer),
        "peak_memory_bytes": routed.peak_memory,
        "static_peak_memory_bytes": static.peak_memory,
    }


def in_turns(steps: Mapping[Case, Step], rounds: int, device: torch.device | None = None) -> dict[Case, list[float]]:
    """Time every step once per round, so that a change in the machine's speed meets all alike.

    Args:
        steps: What to time.
        rounds: How often; as many rounds again, at most 5, come first and are not counted.
        device: Where the steps run; a GPU is waited for before and after each.

    Returns:
        Seconds of each step, one per round.
    """
    times: dict[Case, list[float]] = {case: [] for case in steps}
    warm_up = min(WARM_UP, rounds)
    for number in range(warm_up + rounds):
        for case, step in steps.items():
            _wait_for(device)
            start = time.perf_counter()
            step()
            _wait_for(device)
            if number >= warm_up:
                times[case].append(time.perf_counter() - start)
    return times


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ratio(static: list[float], routed: list[float]) -> float:
    """Return the median over rounds of static time / routed time: routed samples per second over static ones."""
    return statistics.median(a / b for a, b in zip(static, routed, strict=True))


def arrived(time_ratio: float, cost_ratio: float) -> float | None:
    """Return how much of what is saved in operations is saved in time; None where that is too little to be measured."""
    return (1 - time_ratio) / (1 - cost_ratio) if cost_ratio < 0.98 else None


def peak_memory(make: Callable[[], Step], device: torch.device | None = None) -> int:
    """Return the most bytes of tensors that are alive at once during a step.

    Counted is all that has been allocated since `make` was called and is still there: parameters and buffers, their
    gradients, the optimisers' state, what is left of the step before, and everything the step itself allocates on its
    way, inside of operations too. Not counted are tensors that were there before (the data), and what PyTorch does not
    allocate: numpy's arrays, buffers of the libraries beneath. The third step is measured, when gradients and states of
    optimisers are there. On a CPU sizes are those asked for, on a GPU each is rounded up to 512 bytes.

    Args:
        make: Builds everything and returns the step.
        device: Where the step runs.
    """
    if device is not None and device.type == "cuda":
        make()()  # what the libraries allocate once and keep is not charged to whoever comes first
        gc.collect()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        step = make()
        step()
        step()
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else every profile prints two lines
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step = make()
        step()
        step()
        with record_function(MEASURED):
            step()
    events = profiled.profiler.kineto_results.events()
    start = next(event.start_ns() for event in events if event.name() == MEASURED)
    memory = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
    alive = peak = sum(event.nbytes() for event in memory if event.start_ns() < start)
    for event in memory:
        if event.start_ns() >= start:
            alive += event.nbytes()  # negative where something is freed
            peak = max(peak, alive)
    return peak
