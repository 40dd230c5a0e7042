"""The multiscale pyramid of Deciding How to Decide (McGill and Perona 2017): columns, chain and tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from routing_gym.blocks import OwnedParameter, allow_small_groups, count_macs, in_few_sizes, plain, probe, static_copy
from routing_gym.networks.banked import check_image
from routing_gym.networks.network import RoutedNetwork
from routing_gym.networks.route import RoutedModule, route
from routing_gym.networks.state import EXIT, Activation, Decision, ways_out
from routing_gym.tasks.checking import check_counts, whole_number

CHANNELS = ((1, 1, 1, 1), (1, 1, 1, 1), (2, 2, 2), (2, 2, 2), (4, 4), (4, 4), (8,), (8,))
"""Channels of each scale of each column in units of `width`, finest first; a shorter list is of the coarser scales."""

SCALES = len(CHANNELS[0])
EPSILON = 1e-6
DECAY = 0.9  # of the running averages of batch norm (section 4.7); PyTorch's momentum is what is left to 1


class Column(nn.Module):
    """One column of the pyramid (section 3.1, Fig. 3): 3x3 convolutions at several scales, batch norm, ReLU.

    A scale adds up two convolutions: of the same scale of the column before, with a bias, and, without, of the next
    finer scale of this column, 2x2 max-pooled. Batch norm and ReLU come after that, in scales that go out.

    Args:
        inputs: Channels of each input scale, finest first; only the coarsest `len(outputs)` are read.
        outputs: Channels of each scale that is computed.
        kept: Number of scales that go out, the coarsest ones.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], kept: int) -> None:
        super().__init__()
        inputs = inputs[-len(outputs) :]
        across, down = zip(inputs, outputs, strict=True), zip(outputs[:-1], outputs[1:], strict=True)
        self.across = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in across)
        self.down = nn.ModuleList(nn.Conv2d(finer, coarser, 3, padding=1, bias=False) for finer, coarser in down)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c, eps=EPSILON, momentum=1 - DECAY) for c in outputs[-kept:])

    def forward(self, *scales: Tensor, rows: int | None = None) -> tuple[Tensor, ...]:
        """Scales, `kept` of them, from those of the column before, `(r, C, H, W)` each, finest first.

        Only the first `rows` count, if given; the others fill the convolutions' batch up.
        """
        unread = len(self.across) - len(self.norms)
        outputs, finer = [], scales[0]
        for i, (across, x) in enumerate(zip(self.across, scales[-len(self.across) :], strict=True)):
            y = across(x)
            if i > 0:
                y = y + self.down[i - 1](max_pool(finer))
            if i >= unread:
                outputs.append(functional.relu(self.norms[i - unread](y if rows is None else y[:rows]), inplace=True))
            finer = y
        return tuple(outputs)


@fx.wrap
def max_pool(x: Tensor) -> Tensor:
    """Maxima of 2x2 pixels, `torch.nn.functional.max_pool2d(x, 2)`, faster where no one trains."""
    if torch.compiler.is_exporting() or (torch.is_grad_enabled() and x.requires_grad):
        return functional.max_pool2d(x, 2)
    # PyTorch looks for the place of each maximum too, which is needed for the gradient only.
    height, width = (size - size % 2 for size in x.shape[-2:])
    rows = torch.maximum(x[:, :, :height:2, :width], x[:, :, 1:height:2, :width])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


@fx.wrap
def average_pool(x: Tensor) -> Tensor:
    """Means of 2x2 pixels, `torch.nn.functional.avg_pool2d(x, 2)`, several times as fast where no one trains."""
    if torch.compiler.is_exporting() or (torch.is_grad_enabled() and x.requires_grad):
        return functional.avg_pool2d(x, 2)
    height, width = (size - size % 2 for size in x.shape[-2:])
    rows = x[:, :, :height:2, :width] + x[:, :, 1:height:2, :width]
    return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)


class StaticPyramid(nn.Module):
    """Columns one after the other and a classifier: a plain network, the statically routed one of section 5.1.

    The last column loses the batch norms of all scales but the coarsest, which, flattened, is classified.
    """

    def __init__(self, columns: Iterable[Column], classifier: nn.Module) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)
        last = cast(Column, self.columns[-1])
        last.norms = last.norms[-1:]
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)`."""
        scales = image_pyramid(images)
        for column in self.columns:
            scales = column(*scales)
        return self.classifier(scales[-1].flatten(1))


def static_pyramid(input_shape: Sequence[int], num_classes: int, *, columns: int = 8, width: int = 16) -> StaticPyramid:
    """Build the first columns of the chain and a classifier (section 5.1); arguments are those of `pyramid_static`."""
    check_form(input_shape, num_classes, width)
    whole_number("columns", columns, 1, len(CHANNELS))
    return StaticPyramid(
        (make_column(input_shape, width, depth, columns) for depth in range(columns)),
        make_classifier(input_shape, num_classes, width, columns - 1),
    )


def image_pyramid(images: Tensor) -> tuple[Tensor, ...]:
    """Images `(B, C, H, W)` at four scales, finest first; each coarser one averages 2x2 pixels."""
    # Channels last in memory: max-pooling on a CPU is several times as fast.
    scales = [images.contiguous(memory_format=torch.channels_last)]
    for _ in range(SCALES - 1):
        scales.append(average_pool(scales[-1]))
    return tuple(scales)


def channels_of(width: int, depth: int) -> list[int]:
    """Channels of each scale of a column, finest first; the first column has depth 0."""
    return [width * times for times in CHANNELS[depth]]


def make_column(input_shape: Sequence[int], width: int, depth: int, columns: int) -> Column:
    """Build a column of a network of so many, with the first weights of section 4.7."""
    inputs = [input_shape[0]] * SCALES if depth == 0 else channels_of(width, depth - 1)
    kept = 1 if depth == columns - 1 else len(CHANNELS[depth + 1])
    column = Column(inputs, channels_of(width, depth), kept).apply(_draw)
    # Channels last, as in `simple_convnet`: 1.5 times as fast on a CPU.
    return column.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_classifier(input_shape: Sequence[int], num_classes: int, width: int, depth: int) -> nn.Linear:
    """Build the classifier on the coarsest scale of a column, with the first weights of section 4.7."""
    return nn.Linear(num_features(input_shape, width, depth), num_classes).apply(_draw)


def _draw(part: nn.Module) -> None:
    """Draw Xavier's first weights; all biases begin at 0."""
    if isinstance(part, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(part.weight)
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def num_features(input_shape: Sequence[int], width: int, depth: int) -> int:
    """Number of features of the coarsest scale of a column."""
    height, breadth = (side // 2 ** (SCALES - 1) for side in input_shape[1:])
    return channels_of(width, depth)[-1] * height * breadth


@cache
def costs_by_depth(
    input_shape: tuple[int, ...], num_classes: int, width: int, columns: int
) -> tuple[tuple[float, float], ...]:
    """Multiply-accumulates per row of the column of each depth and its classifier."""
    # Cached: counting takes longer than building.
    costs = []
    with torch.device("meta"):
        scales = image_pyramid(torch.zeros(1, *input_shape))
        for depth in range(columns):
            column = make_column(input_shape, width, depth, columns)
            head = make_classifier(input_shape, num_classes, width, depth)
            cost = count_macs(column, *scales)
            scales = probe(column, partial(column, *scales))
            costs.append((cost, count_macs(head, scales[-1].flatten(1))))
    return tuple(costs)


def check_form(input_shape: Sequence[int], num_classes: int, width: int) -> None:
    """Refuse images too small for the scales, and numbers out of range."""
    check_image(input_shape, 2 ** (SCALES - 1))
    check_counts(num_classes=num_classes, width=width)


class RoutedPyramid(RoutedNetwork):
    """Columns of a pyramid with a decision after each: classify here (choice 0), or go on to a column that follows.

    Source: McGill and Perona, "Deciding How to Decide: Dynamic Routing in Artificial Neural Networks", ICML 2017,
    section 3.1 and Fig. 3; batch norm and first weights from section 4.7; the tree from sections 5.1 and 5.4 (Figs. 5
    and 7): 1 + 2 + 4 columns and then eight chains of five.

    A decision sees the coarsest scale of its column, flattened. Weights mix outcomes. A last column has one way on, to
    classify, so there is no decision: that classifier is part of the choice of the last column. The router of the
    paper is an agent and its cost is counted there.

    The paper is silent on these: coarser scales of the image are 2x2 averages of the next finer one; Xavier's first
    weights are drawn from its uniform distribution; odd sizes are rounded down; decisions are numbered column by
    column, left before right; instances of all tasks share everything, and none is told its task.

    Args:
        input_shape: `(C, H, W)` of an image, at least 8 pixels high and wide.
        width: Channels of the finest scale, 16 in the paper; 32 and 48 in Fig. 10.
        columns: Columns on the way to each last one, 2 to 8.
        junctions: Number of first columns behind which it splits in two, up to `columns - 1`; 3 in the paper's tree, 0
            make a chain.

    Attributes:
        tree: For each column those that follow it. Columns stand in the order of their depth.
        inner: Column of each decision.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, *, width: int = 16, columns: int = 8, junctions: int = 0
    ) -> None:
        check_form(input_shape, num_classes, width)
        whole_number("columns", columns, 2, len(CHANNELS))
        whole_number("junctions", junctions, 0, columns - 1)
        tree, depth, names = _tree(columns, junctions)
        built = [make_column(input_shape, width, d, columns) for d in depth]
        classifiers = [make_classifier(input_shape, num_classes, width, d) for d in depth]
        costs = costs_by_depth(tuple(input_shape), num_classes, width, columns)
        inner = [j for j, following in enumerate(tree) if following]
        number = {column: i for i, column in enumerate(inner)}
        decisions = []
        for j in inner:
            features, (_, head) = num_features(input_shape, width, depth[j]), costs[depth[j]]
            # A last column is run with its classifier.
            onward = (costs[depth[c]][0] + (0.0 if tree[c] else costs[depth[c]][1]) for c in tree[j])
            ways = (EXIT, *(number.get(c, EXIT) for c in tree[j]))
            decisions.append(Decision(names[j], (head, *onward), ways, mixing="outcome", width=features))
        super().__init__(decisions, num_classes=num_classes, input_shape=input_shape, stem_macs=costs[0][0])
        self.tree, self.inner = tree, inner
        self.columns, self.classifiers = nn.ModuleList(built), nn.ModuleList(classifiers)
        allow_small_groups(self)

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Images at every scale, finest first, `(B, H, W, C)` as all activations of this network."""
        return tuple(scale.permute(0, 2, 3, 1) for scale in image_pyramid(images))

    def enter(self, decision: int, activation: Activation) -> Activation:
        """Scales that come out of the column before a decision."""
        # Channels are last in memory, and the last axis where rows are moved: each stays in one piece.
        return tuple(scale.permute(0, 2, 3, 1) for scale in self._run(self.inner[decision], activation))

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Logits `(r, num_classes)`; behind a last column after running it."""
        column = self._column(decision, choice)
        seen = self._run(column, activation)[-1].flatten(1) if choice else self.describe(decision, activation)
        return self.classifiers[column](seen)

    def exit_logits(self, decision: int, seen: Tensor) -> Tensor:
        """Logits `(r, num_classes)` of the classifier behind a decision's column."""
        return self.classifiers[self.inner[decision]](seen)

    def _column(self, decision: int, choice: int) -> int:
        """Column that classifies (choice 0), or that follows."""
        column = self.inner[decision]
        return self.tree[column][choice - 1] if choice else column

    def _run(self, column: int, activation: Activation) -> tuple[Tensor, ...]:
        scales = [plain(scale).permute(0, 3, 1, 2) for scale in activation]
        if self.runs_all:
            return self.columns[column](*scales)
        return in_few_sizes(self.columns[column], scales, whole=self.training)

    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Observation `(r, width)`: the coarsest scale, flattened, the global descriptor of section 3.1."""
        return plain(activation[-1]).permute(0, 3, 1, 2).flatten(1)

    def parameters_of(self, decision: int, choice: int) -> list[OwnedParameter]:
        """Parameters of the classifier (choice 0) or of the column that follows, with its classifier if it is last."""
        column = self._column(decision, choice)
        parts = [self.columns[column]] if choice else []
        if not choice or not self.tree[column]:
            parts.append(self.classifiers[column])
        return [OwnedParameter(parameter) for part in parts for parameter in part.parameters()]

    def static_prefix(self, decision: int, choice: int = 0) -> StaticPyramid:
        """Plain network, with parameters of its own, of all that a row runs that leaves from a decision by a choice.

        Raises:
            ValueError: The choice does not lead out there.
        """
        known = ways_out(self.decisions)
        if (decision, choice) not in known:
            raise ValueError(f"expected a decision and a choice that leads out, one of {known}, got {decision, choice}")
        way = [self._column(decision, choice)]
        while way[0]:
            way.insert(0, next(j for j, following in enumerate(self.tree) if way[0] in following))
        columns = (cast(Column, static_copy(self.columns[j])) for j in way)
        return StaticPyramid(columns, static_copy(self.classifiers[way[-1]]))


def pyramid_static(columns: int, input_shape: Sequence[int], num_classes: int, *, width: int = 16) -> RoutedModule:
    """Build a static pyramid as a network that any agent trains: its one decision has one choice, the classifier.

    Args:
        columns: Number of columns, 1 to 8.
        input_shape: `(C, H, W)` of an image, at least 8 pixels high and wide.
        num_classes: Width of the logits.
        width: Channels of the finest scale, 16 in the paper; 32 and 48 in Fig. 10.
    """
    module = static_pyramid(input_shape, num_classes, columns=columns, width=width)
    return route(module, ["classifier"], 1, input_shape=input_shape)


def _tree(columns: int, junctions: int) -> tuple[list[list[int]], list[int], list[str]]:
    """Columns that follow each column, later ones (breadth first), depths, and names with the turns on the way."""
    tree: list[list[int]] = []
    depth: list[int] = []
    names: list[str] = []
    level = [""]  # the turns on the way to each column of a depth
    for d in range(columns):
        start = len(tree) + len(level)  # of the next level
        turns = [] if d == columns - 1 else ["L", "R"] if d < junctions else [""]
        tree += [[start + len(turns) * j + way for way in range(len(turns))] for j in range(len(level))]
        depth += [d] * len(level)
        names += [f"column {d + 1} {turned}".rstrip() for turned in level]
        level = [turned + turn for turned in level for turn in turns]
    return tree, depth, names
