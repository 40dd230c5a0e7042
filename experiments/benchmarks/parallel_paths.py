"""The paths of a layer as one grouped convolution against a loop over them, and what is saved where tensors merge."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks import (
    PathBlocks,
    PathConv2d,
    PathLinear,
    PathNorm2d,
    count_macs,
    first_weights,
    subsample_first,
)
from routing_gym.envs import Manner, drive
from routing_gym.envs.training import OPTIMIZERS
from routing_gym.experiments.benchmarks.steps import stand_in_images
from routing_gym.experiments.benchmarks.timing import Case, Steps, against, left_of, measure, speed_ratio, steps_of
from routing_gym.experiments.engine.records import Record
from routing_gym.networks import RoutingState, make_network
from routing_gym.networks.parallel_paths import ParallelPaths
from routing_gym.tasks import MultiTaskDataset

NETWORKS = ("basecnn-2-cc", "basecnn-3-cc", "basecnn-4-cc", "basecnn-2-cp")
ONE_PATH = "basecnn"
"""The single network of the same layers."""
CHECKED = 16
"""Images on which network and loop have to agree before anything is timed."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""As a share of the largest."""

SOFT, LAST = "soft gates", torch.channels_last
Forward = Callable[[Any, Tensor, Tensor], Tensor]


class LoopOverPaths(nn.Module):
    """What `ParallelPaths` computes under soft gates, one path after the other in plain layers.

    Args:
        network: Its weights are copied. It has `form="columns"`, and neither residuals nor squeeze and excitation.
    """

    def __init__(self, network: ParallelPaths) -> None:
        super().__init__()
        self.cross = network.cross
        self.layers = nn.ModuleList(map(_one_by_one, network.banks))
        self.predictions = nn.ModuleList(map(_one_by_one, network.predictions))

    def forward(self, images: Tensor, plan: Tensor) -> Tensor:
        """Return the logits `(B, num_classes)` of images `(B, C, H, W)` under gates `(B, N, P, P)`."""
        (first, *layers), (first_predictions, *predictions) = map(_parts, (self.layers, self.predictions))
        own = [functional.relu(predict(images)) for predict in first_predictions] or [images] * len(first)
        tensors = [path(x) for path, x in zip(first, own, strict=True)]
        for paths, predicting, gate in zip(layers, predictions, plan.unbind(1), strict=True):
            outputs = []
            for j, path in enumerate(paths):
                terms = []
                for i, x in enumerate(tensors):
                    if self.cross == "predictions":
                        x = predicting[i * len(paths) + j](x)
                    terms.append(gate[:, i, j].view(-1, *[1] * (x.ndim - 1)) * x)
                mixed = sum(terms[1:], start=terms[0])
                outputs.append(path(functional.relu(mixed) if self.cross == "predictions" else mixed))
            tensors = outputs
        return sum(tensors[1:], start=tensors[0]) / len(tensors)

    def single(self) -> nn.Sequential:
        """Return the layers of the first path."""
        return nn.Sequential(*(paths[0] for paths in _parts(self.layers)))


def _parts(modules: nn.ModuleList) -> list[list[nn.Module]]:
    return [list(module.children()) for module in modules]


def _one_by_one(blocks: nn.Module) -> nn.ModuleList:
    """Return every path of a layer as plain modules, with weights of its own; none of no layer."""
    if not isinstance(blocks, PathBlocks):
        return nn.ModuleList()
    plain = ([part for layer in blocks.layers for part in _plain(layer, path)] for path in range(blocks.num_blocks))
    return nn.ModuleList(nn.Sequential(*parts) for parts in plain)


def _plain(layer: nn.Module, path: int) -> list[nn.Module]:
    """Return a layer of one path."""
    plain: nn.Module
    if isinstance(layer, PathLinear):
        return layer.blocks.as_modules(path)
    if isinstance(layer, PathConv2d):
        outputs, inputs, kernel, _ = layer.weight[path].shape
        bias = layer.bias is not None
        plain = subsample_first(nn.Conv2d(inputs, outputs, kernel, layer.stride, kernel // 2, bias=bias))
    elif isinstance(layer, PathNorm2d):
        plain = nn.BatchNorm2d(layer.weight.shape[1])
    else:
        return [copy.deepcopy(layer)]
    plain.to(layer.weight).load_state_dict(
        {name: stack[path] for name, stack in layer.state_dict().items()}, strict=False
    )
    return [plain]


def route(network: ParallelPaths, images: Tensor, plan: Tensor) -> RoutingState:
    """Carry images through a network by gates `(B, N, P, P)` or choices `(B, N, P)` that are known beforehand."""
    state = network.start(images, images.new_zeros(len(images), dtype=torch.int64))
    known = iter(plan.unbind(1))
    *_, last = drive(network, state, lambda seen: next(known), Manner(graph=torch.is_grad_enabled(), validate=None))
    return last.after


def logits_of(network: ParallelPaths, images: Tensor, plan: Tensor) -> Tensor:
    """Return the logits `(B, num_classes)`."""
    return route(network, images, plan).exits[0].logits


def check_agreement(network: ParallelPaths, images: Tensor, plan: Tensor) -> None:
    """Assert that network and loop give the same logits and gradients, those of the gates among them, in training.

    Gradients are compared in double precision: in single precision a number that is rounded to the other side of a ReLU
    changes those of the gates by up to a hundredth, in the loop as in the network. The network is left as it is.
    """
    for dtype, tolerance in TOLERANCE.items():
        copied = copy.deepcopy(network).to(dtype).train()
        loop = LoopOverPaths(copied).train()
        own, other = (plan.detach().to(dtype, copy=True).requires_grad_() for _ in range(2))
        logits, looped = logits_of(copied, images.to(dtype), own), loop(images.to(dtype), other)
        compared = {"logits": [(logits, looped)]}
        if dtype == torch.float64:
            found = [
                torch.autograd.grad(result.square().sum(), [gates, *module.parameters()])
                for result, gates, module in ((logits, own, copied), (looped, other, loop))
            ]
            for parameter, gradient in zip(copied.parameters(), found[0][1:], strict=True):
                parameter.data = gradient  # so that it is cut up as the weights are
            compared["gradients of the gates"] = [(found[0][0], found[1][0])]
            compared["gradients"] = list(zip(LoopOverPaths(copied).parameters(), found[1][1:], strict=True))
        for what, pairs in compared.items():
            largest = max(float(b.detach().abs().max()) for _, b in pairs)
            apart = max(float((a - b).detach().abs().max()) for a, b in pairs)
            assert apart <= tolerance * largest, f"{what} of network and loop differ by {apart:.2g}, of {largest:.2g}"


def soft_gates(network: ParallelPaths, batch: int, device: torch.device) -> Tensor:
    """Return drawn gates of every decision, `(B, N, P, P)`, a softmax over the paths for each tensor."""
    form = batch, len(network.decisions), network.paths, network.paths
    return torch.randn(form, generator=torch.Generator().manual_seed(0)).softmax(3).to(device)


def merging(network: ParallelPaths, batch: int, together: int, device: torch.device) -> Tensor:
    """Return choices `(B, N, P)` by which some tensors meet at the first decision, and all stay where they are.

    Which paths the tensors are on is another matter from image to image: every path is run by as many. `together` of
    them meet on one path, 1 for none; each of the others has one of its own.
    """
    lanes = torch.arange(network.paths, device=device)
    plan = lanes.repeat(batch, len(network.decisions), 1)
    plan[:, 0] = (lanes.where(lanes >= together, 0) + torch.arange(batch, device=device).unsqueeze(1)) % network.paths
    return plan


def measure_parallel_paths(name: str, batch: int, rounds: int, device: torch.device) -> list[Record]:
    """Time a network of parallel paths in turns with a loop over its paths and with the single network.

    Soft gates, drawn beforehand, run all paths; hard choices only those that tensors are on. A training step is
    forward, cross-entropy, backward (to the gates too) and SGD, always on the same images. What computes gates is not
    there. All paths begin alike (`form="columns"`), and their first layers run whatever is chosen. The single network
    and the loop are plain modules with their channels last in memory, as the network's are; the loop is timed with
    channels first too, as modules come. Loop and network are compared first.

    Returns:
        First a record of soft gates, then one for each number of paths that stay alive. All have what `against` says
        of the single network. Of soft gates: `loop_train_ratio` and `loop_inference_ratio`, samples per second over the
        loop's, the same with `channels_first_loop_...`, and `loop_peak_memory_bytes`. Of hard choices: `live_paths` of
        an image behind each decision, and what is left of what soft gates cost: `macs_of_soft`, `train_time_of_soft`,
        `inference_time_of_soft`.
    """
    dataset = stand_in_images(1, 10, per_class=-(-batch // 10)).to(device)
    images, labels = dataset.pixels(torch.arange(batch, device=device)), dataset.label[:batch]
    network, build = _network(name, dataset), partial(_network, name, dataset)
    gates = soft_gates(network, batch, device)
    check_agreement(network, images[:CHECKED], gates[:CHECKED])

    def steps(make: Callable[[], nn.Module], forward: Forward, plan: Tensor, layout: Any = LAST) -> Steps:
        module, own = make(), plan.clone().requires_grad_(plan.is_floating_point())
        if not isinstance(module, ParallelPaths):
            module.to(memory_format=layout)  # type: ignore[call-overload]
        run = partial(forward, module, images.contiguous(memory_format=layout), own)
        optimizer = OPTIMIZERS["sgd"](module, lr=1e-2)
        return steps_of(module, run, lambda: functional.cross_entropy(run(), labels).backward(), optimizer, [own])

    def routed(plan: Tensor, **record: Any) -> Case:
        with torch.no_grad():
            macs = float(route(network.eval(), images, plan).macs.double().mean())
        record = {"network": name, "blocks": network.paths, **record}
        return Case(partial(steps, build, logits_of, plan), macs, record)

    def alone() -> nn.Module:
        return LoopOverPaths(_network(ONE_PATH, dataset)).single()

    macs = count_macs(alone(), images[:1])
    cases = {ONE_PATH: Case(partial(steps, alone, lambda module, images, _: module(images), gates[:0]), macs)}
    for layout in (LAST, torch.contiguous_format):
        cases[str(layout)] = Case(
            partial(steps, lambda: LoopOverPaths(build()), nn.Module.__call__, gates, layout), macs
        )
    cases[SOFT] = routed(gates, agent=SOFT)
    for together in dict.fromkeys((1, 2, network.paths)):
        plan, live = merging(network, batch, together, device), network.paths + 1 - together
        cases[f"{live} paths"] = routed(plan, agent="hard choices", live_paths=live)
    single, loop, channels_first, soft, *hard = measure(cases, rounds, device).values()
    of_soft = against(soft, single, batch)
    for phase in Steps._fields:
        of_soft[f"loop_{phase}_ratio"] = speed_ratio(soft, loop, phase)
        of_soft[f"channels_first_loop_{phase}_ratio"] = speed_ratio(soft, channels_first, phase)
    of_soft["loop_peak_memory_bytes"] = loop.peak_memory
    of_soft["loop_memory_ratio"] = soft.peak_memory / loop.peak_memory
    records = [of_soft]
    for own in hard:
        left = {f"{what}_of_soft": cost for what, cost in left_of(soft, own).items()}
        records.append({**against(own, single, batch), **left})
    return records


def _network(name: str, dataset: MultiTaskDataset) -> ParallelPaths:
    """Return a network with the same first weights each time."""
    form: dict[str, Any] = {"num_classes": dataset.num_classes, "input_shape": dataset.input_shape, "form": "columns"}
    with first_weights(0):
        network = make_network(name, num_tasks=1, **form)
    assert isinstance(network, ParallelPaths)
    return network.to(dataset.device)
