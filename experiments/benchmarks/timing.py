"""Timing steps in turns, the most memory one of them holds, and what a record says of both."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import accumulate
from statistics import fmean, median
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from routing_gym.experiments.engine.records import Record

Step = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)

WARM_UP = 5
"""Rounds that are not counted."""
MEASURED = "measured step"


class Steps(NamedTuple):
    """What is timed: `train`, all that a training step takes; `inference`, the same batch without training."""

    train: Step
    inference: Step


class Case(NamedTuple):
    """Work that is measured in turns with other work: routed, or the same without routing.

    `make` builds a network, with optimiser and whatever else it needs; `macs` are its multiply-accumulates per instance
    in inference, `record` is what a record says of it beside what is measured; a reference has none.
    """

    make: Callable[[], Steps]
    macs: float
    record: Record = {}


class Measured(NamedTuple):
    """A case, the seconds of its steps in each round, by the names in `Steps`, and its `peak_memory` in training."""

    case: Case
    seconds: dict[str, list[float]]
    peak_memory: float


def steps_of(
    module: nn.Module,
    forward: Step,
    backward: Step,
    optimizer: torch.optim.Optimizer | None = None,
    leaves: Sequence[Tensor] = (),
) -> Steps:
    """Return the steps of a module that `forward` runs, and `backward` forth and back; `leaves` have gradients too."""

    def train() -> None:
        if not module.training:  # looking for all its parts takes time
            module.train()
        (optimizer or module).zero_grad()
        for leaf in leaves:
            leaf.grad = None
        backward()
        if optimizer is not None:
            optimizer.step()

    @torch.no_grad()
    def inference() -> None:
        if module.training:
            module.eval()
        forward()

    return Steps(train, inference)


def measure(cases: Mapping[Name, Case], rounds: int, device: torch.device | None = None) -> dict[Name, Measured]:
    """Measure cases: first memory, one after the other, then time, `rounds` steps of each, in turns."""
    peaks = {name: peak_memory(lambda case=case: case.make().train, device) for name, case in cases.items()}  # type: ignore
    made = {name: case.make() for name, case in cases.items()}
    seconds: dict[Name, dict[str, list[float]]] = {name: {} for name in cases}
    for phase in Steps._fields:
        for name, times in in_turns({name: getattr(own, phase) for name, own in made.items()}, rounds, device).items():
            seconds[name][phase] = times
    return {name: Measured(case, seconds[name], peaks[name]) for name, case in cases.items()}


def against(routed: Measured, static: Measured, batch: int) -> Record:
    """Return the record of a routed network, given a static one measured in the same run.

    Ratios are routed over static: of samples per second the median over rounds of static time / routed time, of
    multiply-accumulates per instance, and of bytes at most held in training.
    """
    record = {
        **routed.case.record,
        "batch": batch,
        "macs_ratio": routed.case.macs / static.case.macs,
        "memory_ratio": routed.peak_memory / static.peak_memory,
        "peak_memory_bytes": routed.peak_memory,
        "static_peak_memory_bytes": static.peak_memory,
    }
    for phase, seconds in routed.seconds.items():
        record[f"{phase}_ratio"] = speed_ratio(routed, static, phase)
        record[f"{phase}_samples_per_second"] = batch / median(seconds)
        record[f"static_{phase}_samples_per_second"] = batch / median(static.seconds[phase])
    return record


def speed_ratio(routed: Measured, static: Measured, phase: str) -> float:
    """Return the median over rounds of static time / routed time: routed samples per second over static ones."""
    pairs = zip(static.seconds[phase], routed.seconds[phase], strict=True)
    return median(theirs / ours for theirs, ours in pairs)


def mean_of(several: Sequence[Measured]) -> Measured:
    """Return the mean of several, round by round."""
    rounds = {phase: zip(*(own.seconds[phase] for own in several), strict=True) for phase in Steps._fields}
    seconds = {phase: list(map(fmean, times)) for phase, times in rounds.items()}
    case = Case(several[0].case.make, fmean(own.case.macs for own in several))
    return Measured(case, seconds, fmean(own.peak_memory for own in several))


def left_of(whole: Measured, part: Measured) -> dict[str, float]:
    """Return what `part` costs of what `whole` does: `macs`, `train_time`, `inference_time`."""
    times = {f"{phase}_time": speed_ratio(whole, part, phase) for phase in Steps._fields}
    return {"macs": part.case.macs / whole.case.macs, **times}


def arrived(time_ratio: float, cost_ratio: float) -> float | None:
    """Return how much of what is saved in operations is saved in time; None where that is too little to be measured."""
    return (1 - time_ratio) / (1 - cost_ratio) if cost_ratio < 0.98 else None


def in_turns(steps: Mapping[Name, Step], rounds: int, device: torch.device | None = None) -> dict[Name, list[float]]:
    """Return seconds of each step, one per round: changes in the machine's speed meet all alike.

    As many rounds again, at most 5, come first and are not counted. A GPU is waited for before and after each step.
    """
    times: dict[Name, list[float]] = {name: [] for name in steps}
    for _ in range(min(WARM_UP, rounds) + rounds):
        for name, step in steps.items():
            _wait_for(device)
            start = time.perf_counter()
            step()
            _wait_for(device)
            times[name].append(time.perf_counter() - start)
    return {name: own[-rounds:] for name, own in times.items()}


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(make: Callable[[], Step], device: torch.device | None = None) -> int:
    """Return the most bytes of tensors that are alive at once during the step that `make` builds.

    Counted is all that has been allocated since `make` was called and is still there: parameters and buffers, their
    gradients, the optimisers' state, what is left of the step before, and everything the step itself allocates on its
    way, inside of operations too. Not counted are tensors that were there before (the data), and what PyTorch does not
    allocate: numpy's arrays, buffers of the libraries beneath. The third step is measured, when gradients and states of
    optimisers are there. On a CPU sizes are those asked for, on a GPU each is rounded up to 512 bytes.
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
    alive = list(accumulate((event.nbytes() for event in memory), initial=0))  # negative where something is freed
    return max(alive[sum(event.start_ns() < start for event in memory) :])
