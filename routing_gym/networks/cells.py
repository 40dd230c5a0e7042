"""Stacked architecture search cells, routed: the network for routing depth of Ramachandran and Le (2019)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks import ModuleBlocks, allow_small_groups, count_macs, plain
from routing_gym.networks.actions import Action
from routing_gym.networks.banked import BankedNetwork, averaged, check_image, one_after_the_other
from routing_gym.networks.state import Activation
from routing_gym.tasks.checking import check_counts

CHOICE_BLOCKS = 4
STAGES = 3
STEM = 3
"""Channels of the stem in units of `filters`."""

OPERATIONS = (
    "separable 3x3",
    "separable 5x5",
    "separable 7x7",
    "1x7 then 7x1",
    "max-pool 3x3",
    "average-pool 3x3",
    "identity",
)
"""Choices of an operation decision."""


class RoutedCells(BankedNetwork):
    """Cells of four choice blocks, each of which decides twice: which inputs, and which operations.

    Source: Ramachandran and Le, "Diversity and Depth in Per-Example Routing Models", ICLR 2019, sections 2.2 (and
    Fig. 3) and 4.3: every cell takes the outputs of the two cells before it; every choice block can take these and the
    choice blocks before it in its cell, 2 to 5 inputs; what is aggregated goes to the operations, whose outputs are
    aggregated. For the cell the paper points to Bender et al. (ICML 2018), whose text was not at hand: the operations
    (`OPERATIONS`) are what is commonly said of it, and the rest is as NASBench-1Shot1 has rebuilt it.

    - Every convolution is ReLU, convolution without bias, batch norm; a separable one has batch norm after both halves.
    - The stem, both inputs of the first cell, is a 3x3 convolution with 3 F filters and batch norm, as in NASNet's.
    - Each cell brings both its inputs to its own width with a 1x1 convolution, for all its choice blocks. From each
      third of the cells to the next, channels double and the image halves: what comes from an earlier third is
      averaged over 2x2 squares first.
    - An input decision puts a 1x1 convolution of its own before each input, as one of the joined inputs would be.
    - Both poolings are followed by a 1x1 convolution, a cell's output is the sum of its choice blocks', and the last
      cell's is rectified, averaged over the image and classified by a linear layer.

    Parameters round to those of Table 4 with everything on, in millions: 1.3, 4.8, 18.5 and 72.7 for C = 6 and F = 16
    to 128. Where the 1x1 convolutions stand these do not settle; joined instead of added choice blocks would not fit.
    What an example uses (2.5 and 9.6 for F = 32 and 64, k falling linearly from 7 to 2 operations and from 5 to 2
    inputs) fits too, but no reading was found that gives 7.8 for C = 12 as well.

    Weights mix activations. A router sees its decision's tensors averaged over the image: all that can be chosen, side
    by side, oldest first, at an input decision; the mixed input at an operation decision. All tasks share everything.
    `stem_macs` holds all that runs in any case: stem, the cells' 1x1 convolutions of their inputs, classifier.

    Args:
        input_shape: `(C, H, W)` of an image, at least 4 pixels high and wide.
        cells: Number of cells, C; each makes 8 decisions.
        filters: Channels of the first third, F.

    Attributes:
        widths: Channels of each cell.
        experts: Names of the choices of each decision.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, cells: int = 6, filters: int = 32) -> None:
        check_image(input_shape, 2 ** (STAGES - 1))
        check_counts(num_classes=num_classes, cells=cells, filters=filters)
        stages = [STAGES * cell // cells for cell in range(cells)]
        widths = [filters * 2**stage for stage in stages]
        sizes = [(input_shape[1] >> stage, input_shape[2] >> stage) for stage in stages]
        # Channels and third of what goes into each cell: the stem twice, then the cells.
        before = [(STEM * filters, 0)] * 2 + list(zip(widths, stages, strict=True))
        stem = nn.Sequential(
            nn.Conv2d(input_shape[0], STEM * filters, 3, padding=1, bias=False), nn.BatchNorm2d(STEM * filters)
        )
        # Cell by cell one for each of its two inputs.
        adapted = [(before[cell + i], cell) for cell in range(cells) for i in (0, 1)]
        adapters = [rectified_conv(channels, widths[cell]) for (channels, _), cell in adapted]
        places = [(cell, block) for cell in range(cells) for block in range(CHOICE_BLOCKS)]
        inputs = []
        for cell, block in places:
            convs = (OfOne(number, *rectified_conv(widths[cell], widths[cell])) for number in range(2 + block))
            inputs.append(ModuleBlocks(convs, (2 + block, widths[cell], *sizes[cell])))
        operations = [ModuleBlocks(make_operations(widths[cell]), (widths[cell], *sizes[cell])) for cell, _ in places]
        classifier = nn.Linear(widths[-1], num_classes)
        fixed = count_macs(stem, torch.zeros(1, *input_shape)) + count_macs(classifier, torch.zeros(1, widths[-1]))
        for adapter, ((channels, _), cell) in zip(adapters, adapted, strict=True):
            fixed += count_macs(adapter, torch.zeros(1, channels, *sizes[cell]))
        names = [f"cell {cell + 1}, block {block + 1}" for cell, block in places]
        banks = [bank for pair in zip(inputs, operations, strict=True) for bank in pair]
        names = [f"{name}: {what}" for name in names for what in ("inputs", "operations")]
        seen = [width for cell, block in places for width in ((2 + block) * widths[cell], widths[cell])]
        decisions = one_after_the_other(names, [bank.macs for bank in banks], seen)
        super().__init__(decisions, num_classes=num_classes, input_shape=input_shape, stem_macs=fixed)
        self.widths = tuple(widths)
        offers = [("two cells back", "one cell back", *(f"block {i + 1}" for i in range(block))) for _, block in places]
        self.experts = tuple(names for offer in offers for names in (offer, OPERATIONS))
        self._times = [2 ** (stages[cell] - stage) for (_, stage), cell in adapted]
        self.first, self.classifier = stem, classifier
        self.adapters, self.banks = nn.ModuleList(adapters), nn.ModuleList(banks)
        allow_small_groups(self)

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Inputs of the first choice block, and the stem's output for the second cell."""
        first = self.first(images)
        return self._begin(0, first, first)

    def transition(self, decision: int, activation: Activation, action: Action, task: Tensor) -> Activation:
        """Activation after inputs were mixed, or operations run on the mixed input.

        At an input decision these tensors wait: all that can be chosen, oldest first; at an operation decision the
        mixed input, then what the later choice blocks can choose or, at a cell's last, the sum of those before. Behind
        these, in all cells but the last: the output of the cell before, which the next cell takes.
        """
        tensors = [plain(tensor) for tensor in activation]
        place, is_operation = divmod(decision, 2)
        cell, block = divmod(place, CHOICE_BLOCKS)
        last = block == CHOICE_BLOCKS - 1
        if not is_operation:
            offered, behind = tensors[: 2 + block], tensors[2 + block :]
            mixed = self.bank(decision)(SideBySide(offered), action)
            return (mixed, *([functools.reduce(torch.add, offered[2:])] if last else offered), *behind)
        y = self.bank(decision)(tensors[0], action)
        if not last:
            return (*tensors[1 : 3 + block], y, *tensors[3 + block :])
        output = tensors[1] + y
        return self._begin(cell + 1, tensors[2], output) if cell + 1 < len(self.widths) else (output,)

    def _begin(self, cell: int, older: Tensor, newer: Tensor) -> Activation:
        """Tensors that wait at the first decision of a cell, given the outputs of the two before it."""
        taken = []
        for number, x in enumerate((older, newer), 2 * cell):
            times = self._times[number]
            # Made smaller before the convolution, of which less is left to do then.
            taken.append(self.adapters[number](functional.avg_pool2d(x, times) if times > 1 else x))
        return (*taken, newer) if cell + 1 < len(self.widths) else tuple(taken)

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Logits `(r, num_classes)` of the last cell's output."""
        return self.classifier(plain(activation[0]).relu().mean((2, 3)))

    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Averages over the image: of all that can be chosen, side by side, or of the mixed input."""
        place, is_operation = divmod(decision, 2)
        seen = activation[: 1 if is_operation else 2 + place % CHOICE_BLOCKS]
        return torch.cat([averaged(plain(tensor)) for tensor in seen], 1)


def make_operations(filters: int) -> list[nn.Module]:
    """Build the seven operations of a choice block, from `(B, filters, H, W)` to the same shape."""
    return [
        *(nn.Sequential(*_separable(filters, size), *_separable(filters, size)) for size in (3, 5, 7)),
        nn.Sequential(*rectified_conv(filters, filters, (1, 7)), *rectified_conv(filters, filters, (7, 1))),
        nn.Sequential(nn.MaxPool2d(3, 1, padding=1), *rectified_conv(filters, filters)),
        nn.Sequential(nn.AvgPool2d(3, 1, padding=1, count_include_pad=False), *rectified_conv(filters, filters)),
        nn.Identity(),
    ]


def rectified_conv(inputs: int, outputs: int, size: tuple[int, int] = (1, 1)) -> nn.Sequential:
    """Build ReLU, a convolution that keeps the image's size, and batch norm."""
    padding = (size[0] // 2, size[1] // 2)
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(inputs, outputs, size, padding=padding, bias=False), nn.BatchNorm2d(outputs)
    )


def _separable(filters: int, size: int) -> nn.Sequential:
    """Build ReLU, a convolution of each channel alone, and one across channels, each with batch norm."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(filters, filters, size, padding=size // 2, groups=filters, bias=False),
        nn.BatchNorm2d(filters),
        nn.Conv2d(filters, filters, 1, bias=False),
        nn.BatchNorm2d(filters),
    )


class SideBySide:
    """Stands for n tensors `(r, C, H, W)` put side by side, `(r, n, C, H, W)`, of which each block reads one.

    Rows, `(r,)` int64, all by default, are copied when a block reads them, of its own tensor alone.
    """

    ndim = 5

    def __init__(self, tensors: Sequence[Tensor], rows: Tensor | None = None) -> None:
        self.tensors, self.rows = tensors, rows
        self.device, self.new_zeros = tensors[0].device, tensors[0].new_zeros

    def __len__(self) -> int:
        return len(self.tensors[0] if self.rows is None else self.rows)

    def __getitem__(self, place: tuple[slice, int]) -> Tensor:
        tensor = self.tensors[place[1]]
        return tensor if self.rows is None else tensor.index_select(0, self.rows)

    def index_select(self, dim: int, rows: Tensor) -> SideBySide:
        """Some rows, where these are all."""
        return SideBySide(self.tensors, rows)

    def split(self, counts: list[int]) -> list[SideBySide]:
        """Chosen rows in pieces."""
        assert self.rows is not None
        return [SideBySide(self.tensors, rows) for rows in self.rows.split(counts)]


class OfOne(nn.Sequential):
    """Layers that read one, `number`, of several tensors `(B, n, C, H, W)`."""

    def __init__(self, number: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.number = number

    def forward(self, tensors: Tensor | SideBySide) -> Tensor:
        """Output of the layers for that tensor."""
        return super().forward(tensors[:, self.number])
