"""The routed fully connected layers of Routing Networks (Rosenbaum et al. 2018), layered and recurrent."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

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
    count_macs,
    first_weights,
    plain,
    probe,
    run_chain,
    static_copy,
)
from routing_gym.networks.actions import Action
from routing_gym.networks.decision import EXIT, Decision
from routing_gym.networks.deployable import Deployable, JoinTask, blocks_per_set
from routing_gym.networks.state import Activation
from routing_gym.tasks.checking import whole_number


class RoutedMLP(Deployable):
    """A multi-layer perceptron in which every layer offers k blocks (Rosenbaum et al. 2018, section 3).

    *Layered*: decision i offers the k blocks of layer i. *Recurrent* (Appendix 7.2): the same blocks, but every
    block whose input and output are `width` wide is offered at every decision where the activation is `width` wide,
    and so is PASS, the last choice there. The last decision always picks a classification block.

    Args:
        input_shape: `(C, H, W)` of an image; its pixels go straight into the first routed layer.
        num_classes: Width of the last layer.
        num_blocks: Blocks per layer, k; or a number for each layer, layers that share their blocks counting as one.
            Where PASS is offered it may be 0.
        width: Width of the hidden layers.
        layers: Number of routed layers, at least 1.
        recurrent: Offer every block that fits at every depth, and PASS.
        trunk: What runs on the images before the first decision, shared by all; None for nothing.
        task_input: Join a one-hot task to the input of the first routed layer.
        num_tasks: How many tasks there are, for `task_input`.
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
        for option, value in {"width": width, "layers": layers, "num_classes": num_classes}.items():
            if whole_number(f"{option} of a routed MLP", value, least=None) < 1:
                raise ValueError(f"a routed MLP needs {option} of at least 1, got {value}")
        image = torch.zeros(1, *input_shape)
        in_features = (
            math.prod(input_shape) if trunk is None else probe(trunk, lambda: trunk(image)).flatten(1).shape[1]
        )
        in_features += num_tasks if task_input else 0
        widths = [in_features, *[width] * (layers - 1), num_classes]
        repeatable = [i for i in range(layers - 1) if widths[i] == widths[i + 1] == width]
        if recurrent and not repeatable:
            raise ValueError(
                "a recurrent routed MLP needs a hidden layer that can be repeated, input and output both "
                f"{width} wide; the layers are {' -> '.join(map(str, widths))}"
            )
        shared = repeatable if recurrent else []
        own = [i for i in range(layers) if i not in shared[1:]]  # the layers that bring a set of blocks
        counts = blocks_per_set(num_blocks, [len(shared) if i in shared else 1 for i in own])
        banks: list[FunctionBlocks] = []
        for i, count in zip(own, counts, strict=True):
            if i in shared and count == 0:
                banks.append(ModuleBlocks([nn.Identity()], (width,)))  # PASS alone
                continue
            bank = LinearBlocks(count, widths[i], widths[i + 1], relu=i < layers - 1)
            banks.append(WithPass(bank) if i in shared else bank)
        bank_of = [own.index(shared[0] if i in shared else i) for i in range(layers)]
        super().__init__(
            [
                Decision(
                    name=f"layer {i + 1}",
                    macs=banks[bank_of[i]].macs,
                    next=(i + 1 if i < layers - 1 else EXIT,) * banks[bank_of[i]].num_blocks,
                    width=widths[i],
                )
                for i in range(layers)
            ],
            num_classes=num_classes,
            input_shape=input_shape,
            stem_macs=0.0 if trunk is None else count_macs(trunk, image),
        )
        self.trunk, self.task_input, self.num_tasks = trunk, task_input, num_tasks
        self.banks = nn.ModuleList(banks)
        self.block_counts = tuple(counts)
        self._bank_of = bank_of
        self._form: dict[str, Any] = {
            "input_shape": tuple(input_shape),
            "num_classes": num_classes,
            "width": width,
            "layers": layers,
            "recurrent": recurrent,
            "task_input": task_input,
            "num_tasks": num_tasks,
        }

    def blocks(self, decision: int) -> FunctionBlocks:
        """Return the blocks a decision offers."""
        bank = self.banks[self._bank_of[decision]]
        assert isinstance(bank, FunctionBlocks)
        return bank

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Run the trunk, if there is one, flatten what comes, and join the task where that is asked for."""
        features = (images if self.trunk is None else self.trunk(images)).flatten(1)
        if self.task_input:
            features = torch.cat([features, functional.one_hot(task, self.num_tasks).to(features.dtype)], 1)
        return (features,)

    def transition(self, decision: int, activation: Activation, action: Action, task: Tensor) -> Activation:
        """Run the chosen blocks of one layer; rows stay in the order of their blocks (see `plain`)."""
        link, x = self._link(decision), activation[0]
        if link is not None and isinstance(action, Tensor) and not action.is_floating_point():
            return (run_chain([link], x, action.unsqueeze(1)),)
        return (self.blocks(decision)(plain(x), action),)

    def _link(self, decision: int) -> Link | None:
        """Return the linear blocks of a layer; None where PASS is all there is, or a subclass runs them its own way."""
        bank = self.blocks(decision)
        inner = bank.blocks if isinstance(bank, WithPass) else bank
        if not isinstance(inner, LinearBlocks):
            return None
        if type(inner).run is not LinearBlocks.run:
            return None
        return inner.link(passes=inner is not bank)

    def traverse(self, activation: Activation, plan: Tensor, task: Tensor) -> Activation:
        """Run all layers at once; one by one where a subclass computes something else between them."""
        if type(self).transition is not RoutedMLP.transition or type(self).enter is not RoutedMLP.enter:
            return super().traverse(activation, plan, task)
        links = [link for number in range(len(self.decisions)) if (link := self._link(number)) is not None]
        if len(links) == len(self.decisions):
            return (run_chain(links, activation[0], plan),)
        return super().traverse(activation, plan, task)

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Return the output of the last layer as it is."""
        return plain(activation[0])

    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Return the activation itself."""
        return plain(activation[0])

    def parameters_of(self, decision: int, choice: int) -> list[OwnedParameter]:
        """Return the chosen block's weight and bias."""
        return self.blocks(decision).parameters_of(choice)

    def static_route(self, route: Sequence[int], task: int) -> list[nn.Module]:
        """Return the trunk, the joined task where the network is told it, and the chosen layers."""
        parts: list[nn.Module] = [] if self.trunk is None else [static_copy(self.trunk)]
        parts.append(nn.Flatten())
        if self.task_input:
            parts.append(JoinTask(task, self.num_tasks).to(self._costs.device))
        for decision, choice in enumerate(route):
            parts += self.blocks(decision).as_modules(choice)
        return parts

    def pruned(self, routes: Tensor) -> tuple[RoutedMLP, Tensor]:
        """Return a copy without the blocks that no route takes, and the routes in its numbering.

        Layers that share their blocks keep what any of them needs; PASS, which costs nothing, stays where it is.
        """
        kept: list[list[int]] = []
        for number, count in enumerate(self.block_counts):
            taken = routes[:, [i for i, bank in enumerate(self._bank_of) if bank == number]]
            kept.append(taken[taken < count].unique().tolist())
        trunk = None if self.trunk is None else copy.deepcopy(self.trunk).cpu()
        with first_weights(0):  # they are not used
            smaller = RoutedMLP(num_blocks=[len(blocks) for blocks in kept], trunk=trunk, **self._form)
        columns = []
        for i, column in enumerate(routes.t().contiguous()):
            number, offered = self._bank_of[i], self.blocks(i)
            # Beyond the blocks lies PASS, if anything.
            choices = [*kept[number], *range(self.block_counts[number], offered.num_blocks)]
            if kept[number]:
                smaller.banks[number] = offered.select(choices)
            columns.append(torch.searchsorted(torch.tensor(choices), column))
        return smaller.to(self._costs.device), torch.stack(columns, 1)
