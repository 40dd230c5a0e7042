"""Networks in which every instance passes all layers, each a bank of experts that may be unlike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from routing_gym.blocks import (
    LinearBlocks,
    ModuleBlocks,
    OwnedParameter,
    SkippableBlock,
    allow_small_groups,
    count_macs,
    plain,
    probe,
    static_copy,
)
from routing_gym.blocks.experts import double_expert, group_norm, image_bank
from routing_gym.networks.actions import Action
from routing_gym.networks.banked import Deployable, averaged, check_image, one_after_the_other
from routing_gym.networks.state import Activation
from routing_gym.tasks.checking import check_choice, check_counts

DIVERSE = ("conv3", "conv5", "conv7", "conv1x7", "max-pool", "average-pool", "identity")
CONVS = ("conv3", "conv3", "conv5", "conv5", "conv7", "conv7", "conv1x7")
"""Footnote 1: two of each pair of square kernels, and one 1x7 -> 7x1."""

POOLED_AFTER = (2, 4, 6)
SHARED_LAYERS = 3

Bank = ModuleBlocks | SkippableBlock
"""Experts of one layer: blocks that know the shape of their output."""

Experts = Sequence[str] | Sequence[Sequence[str]]
"""Names of the experts of all layers, or of each."""


class InTurn(nn.Sequential):
    """Modules one after the other, each called with the tuple of tensors that the one before returned."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors that the last module returns."""
        for module in self:
            tensors = module(*tensors)
        return tensors


class OnFirst(nn.Module):
    """Applies a module of one tensor to the first of several and leaves the others alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, first: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Output for the first, and the others."""
        return self.module(first), *others


class StaticRoute(InTurn):
    """One route through a network of experts as a plain network."""

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Logits `(B, num_classes)` of images."""
        return super().forward(images)[0]


class RoutedExperts(Deployable):
    """A network in which layers of experts and parts that all instances share take turns.

    Source: Ramachandran and Le, "Diversity and Depth in Per-Example Routing Models", ICLR 2019. A task is known at the
    end only: each has a linear readout of its own. What is shared, the readout included, is counted as `stem_macs`, so
    that a mixture of several experts does not pay for it several times.

    Args:
        stem: Runs first: images to a tuple of tensors, of which the first goes into the first layer.
        banks: Experts of every layer.
        between: Runs behind every layer: the mixture and the tensors that waited with it to a tuple as of `stem`;
            behind the last one to `(B, F)` features alone.
        experts: Names of every layer's experts.
        names: Names of the layers.
        num_tasks: Number of readouts.
        observes: Observation of a layer's input: `"mean"`, each channel averaged over the image, or over the tokens
            `(B, N, C)`; or `"map"`, all of it.

    Attributes:
        observed_shapes: Shape, without the batch axis, of every layer's input.
    """

    readout_per_task = True  # and none for a task that comes later

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        stem: nn.Module,
        banks: Sequence[Bank],
        between: Sequence[nn.Module],
        experts: Sequence[Sequence[str]],
        names: Sequence[str],
        num_tasks: int,
        observes: Literal["mean", "map"] = "mean",
    ) -> None:
        check_choice("observes", observes, "mean", "map")
        waiting: tuple[Tensor, ...] = (torch.zeros(1, *input_shape),)
        shared, shapes = 0.0, []
        for part, bank in zip([stem, *between], [*banks, None], strict=True):
            shared += count_macs(part, *waiting)
            waiting = probe(part, partial(part, *waiting))
            shapes.append(tuple(waiting[0].shape[1:]))
            if bank is not None:  # of an expert nothing is needed here but the shape of what it gives
                waiting = (torch.zeros(1, *bank.output_shape), *waiting[1:])
        *shapes, (features,) = shapes
        of_mean = [shape[1] if len(shape) == 2 else shape[0] for shape in shapes]
        widths = of_mean if observes == "mean" else [math.prod(shape) for shape in shapes]
        shared += sum(bank.shared_macs for bank in banks) + features * num_classes
        decisions = one_after_the_other(names, [bank.macs for bank in banks], widths)
        super().__init__(decisions, num_classes=num_classes, input_shape=input_shape, stem_macs=shared)
        self.trunk, self.observes, self.observed_shapes, self.num_tasks = stem, observes, shapes, num_tasks
        self.banks, self.between = nn.ModuleList(banks), nn.ModuleList(between)
        self.readouts = LinearBlocks(num_tasks, features, num_classes)
        self.experts = tuple(tuple(layer) for layer in experts)
        self.block_counts = tuple(bank.num_blocks for bank in banks)
        allow_small_groups(self)

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Tensors that the first part makes of images with their channels last in memory."""
        return self.trunk(images.contiguous(memory_format=torch.channels_last))

    def transition(self, decision: int, activation: Activation, action: Action, task: Tensor) -> Activation:
        """Tensors that the part behind the layer makes of the experts' mixture."""
        first, *others = (plain(part) for part in activation)
        return self.between[decision](self.bank(decision)(first, action), *others)

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Logits `(r, num_classes)`: what each row's own task makes of the features."""
        self.readouts.note_use(task)
        return self.readouts(plain(activation[0]), task)

    def readouts_by_task(self) -> Sequence[Sequence[OwnedParameter]]:
        """Parameters of each task's readout."""
        return self.readouts.parts()

    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Observation `(r, width)`: a layer's input, averaged over the image or its tokens, or flattened."""
        x = plain(activation[0])
        if self.observes == "map":
            return x.flatten(1)
        return x.mean(1) if x.ndim == 3 else averaged(x)

    def static_route(self, route: Sequence[int], task: int) -> list[nn.Module]:
        """One module: shared parts, chosen experts, the task's readout."""
        parts: list[nn.Module] = [static_copy(self.trunk)]
        for decision, choice in enumerate(route):
            parts += [OnFirst(module) for module in self.bank(decision).as_modules(choice)]
            parts.append(static_copy(self.between[decision]))
        return [StaticRoute(*parts, *(OnFirst(module) for module in self.readouts.as_modules(task)))]

    def pruned(self, routes: Tensor) -> tuple[Self, Tensor]:
        """See `Deployable.pruned`; what is left keeps its name."""
        smaller, renumbered = super().pruned(routes)
        layers = zip(self.experts, routes.t(), strict=True)
        smaller.experts = tuple(tuple(names[choice] for choice in taken.unique()) for names, taken in layers)
        return smaller, renumbered

    def form_options(self) -> dict[str, Any]:
        """Experts of every layer: their number alone would not say which they are."""
        return {"experts": [list(layer) for layer in self.experts]}


def experts_per_layer(experts: Experts, layers: int) -> list[tuple[str, ...]]:
    """Names of the experts of each layer, from a list for all or a list for each; all else is refused."""
    if not isinstance(experts, str) and experts:
        if all(isinstance(name, str) for name in experts):
            return [tuple(cast(Sequence[str], experts))] * layers
        if len(experts) == layers and not any(isinstance(layer, str) or not layer for layer in experts):
            return [tuple(layer) for layer in experts]
    raise ValueError(f"experts must be a list of names, or one for each of the {layers} layers, got {experts!r}")


def omniglot_experts(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 48,
    expert_mid: int = 48,
    layers: int = 8,
    readout: Literal["pooled", "flat"] = "pooled",
    experts: Experts = DIVERSE,
    num_tasks: int = 1,
) -> RoutedExperts:
    """Build a shared 3x3 convolution and layers of experts.

    Source: Ramachandran and Le (2019), section 4.2 and Table 2. The shared convolution, every convolution of an expert,
    and every mixture are followed by group normalisation and ReLU. The paper does not say where images are made
    smaller, nor what the readouts see: here 2x2 max-pooling comes after the shared convolution and after layers 2, 4
    and 6, unless they are the last.

    Args:
        input_shape: `(C, H, W)` of an image, at least 16 pixels high and wide.
        num_classes: Width of the logits.
        width: Channels of every layer.
        expert_mid: Channels between the two square convolutions of an expert; 1x7 and 7x1 always have `width`. With 48
            experts are as the paper words them, and omniglot-diverse has 3.37 million parameters for 20 tasks; with 24
            it has 1.84, where the paper prints 1.8.
        layers: Layers of experts.
        readout: Input of a task's linear readout: `"pooled"`, the average over the image, or `"flat"`, all of it.
        experts: Names of the experts of all layers, or a list of names for each layer.
        num_tasks: Number of tasks, each with a readout of its own.
    """
    check_image(input_shape, 2 ** (1 + len(POOLED_AFTER)))
    check_counts(width=width, expert_mid=expert_mid, layers=layers)
    check_choice("readout", readout, "pooled", "flat")
    kinds = experts_per_layer(experts, layers)
    shape, banks, between = (width, input_shape[1] // 2, input_shape[2] // 2), [], []
    for number, layer in enumerate(kinds, 1):
        banks.append(image_bank([double_expert(kind, width, expert_mid) for kind in layer], shape))
        parts: list[nn.Module] = [group_norm(width), nn.ReLU()]
        if number == layers:
            parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if readout == "pooled" else [nn.Flatten()]
        elif number in POOLED_AFTER:
            parts.append(nn.MaxPool2d(2))
            shape = width, shape[1] // 2, shape[2] // 2
        between.append(InTurn(OnFirst(nn.Sequential(*parts))))
    first = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
    stem = InTurn(OnFirst(nn.Sequential(first, group_norm(width), nn.ReLU(), nn.MaxPool2d(2))))
    names = [f"layer {number}" for number in range(1, layers + 1)]
    return RoutedExperts(input_shape, num_classes, stem, banks, between, kinds, names, num_tasks)


class MnistExperts(RoutedExperts):
    """Three shared layers and one layer of experts, all fully connected with layer normalisation and ReLU.

    Source: Ramachandran and Le (2019), section 4.1: 64 neurons each, 5 experts of which the agent mixes 2, on MNIST.

    Args:
        width: Width of every layer.
        num_experts: Number of experts.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, *, width: int = 64, num_experts: int = 5, num_tasks: int = 1
    ) -> None:
        check_counts(width=width, num_experts=num_experts)
        widths = [math.prod(input_shape), *[width] * SHARED_LAYERS]
        shared = [_linear_norm_relu(inputs, outputs) for inputs, outputs in zip(widths, widths[1:], strict=False)]
        stem = InTurn(OnFirst(nn.Sequential(nn.Flatten(), *shared)))
        bank = ModuleBlocks((_linear_norm_relu(width, width) for _ in range(num_experts)), (width,))
        kinds = [("fully connected",) * num_experts]
        super().__init__(input_shape, num_classes, stem, [bank], [InTurn()], kinds, ["layer 4"], num_tasks)

    def form_options(self) -> dict[str, Any]:
        """Number of experts, which are all alike."""
        return {"num_experts": self.block_counts[0]}


def _linear_norm_relu(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU())
