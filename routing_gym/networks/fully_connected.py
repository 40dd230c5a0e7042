"""The networks of Rosenbaum et al. (2018): fully connected layers on pixels, or on the features of a SimpleConvNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import repeat
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks import (
    FunctionBlocks,
    LinearBlocks,
    Link,
    ModuleBlocks,
    OwnedParameter,
    WithPass,
    run_chain,
    static_copy,
)
from routing_gym.networks.actions import Action
from routing_gym.networks.banked import (
    Deployable,
    blocks_per_bank,
    check_image,
    features_of,
    one_after_the_other,
)
from routing_gym.networks.parallel_paths import RoutedPaths, tensors_of
from routing_gym.networks.route import RoutedModule, route
from routing_gym.networks.state import Activation
from routing_gym.tasks.checking import check_choice, check_counts, whole_number

FILTERS = 32
STAGES = 4


class RoutedMLP(Deployable):
    """A multi-layer perceptron in which every layer offers k blocks (Rosenbaum et al. 2018, section 3).

    *Layered*: decision i offers the k blocks of layer i. *Recurrent* (Appendix 7.2): every block whose input and output
    are `width` wide is offered at every decision where the activation is, and so is PASS, the last choice there.

    Arguments are those of `fully_connected`. Layers that share their blocks count as one where `num_blocks` is a list;
    where PASS is offered it may be 0.
    """

    form = "paths"

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_blocks: int | Sequence[int],
        *,
        width: int = 48,
        layers: int = 3,
        recurrent: bool = False,
        trunk: nn.Module | None = None,
        task_input: bool = False,
        num_tasks: int = 1,
    ) -> None:
        check_counts(width=width, layers=layers, num_classes=num_classes)
        features, trunk_macs = features_of(trunk, input_shape)
        widths = [features + num_tasks * task_input, *[width] * (layers - 1), num_classes]
        repeatable = [i for i in range(layers - 1) if widths[i] == widths[i + 1] == width]
        if recurrent and not repeatable:
            raise ValueError(
                "a recurrent routed MLP needs a hidden layer that can be repeated, input and output both "
                f"{width} wide; the layers are {' -> '.join(map(str, widths))}"
            )
        shared = repeatable if recurrent else []
        own = [i for i in range(layers) if i not in shared[1:]]  # the layers that bring a bank
        counts = blocks_per_bank(num_blocks, [len(shared) if i in shared else 1 for i in own])
        banks: list[FunctionBlocks] = []
        for i, count in zip(own, counts, strict=True):
            if i in shared and count == 0:
                banks.append(ModuleBlocks([nn.Identity()], (width,)))  # PASS alone
            else:
                bank = LinearBlocks(count, widths[i], widths[i + 1], relu=i < layers - 1)
                banks.append(WithPass(bank) if i in shared else bank)
        bank_of = [own.index(shared[0] if i in shared else i) for i in range(layers)]
        names, macs = [f"layer {i + 1}" for i in range(layers)], [banks[number].macs for number in bank_of]
        decisions = one_after_the_other(names, macs, widths)
        super().__init__(decisions, num_classes=num_classes, input_shape=input_shape, stem_macs=trunk_macs)
        self.trunk, self.task_input, self.num_tasks = trunk, task_input, num_tasks
        self.banks = nn.ModuleList(banks)
        self.block_counts, self.bank_of = tuple(counts), bank_of

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Features `(B, F)` of the images, with a one-hot task where the network is told it."""
        features = (images if self.trunk is None else self.trunk(images)).flatten(1)
        if self.task_input:
            features = torch.cat([features, functional.one_hot(task, self.num_tasks).to(features.dtype)], 1)
        return (features,)

    def transition(self, decision: int, activation: Activation, action: Action, task: Tensor) -> Activation:
        """Output `(r, width)` of the chosen blocks; rows stay in the order of their blocks (see `plain`)."""
        link = self._link(decision)
        if link is not None and isinstance(action, Tensor) and not action.is_floating_point():
            return (run_chain([link], activation[0], action.unsqueeze(1)),)
        return super().transition(decision, activation, action, task)

    def _link(self, decision: int) -> Link | None:
        """Linear blocks of a layer; None where PASS is all there is, or a subclass runs them its own way."""
        bank = self.bank(decision)
        inner = bank.blocks if isinstance(bank, WithPass) else bank
        if isinstance(inner, LinearBlocks) and type(inner).run is LinearBlocks.run:
            return inner.link(passes=inner is not bank)
        return None

    def traverse(self, activation: Activation, plan: Tensor, task: Tensor, gates: Tensor | None = None) -> Activation:
        """Output of all layers at once; one by one where a subclass computes something else between them."""
        if type(self).transition is RoutedMLP.transition and type(self).enter is RoutedMLP.enter:
            links = list(filter(None, map(self._link, range(len(self.decisions)))))
            if len(links) == len(self.decisions):
                return (run_chain(links, activation[0], plan, gates),)
        return super().traverse(activation, plan, task, gates)

    def static_route(self, route: Sequence[int], task: int) -> list[nn.Module]:
        """Trunk, joined task where the network is told it, and the chosen layers."""
        parts: list[nn.Module] = [] if self.trunk is None else [static_copy(self.trunk)]
        parts.append(nn.Flatten())
        if self.task_input:
            parts.append(JoinTask(task, self.num_tasks).to(self.costs.device))
        for decision, choice in enumerate(route):
            parts += self.bank(decision).as_modules(choice)
        return parts


class JoinTask(nn.Module):
    """Joins a one-hot task, always the same, to features `(B, D)`."""

    one_hot: Tensor

    def __init__(self, task: int, num_tasks: int) -> None:
        super().__init__()
        self.register_buffer("one_hot", functional.one_hot(torch.tensor([task]), num_tasks).float())

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, D + num_tasks)`."""
        # shape[0], not len(): torch.export would take the latter for a constant.
        return torch.cat([features, self.one_hot.to(features.dtype).expand(features.shape[0], -1)], 1)


class ColumnsMLP(RoutedPaths):
    """k columns of fully connected layers (Misra et al. 2016; Rosenbaum et al. 2018, section 4).

    All columns begin with the same activation; a task's own gives its logits, zeros where it was not computed.

    Arguments are those of `fully_connected`: k is `num_blocks`, at least one per task.
    """

    form = "columns"

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_blocks: int,
        *,
        width: int = 48,
        layers: int = 3,
        trunk: nn.Module | None = None,
        num_tasks: int = 1,
    ) -> None:
        check_counts(width=width, layers=layers, num_classes=num_classes, num_blocks=num_blocks)
        if num_blocks < num_tasks:
            raise ValueError(
                f"every one of the {num_tasks} tasks needs a column of its own, got num_blocks={num_blocks}"
            )
        features, trunk_macs = features_of(trunk, input_shape)
        widths = [features, *[width] * (layers - 1), num_classes]
        banks = [LinearBlocks(num_blocks, widths[i], widths[i + 1], relu=i < layers - 1) for i in range(layers)]
        names, columns = [f"layer {i + 1}" for i in range(layers)], [num_blocks * inputs for inputs in widths]
        decisions = one_after_the_other(names, [bank.macs for bank in banks], columns, repeat(num_blocks))
        super().__init__(decisions, num_classes=num_classes, input_shape=input_shape, stem_macs=trunk_macs)
        self.trunk, self.banks = trunk, nn.ModuleList(banks)

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Copies `(B, k, F)` of the trunk's features for all columns, and that all are alive, `(B, k)`."""
        features = (images if self.trunk is None else self.trunk(images)).flatten(1)
        columns = features.unsqueeze(1).expand(-1, self.num_tensors, -1)
        return columns, torch.ones(columns.shape[:2], dtype=torch.bool, device=columns.device)

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Logits `(r, num_classes)` of each row's column: its task's own."""
        return tensors_of(activation)[0][torch.arange(task.shape[0], device=task.device), task]

    def readouts_by_task(self) -> Sequence[Sequence[OwnedParameter]]:
        """Parameters of the last layer: all columns run it, and a task's own gives its logits."""
        return self.bank(-1).parts()


def fully_connected(
    convolutions: bool,
    input_shape: Sequence[int],
    num_classes: int,
    num_blocks: int | Sequence[int],
    *,
    width: int = 48,
    layers: int = 3,
    recurrent: bool = False,
    task_input: bool = False,
    form: Literal["paths", "columns"] = "paths",
    routed_stages: int = 0,
    trunk_per_task: bool = False,
    num_tasks: int = 1,
    trunk: nn.Module | None = None,
) -> RoutedMLP | ColumnsMLP | RoutedModule:
    """Build routed fully connected layers, on pixels or behind the four convolutional stages of SimpleConvNet.

    Source: Ravi and Larochelle (2017), Rosenbaum et al. (2018), section 4. A stage is a 3x3 convolution with 32
    filters, batch norm, ReLU and 2x2 max-pooling: 128 features of 32x32 images, 32 of 28x28 and 800 of 84x84.

    Args:
        convolutions: Whether the convolutional stages come first.
        input_shape: `(C, H, W)` of an image, with convolutions at least 16 pixels high and wide.
        num_classes: Width of the last layer.
        num_blocks: Blocks per layer, or of paths a number for each.
        width: Width of the hidden layers: 48 as in the appendix and the authors' code, 128 in section 4.
        layers: Number of routed layers.
        recurrent: Offer every block that fits at every depth, and PASS.
        task_input: Join a one-hot task to the input of the first routed layer.
        form: `"paths"`: every instance takes one block per layer; or `"columns"`: all blocks stand side by side and
            hand each other their activations, as cross-stitch wants it.
        routed_stages: How many of the last convolutional stages are routed too, each with its batch norm, 0 to 4: k
            times the parameters where features are made, for the same multiply-accumulates per instance.
        trunk_per_task: Route all four stages, with a block of each for every task, so that tasks need share nothing;
            `num_blocks` says how many blocks the layers behind them have.
        num_tasks: Number of tasks.
        trunk: Runs on the images first, shared by all, where there are no convolutions; None for nothing.

    Raises:
        ValueError: Columns or routed stages with options they do not go with, or what the network itself refuses.
    """
    check_choice("form", form, "paths", "columns")
    if convolutions:
        check_image(input_shape, 2**STAGES)
        whole_number("routed_stages", routed_stages, 0, STAGES)
        # Channels last: pooling and batch norm run over neighbouring numbers, 1.6 times as fast on a CPU.
        stages = nn.Sequential(*(_stage(FILTERS if stage else input_shape[0]) for stage in range(STAGES)))
        trunk = stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if routed_stages or trunk_per_task:
        if recurrent or task_input or form != "paths":
            option = "a trunk per task" if trunk_per_task else "routed_stages"
            raise ValueError(f"{option} goes with neither recurrent=True nor task_input=True nor form='columns'")
        if trunk_per_task:
            routed_stages = STAGES  # a number for each of all banks is of a network that has been pruned
            if isinstance(num_blocks, int) or len(num_blocks) != STAGES + layers:
                num_blocks = [num_tasks] * STAGES + blocks_per_bank(num_blocks, [1] * layers)
        return _routed_stages(
            cast(nn.Sequential, trunk), routed_stages, input_shape, num_classes, num_blocks, width, layers
        )
    common: dict[str, Any] = {"width": width, "layers": layers, "trunk": trunk, "num_tasks": num_tasks}
    if form == "paths":
        return RoutedMLP(input_shape, num_classes, num_blocks, recurrent=recurrent, task_input=task_input, **common)
    if recurrent or task_input:
        raise ValueError(
            "form='columns' has neither recurrent=True nor task_input=True: a task has a column of its own"
        )
    return ColumnsMLP(input_shape, num_classes, cast(int, num_blocks), **common)  # which checks it


def _routed_stages(
    stages: nn.Sequential,
    routed_stages: int,
    input_shape: Sequence[int],
    num_classes: int,
    num_blocks: int | Sequence[int],
    width: int,
    layers: int,
) -> RoutedModule:
    """Fully connected layers behind convolutional stages, the last of which are routed too."""
    widths = [features_of(stages, input_shape)[0], *[width] * (layers - 1), num_classes]
    parts: dict[str, nn.Module] = {f"stage {number + 1}": stage for number, stage in enumerate(stages)}
    routed = [*list(parts)[STAGES - routed_stages :], *(f"layer {i + 1}" for i in range(layers))]
    parts["flatten"] = nn.Flatten()
    for i in range(layers):
        parts[f"layer {i + 1}"] = nn.Linear(widths[i], widths[i + 1])
        if i < layers - 1:
            parts[f"relu {i + 1}"] = nn.ReLU()
    return route(nn.Sequential(OrderedDict(parts)), routed, num_blocks, input_shape=input_shape)


def _stage(inputs: int) -> nn.Sequential:
    # Pooled before it is rectified: the same numbers, and a quarter of them to rectify.
    return nn.Sequential(nn.Conv2d(inputs, FILTERS, 3, padding=1), nn.BatchNorm2d(FILTERS), nn.MaxPool2d(2), nn.ReLU())
