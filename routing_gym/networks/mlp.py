"""The routed fully connected layers of Routing Networks (Rosenbaum et al. 2018), layered and recurrent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks import FunctionBlocks, LinearBlocks, OwnedParameter, WithPass, count_macs, plain, probe
from routing_gym.networks.actions import Action
from routing_gym.networks.decision import EXIT, Decision
from routing_gym.networks.network import RoutedNetwork
from routing_gym.networks.state import Activation


class RoutedMLP(RoutedNetwork):
    """A multi-layer perceptron in which every layer offers k blocks (Rosenbaum et al. 2018, section 3).

    *Layered*: decision i offers the k blocks of layer i. *Recurrent* (Appendix 7.2): the same blocks, but every
    block whose input and output are `width` wide is offered at every decision where the activation is `width` wide,
    and so is PASS, the last choice there. The last decision always picks a classification block.

    Args:
        input_shape: `(C, H, W)` of an image; its pixels go straight into the first routed layer.
        num_classes: Width of the last layer.
        num_blocks: Blocks per layer, k.
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
        num_blocks: int,
        *,
        width: int = 48,
        layers: int = 3,
        recurrent: bool = False,
        trunk: nn.Module | None = None,
        task_input: bool = False,
        num_tasks: int = 1,
    ) -> None:
        for option, value in {"width": width, "layers": layers, "num_classes": num_classes}.items():
            if value < 1:
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
        banks: list[FunctionBlocks] = []
        bank_of: list[int] = []
        for i in range(layers):
            if recurrent and i in repeatable[1:]:
                bank_of.append(bank_of[repeatable[0]])
                continue
            copies = len(repeatable) if recurrent and i in repeatable else 1
            bank = LinearBlocks(num_blocks * copies, widths[i], widths[i + 1], relu=i < layers - 1)
            banks.append(WithPass(bank) if recurrent and i in repeatable else bank)
            bank_of.append(len(banks) - 1)
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
        self._bank_of = bank_of

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
        blocks, x = self.blocks(decision), activation[0]
        if isinstance(blocks, LinearBlocks) and isinstance(action, Tensor) and not action.is_floating_point():
            return (blocks.run_sorted(x, action),)
        return (blocks(plain(x), action),)

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Return the output of the last layer as it is."""
        return plain(activation[0])

    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Return the activation itself."""
        return plain(activation[0])

    def parameters_of(self, decision: int, choice: int) -> list[OwnedParameter]:
        """Return the chosen block's weight and bias."""
        return self.blocks(decision).parameters_of(choice)
