"""Fully connected layers as columns side by side, which may hand each other their activations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks import LinearBlocks, OwnedParameter, count_macs, probe
from routing_gym.networks.actions import Action
from routing_gym.networks.decision import EXIT, Decision
from routing_gym.networks.network import RoutedNetwork
from routing_gym.networks.state import Activation


class ColumnsMLP(RoutedNetwork):
    """k columns of fully connected layers (Misra et al. 2016; Rosenbaum et al. 2018, section 4).

    Before every layer a k x k gate says how much of each column's activation goes to each column: block j of a layer is
    fed with Σ_i g_ij v_i. All columns begin with the same activation, and a task's own column gives the answer. A
    column that nothing was sent to is not run, with `dense_backward` neither; an answer that was not computed is all
    zeros. So the entries of a gate that have a gradient are those towards columns that something was sent to.

    Args:
        input_shape: `(C, H, W)` of an image.
        num_classes: Width of the last layer.
        num_blocks: Columns, k, at least one per task.
        width: Width of the hidden layers.
        layers: Number of layers, at least 1.
        trunk: What runs on the images before the columns, shared by all; None for nothing.
        num_tasks: How many tasks there are.
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
        for option, value in {"width": width, "layers": layers, "num_classes": num_classes}.items():
            if value < 1:
                raise ValueError(f"columns need {option} of at least 1, got {value}")
        if num_blocks < num_tasks:
            raise ValueError(
                f"every one of the {num_tasks} tasks needs a column of its own, got num_blocks={num_blocks}"
            )
        image = torch.zeros(1, *input_shape)
        features = math.prod(input_shape) if trunk is None else probe(trunk, lambda: trunk(image)).flatten(1).shape[1]
        widths = [features, *[width] * (layers - 1), num_classes]
        banks = [LinearBlocks(num_blocks, widths[i], widths[i + 1], relu=i < layers - 1) for i in range(layers)]
        super().__init__(
            [
                Decision(
                    name=f"layer {i + 1}",
                    macs=bank.macs,
                    next=(i + 1 if i < layers - 1 else EXIT,) * num_blocks,
                    m=num_blocks,
                    width=num_blocks * widths[i],
                )
                for i, bank in enumerate(banks)
            ],
            num_classes=num_classes,
            input_shape=input_shape,
            stem_macs=0.0 if trunk is None else count_macs(trunk, image),
        )
        self.trunk = trunk
        self.banks = nn.ModuleList(banks)

    def bank(self, decision: int) -> LinearBlocks:
        """Return the blocks of a layer, one per column."""
        bank = self.banks[decision]
        assert isinstance(bank, LinearBlocks)
        return bank

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Run the trunk, if there is one, and give every column a copy: activations `(B, k, d)`, alive `(B, k)`."""
        features = (images if self.trunk is None else self.trunk(images)).flatten(1)
        columns = self.num_tensors
        return features.unsqueeze(1).expand(-1, columns, -1), features.new_ones(len(features), columns).bool()

    def alive(self, decision: int, activation: Activation) -> Tensor:
        """Return which columns carry something, `(r, k)` bool."""
        alive = activation[1]
        assert isinstance(alive, Tensor)
        return alive

    def transition(self, decision: int, activation: Activation, action: Action, task: Tensor) -> Activation:
        """Mix the columns by the gate, `(r, k, k)`, and run each column's block on what it was sent."""
        columns, bank = activation[0], self.bank(decision)
        assert isinstance(columns, Tensor) and isinstance(action, Tensor)
        gates = action if action.is_floating_point() else functional.one_hot(action, self.num_choices).to(columns.dtype)
        gates = gates if gates.ndim == 3 else gates.unsqueeze(1)
        mixed = torch.einsum("bij,bid->bjd", gates, columns)
        reached = (gates.detach() != 0).any(1)
        if bool(reached.all()):
            return bank.run_each(mixed), reached
        row, column = reached.nonzero(as_tuple=True)
        outputs = bank.run(mixed[row, column], column)
        empty = outputs.new_zeros(*reached.shape, bank.out_features)
        return empty.index_put((row, column), outputs), reached

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Return the output of the task's own column."""
        columns = activation[0]
        assert isinstance(columns, Tensor)
        return columns[torch.arange(len(task), device=task.device), task]

    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Return all columns, one after the other."""
        columns = activation[0]
        assert isinstance(columns, Tensor)
        return columns.flatten(1)

    def parameters_of(self, decision: int, choice: int) -> list[OwnedParameter]:
        """Return weight and bias of a column's block."""
        return self.bank(decision).parameters_of(choice)
