"""Fully connected layers as columns side by side, which may hand each other their activations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor, nn

from routing_gym.blocks import LinearBlocks
from routing_gym.networks.banked import features_of, one_after_the_other
from routing_gym.networks.options import check_counts
from routing_gym.networks.paths import RoutedPaths, tensors_of
from routing_gym.networks.state import Activation


class ColumnsMLP(RoutedPaths):
    """k columns of fully connected layers (Misra et al. 2016; Rosenbaum et al. 2018, section 4).

    Before every layer a k x k gate says how much of each column's activation goes to each column. All columns begin
    with the same activation, and a task's own column gives its logits; zeros where it was not computed.

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
        super().__init__(
            one_after_the_other(
                [f"layer {i + 1}" for i in range(layers)],
                [bank.macs for bank in banks],
                [num_blocks * inputs for inputs in widths],
                repeat(num_blocks),
            ),
            num_classes=num_classes,
            input_shape=input_shape,
            stem_macs=trunk_macs,
        )
        self.trunk, self.banks = trunk, nn.ModuleList(banks)

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Copies `(B, k, F)` of the trunk's features for all columns, and that all are alive, `(B, k)`."""
        features = (images if self.trunk is None else self.trunk(images)).flatten(1)
        columns = self.num_tensors
        return features.unsqueeze(1).expand(-1, columns, -1), features.new_ones(len(features), columns).bool()

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Logits `(r, num_classes)` of each row's column: its task's own."""
        return tensors_of(activation)[0][torch.arange(len(task), device=task.device), task]
