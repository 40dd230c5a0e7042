"""The paths of a layer as one grouped convolution against a loop over them, and what is saved where tensors merge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial

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
from routing_gym.experiments.benchmarks.convnet import stand_in_images
from routing_gym.experiments.benchmarks.timing import Measured, Steps, against, measure, median_ratio
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

SINGLE, LOOP, LOOP_CHANNELS_FIRST, SOFT = "single", "loop", "loop, channels first", "soft gates"

Actions = Sequence[Tensor]
"""One for each decision: gates `(B, P, P)`, or choices `(B, P)` int64."""


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
        tensors = []
        for j, path in enumerate(first):
            x = images
            if self.cross == "predictions":
                x = functional.relu(first_predictions[j](x))
            tensors.append(path(x))
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
    pairs = [*zip(network.banks, loop.layers, strict=True)]
    if network.cross == "predictions":
        pairs += zip(network.predictions, loop.predictions, strict=True)
    for blocks, alone in pairs:
        assert isinstance(blocks, PathBlocks)
        for path, plain in enumerate(alone.children()):
            for stacked, layer in zip(blocks.layers, plain.children(), strict=True):
                for stack, own in zip(stacked.parameters(), layer.parameters(), strict=True):
                    yield _slice(_grad(stack), path, own), _grad(own)


def route(network: ParallelPaths, images: Tensor, actions: Actions) -> RoutingState:
    """Carry images through a network by actions that are known beforehand."""
    state = network.start(images, torch.zeros(len(images), dtype=torch.int64, device=images.device))
    known = iter(actions)
    *_, last = drive(network, state, lambda seen: next(known), Manner(graph=torch.is_grad_enabled(), validate=None))
    return last.after


def logits_of(network: ParallelPaths, images: Tensor, actions: Actions) -> Tensor:
    """Return the logits `(B, num_classes)`."""
    (exit,) = route(network, images, actions).exits
    return exit.logits


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

    Args:
        name: One of `NETWORKS`.
        batch: Images together.
        rounds: Steps timed of each.
        device: Where.

    Returns:
        First a record of soft gates, then one for each number of paths that stay alive. All have what `against` says
        of the single network, and `macs_ratio`. Of soft gates: `loop_train_ratio` and `loop_inference_ratio`, samples
        per second over the loop's, the same with `channels_first_loop_...`, and `loop_peak_memory_bytes`. Of hard
        choices: `live_paths` of an image behind each decision, and what is left of what soft gates cost:
        `macs_of_soft`, `train_time_of_soft`, `inference_time_of_soft`.
    """
    dataset = stand_in_images(1, 10, per_class=-(-batch // 10)).to(device)
    network = _network(name, dataset)
    gates = soft_gates(network, batch, device)
    live = {network.paths + 1 - together: together for together in dict.fromkeys((1, 2, network.paths))}
    hard = {str(left): merging(network, batch, together, device) for left, together in live.items()}
    images = _images(dataset, batch, channels_last=True)
    check_agreement(network, images[:CHECKED], [gate[:CHECKED] for gate in gates])

    makers: dict[str, Callable[[], Steps]] = {
        SINGLE: partial(_single_steps, dataset, batch),
        LOOP: partial(_loop_steps, name, dataset, batch, gates, channels_last=True),
        LOOP_CHANNELS_FIRST: partial(_loop_steps, name, dataset, batch, gates, channels_last=False),
        SOFT: partial(_routed_steps, name, dataset, batch, gates),
        **{left: partial(_routed_steps, name, dataset, batch, choices) for left, choices in hard.items()},
    }
    measured = measure(makers, rounds, device)
    macs = {case: _macs(network, images, actions) for case, actions in {SOFT: gates, **hard}.items()}
    single_macs = count_macs(LoopOverPaths(_network(ONE_PATH, dataset)).single(), images[:1])

    def record(case: str, agent: str) -> Record:
        return {
            "agent": agent,
            "network": name,
            "blocks": network.paths,
            "batch": batch,
            **against(measured[case], measured[SINGLE], batch),
            "macs_ratio": macs[case] / single_macs,
        }

    soft = measured[SOFT]
    records = [
        {
            **record(SOFT, SOFT),
            **_over(soft, measured[LOOP], "loop"),
            **_over(soft, measured[LOOP_CHANNELS_FIRST], "channels_first_loop"),
            "loop_peak_memory_bytes": measured[LOOP].peak_memory,
        }
    ]
    for left in live:
        own = measured[str(left)]
        records.append(
            {
                **record(str(left), "hard choices"),
                "live_paths": left,
                "macs_of_soft": macs[str(left)] / macs[SOFT],
                "train_time_of_soft": median_ratio(own.train, soft.train),
                "inference_time_of_soft": median_ratio(own.infer, soft.infer),
            }
        )
    return records


def _over(routed: Measured, loop: Measured, name: str) -> Record:
    return {
        f"{name}_train_ratio": median_ratio(loop.train, routed.train),
        f"{name}_inference_ratio": median_ratio(loop.infer, routed.infer),
    }


def _network(name: str, dataset: MultiTaskDataset) -> ParallelPaths:
    """Return a network with the same first weights each time."""
    with first_weights(0):
        network = make_network(
            name, num_tasks=1, num_classes=dataset.num_classes, input_shape=dataset.input_shape, form="columns"
        )
    assert isinstance(network, ParallelPaths)
    return network.to(dataset.device)


def _images(dataset: MultiTaskDataset, batch: int, *, channels_last: bool) -> Tensor:
    images = dataset.pixels(torch.arange(batch, device=dataset.device))
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@torch.no_grad()
def _macs(network: ParallelPaths, images: Tensor, actions: Actions) -> float:
    return float(route(network.eval(), images, actions).macs.double().mean())


def _single_steps(dataset: MultiTaskDataset, batch: int) -> Steps:
    module = LoopOverPaths(_network(ONE_PATH, dataset)).single()
    _turn(module, channels_last=True)
    return _steps(module, partial(module, _images(dataset, batch, channels_last=True)), [], dataset.label[:batch])


def _loop_steps(name: str, dataset: MultiTaskDataset, batch: int, gates: Actions, *, channels_last: bool) -> Steps:
    loop, gates = LoopOverPaths(_network(name, dataset)), _leaves(gates)
    _turn(loop, channels_last=channels_last)
    images = _images(dataset, batch, channels_last=channels_last)
    return _steps(loop, partial(loop, images, gates), gates, dataset.label[:batch])


def _routed_steps(name: str, dataset: MultiTaskDataset, batch: int, actions: Actions) -> Steps:
    network, actions = _network(name, dataset), _leaves(actions)
    images = _images(dataset, batch, channels_last=True)
    return _steps(network, partial(logits_of, network, images, actions), actions, dataset.label[:batch])


def _turn(module: nn.Module, *, channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module.to(memory_format=layout)  # type: ignore[call-overload]


def _leaves(actions: Actions) -> list[Tensor]:
    """Return copies of which gates have a gradient; choices have none."""
    return [action.clone().requires_grad_(action.is_floating_point()) for action in actions]


def _steps(module: nn.Module, forward: Callable[[], Tensor], actions: Actions, labels: Tensor) -> Steps:
    optimizer = OPTIMIZERS["sgd"](module, lr=1e-2)

    def train() -> None:
        if not module.training:  # once, not in every step
            module.train()
        optimizer.zero_grad()
        for action in actions:
            action.grad = None
        functional.cross_entropy(forward(), labels).backward()
        optimizer.step()

    @torch.no_grad()
    def infer() -> None:
        if module.training:
            module.eval()
        forward()

    return Steps(train, infer)
