"""The paths of a layer as one grouped convolution against a loop over them, and what is saved where tensors merge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
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
from routing_gym.experiments.benchmarks.timing import Steps, against, measure, median_ratio, steps_of
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

LAST = torch.channels_last
SINGLE, LOOP, CHANNELS_FIRST, SOFT = "single", "loop", "channels_first_loop", "soft gates"

Case = str | int
"""What is timed: one of these, or hard choices by how many paths they leave alive."""
Actions = Sequence[Tensor]
"""One for each decision: gates `(B, P, P)`, or choices `(B, P)` int64."""
Forward = Callable[[Any, Tensor, Actions], Tensor]


class LoopOverPaths(nn.Module):
    """What `ParallelPaths` computes under soft gates, one path after the other in plain layers.

    Args:
        network: Its weights are copied. It has `form="columns"`, and neither residuals nor squeeze and excitation.
    """

    def __init__(self, network: ParallelPaths) -> None:
        super().__init__()
        self.cross = network.cross
        self.layers = nn.ModuleList(map(_one_by_one, network.banks))
        self.predictions = nn.ModuleList(
            _one_by_one(blocks) if network.cross == "predictions" else nn.ModuleList() for blocks in network.predictions
        )

    def forward(self, images: Tensor, gates: Actions) -> Tensor:
        """Return the logits `(B, num_classes)` of images `(B, C, H, W)` under gates `(B, P, P)`."""
        (first, *layers), (first_predictions, *predictions) = map(_parts, (self.layers, self.predictions))
        own = [functional.relu(predict(images)) for predict in first_predictions] or [images] * len(first)
        tensors = [path(x) for path, x in zip(first, own, strict=True)]
        for paths, predicting, gate in zip(layers, predictions, gates, strict=True):
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
    """Return every path of a layer as plain modules, with weights of its own."""
    assert isinstance(blocks, PathBlocks)
    return nn.ModuleList(
        nn.Sequential(*(_plain(layer, path) for layer in blocks.layers)) for path in range(blocks.num_blocks)
    )


@torch.no_grad()
def _plain(layer: nn.Module, path: int) -> nn.Module:
    """Return a layer of one path."""
    plain: nn.Module
    if isinstance(layer, PathConv2d):
        outputs, inputs, kernel, _ = layer.weight[path].shape
        plain = subsample_first(nn.Conv2d(inputs, outputs, kernel, layer.stride, kernel // 2))
    elif isinstance(layer, PathNorm2d):
        plain = nn.BatchNorm2d(layer.weight.shape[1])
        plain.running_mean, plain.running_var = layer.running_mean[path].clone(), layer.running_var[path].clone()
    elif isinstance(layer, PathLinear):
        plain = nn.Linear(layer.blocks.in_features, layer.blocks.out_features)
    else:
        return copy.deepcopy(layer)
    plain.to(next(layer.parameters()))
    for own, stack in zip(plain.parameters(), layer.parameters(), strict=True):
        own.copy_(_slice(stack, path, own))
    return plain


def _slice(stack: Tensor, path: int, like: Tensor) -> Tensor:
    """Return what belongs to a path; linear layers are stacked the other way round."""
    return stack[path].t() if like.ndim == 2 else stack[path]


def gradients(network: ParallelPaths, loop: LoopOverPaths) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every parameter's gradient twice: the network's slice of it, and the loop's own."""
    layers = zip((*network.banks, *network.predictions), (*loop.layers, *loop.predictions), strict=True)
    for blocks, alone in layers:
        for path, plain in enumerate(alone.children()):
            for stack, own in zip(blocks.parameters(), plain.parameters(), strict=True):
                yield _slice(_grad(stack), path, own), _grad(own)


def route(network: ParallelPaths, images: Tensor, actions: Actions) -> RoutingState:
    """Carry images through a network by actions that are known beforehand."""
    state = network.start(images, torch.zeros(len(images), dtype=torch.int64, device=images.device))
    known = iter(actions)
    *_, last = drive(network, state, lambda seen: next(known), Manner(graph=torch.is_grad_enabled(), validate=None))
    return last.after


def logits_of(network: ParallelPaths, images: Tensor, actions: Actions) -> Tensor:
    """Return the logits `(B, num_classes)`."""
    return route(network, images, actions).exits[0].logits


def check_agreement(network: ParallelPaths, images: Tensor, gates: Actions) -> None:
    """Assert that network and loop give the same logits and gradients, those of the gates among them, in training.

    Gradients are compared in double precision: in single precision a number that is rounded to the other side of a ReLU
    changes those of the gates by up to a hundredth, in the loop as in the network.

    Args:
        network: It is left as it is.
        images: `(B, C, H, W)`, normalised.
        gates: For each decision.
    """
    for dtype, tolerance in TOLERANCE.items():
        copied = copy.deepcopy(network).to(dtype).train()
        loop = LoopOverPaths(copied).train()
        own, other = ([gate.detach().to(dtype, copy=True).requires_grad_() for gate in gates] for _ in range(2))
        logits, looped = logits_of(copied, images.to(dtype), own), loop(images.to(dtype), other)
        compared = {"logits": [(logits.detach(), looped.detach())]}
        if dtype == torch.float64:
            for result in (logits, looped):
                result.square().sum().backward()
            compared["gradients of the gates"] = list(zip(map(_grad, own), map(_grad, other), strict=True))
            compared["gradients"] = list(gradients(copied, loop))
        for what, pairs in compared.items():
            largest = max(float(b.abs().max()) for _, b in pairs)
            apart = max(float((a - b).abs().max()) for a, b in pairs)
            assert apart <= tolerance * largest, f"{what} of network and loop differ by {apart:.2g}, of {largest:.2g}"


def _grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def soft_gates(network: ParallelPaths, batch: int, device: torch.device) -> list[Tensor]:
    """Return drawn gates of every decision, `(B, P, P)`, a softmax over the paths for each tensor."""
    numbers = torch.Generator().manual_seed(0)
    return [torch.randn(batch, d.m, d.n, generator=numbers).softmax(2).to(device) for d in network.decisions]


def merging(network: ParallelPaths, batch: int, together: int, device: torch.device) -> list[Tensor]:
    """Return choices `(B, P)` of every decision by which some tensors meet at the first, and all stay where they are.

    Which paths the tensors are on is another matter from image to image: every path is run by as many.

    Args:
        network: The network.
        batch: How many images.
        together: Tensors that meet on one path, 1 for none; each of the others has one of its own.
        device: Where.
    """
    lanes = torch.arange(network.paths, device=device)
    first = lanes.where(lanes >= together, 0) + torch.arange(batch, device=device).unsqueeze(1)
    stay = lanes.expand(batch, -1)
    return [first % network.paths, *[stay] * (len(network.decisions) - 1)]


def measure_parallel_paths(name: str, batch: int, rounds: int, device: torch.device) -> list[Record]:
    """Time a network of parallel paths in turns with a loop over its paths and with the single network.

    Soft gates, drawn beforehand, run all paths; hard choices only those that tensors are on. A training step is
    forward, cross-entropy, backward (to the gates too) and SGD, always on the same images. What computes gates is not
    there. All paths begin alike (`form="columns"`), and their first layers run whatever is chosen. The single network
    and the loop are plain modules with their channels last in memory, as the network's are; the loop is timed with
    channels first too, as modules come. Loop and network are compared first.

    Returns:
        First a record of soft gates, then one for each number of paths that stay alive. All have what `against` says
        of the single network, and `macs_ratio`. Of soft gates: `loop_train_ratio` and `loop_inference_ratio`, samples
        per second over the loop's, the same with `channels_first_loop_...`, and `loop_peak_memory_bytes`. Of hard
        choices: `live_paths` of an image behind each decision, and what is left of what soft gates cost:
        `macs_of_soft`, `train_time_of_soft`, `inference_time_of_soft`.
    """
    dataset = stand_in_images(1, 10, per_class=-(-batch // 10)).to(device)
    network, images = _network(name, dataset), _images(dataset, batch, LAST)
    gates = soft_gates(network, batch, device)
    live = {network.paths + 1 - together: together for together in dict.fromkeys((1, 2, network.paths))}
    actions: dict[Case, Actions] = {SOFT: gates}
    actions |= {left: merging(network, batch, together, device) for left, together in live.items()}
    check_agreement(network, images[:CHECKED], [gate[:CHECKED] for gate in gates])

    def single() -> nn.Module:
        return LoopOverPaths(_network(ONE_PATH, dataset)).single()

    def steps(make: Callable[[], nn.Module], layout: torch.memory_format, given: Actions, forward: Forward) -> Steps:
        module = make()
        if not isinstance(module, ParallelPaths):
            module.to(memory_format=layout)  # type: ignore[call-overload]
        given = [action.clone().requires_grad_(action.is_floating_point()) for action in given]
        run = partial(forward, module, _images(dataset, batch, layout), given)
        optimizer, labels = OPTIMIZERS["sgd"](module, lr=1e-2), dataset.label[:batch]
        return steps_of(module, run, lambda: functional.cross_entropy(run(), labels).backward(), optimizer, given)

    def loop(layout: torch.memory_format) -> Steps:
        return steps(lambda: LoopOverPaths(_network(name, dataset)), layout, gates, nn.Module.__call__)

    makers: dict[Case, Callable[[], Steps]] = {
        SINGLE: partial(steps, single, LAST, (), lambda single, images, _: single(images)),
        LOOP: partial(loop, LAST),
        CHANNELS_FIRST: partial(loop, torch.contiguous_format),
    }
    for case, taken in actions.items():
        makers[case] = partial(steps, partial(_network, name, dataset), LAST, taken, logits_of)
    measured = measure(makers, rounds, device)
    macs = {case: _macs(network, images, taken) for case, taken in actions.items()}
    single_macs, soft = count_macs(single(), images[:1]), measured[SOFT]

    def record(case: Case, agent: str) -> Record:
        return {
            "agent": agent,
            "network": name,
            "blocks": network.paths,
            "batch": batch,
            **against(measured[case], measured[SINGLE], batch),
            "macs_ratio": macs[case] / single_macs,
        }

    of_soft = record(SOFT, SOFT)
    for loops in (LOOP, CHANNELS_FIRST):
        of_soft[f"{loops}_train_ratio"] = median_ratio(measured[loops].train, soft.train)
        of_soft[f"{loops}_inference_ratio"] = median_ratio(measured[loops].infer, soft.infer)
    of_soft["loop_peak_memory_bytes"] = measured[LOOP].peak_memory
    return [
        of_soft,
        *(
            {
                **record(left, "hard choices"),
                "live_paths": left,
                "macs_of_soft": macs[left] / macs[SOFT],
                "train_time_of_soft": median_ratio(measured[left].train, soft.train),
                "inference_time_of_soft": median_ratio(measured[left].infer, soft.infer),
            }
            for left in live
        ),
    ]


def _network(name: str, dataset: MultiTaskDataset) -> ParallelPaths:
    """Return a network with the same first weights each time."""
    with first_weights(0):
        network = make_network(
            name, num_tasks=1, num_classes=dataset.num_classes, input_shape=dataset.input_shape, form="columns"
        )
    assert isinstance(network, ParallelPaths)
    return network.to(dataset.device)


def _images(dataset: MultiTaskDataset, batch: int, layout: torch.memory_format) -> Tensor:
    return dataset.pixels(torch.arange(batch, device=dataset.device)).contiguous(memory_format=layout)


@torch.no_grad()
def _macs(network: ParallelPaths, images: Tensor, actions: Actions) -> float:
    return float(route(network.eval(), images, actions).macs.double().mean())
