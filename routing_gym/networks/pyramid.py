"""The multiscale pyramid network of Deciding How to Decide (McGill and Perona 2017), chain and tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from routing_gym.blocks import OwnedParameter, allow_small_groups, in_few_sizes, plain, static_copy
from routing_gym.networks.decision import EXIT, Decision, ways_out
from routing_gym.networks.network import RoutedNetwork
from routing_gym.networks.options import check_range
from routing_gym.networks.pyramid_columns import (
    CHANNELS,
    Column,
    StaticPyramid,
    check_form,
    costs_by_depth,
    image_pyramid,
    make_classifier,
    make_column,
    num_features,
    static_pyramid,
)
from routing_gym.networks.route import RoutedModule, route
from routing_gym.networks.state import Activation


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

    Arguments are those of `pyramid_tree`; 0 junctions make a chain. Columns are the first of those in `CHANNELS`.

    Attributes:
        tree: For each column those that follow it. Columns stand in the order of their depth.
        inner: Column of each decision.

    Raises:
        ValueError: An option out of range, by its name.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, *, width: int = 16, columns: int = 8, junctions: int = 0
    ) -> None:
        check_form(input_shape, num_classes, width)
        check_range("columns", columns, 2, len(CHANNELS))
        check_range("junctions", junctions, 0, columns - 1)
        tree, depth, names = _tree(columns, junctions)
        built = [make_column(input_shape, width, d, columns) for d in depth]
        classifiers = [make_classifier(input_shape, num_classes, width, d) for d in depth]
        column_macs, head_macs = zip(*costs_by_depth(tuple(input_shape), num_classes, width, columns), strict=True)
        inner = [j for j, following in enumerate(tree) if following]
        number = {column: i for i, column in enumerate(inner)}
        super().__init__(
            [
                Decision(
                    name=names[j],
                    macs=(
                        head_macs[depth[j]],
                        *(column_macs[depth[c]] + (0.0 if tree[c] else head_macs[depth[c]]) for c in tree[j]),
                    ),
                    next=(EXIT, *(number.get(c, EXIT) for c in tree[j])),
                    mixing="outcome",
                    width=num_features(input_shape, width, depth[j]),
                )
                for j in inner
            ],
            num_classes=num_classes,
            input_shape=input_shape,
            stem_macs=column_macs[0],
        )
        self.tree, self.inner = tree, inner
        self.columns = nn.ModuleList(built)
        self.classifiers = nn.ModuleList(classifiers)
        allow_small_groups(self)

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Images at every scale, finest first, `(B, H, W, C)` as all activations of this network."""
        return tuple(scale.permute(0, 2, 3, 1) for scale in image_pyramid(images))

    def enter(self, decision: int, activation: Activation) -> Activation:
        """Scales that come out of the column before a decision."""
        # Channels are last in memory, and the last axis where rows are moved: rows that are picked out stay in one
        # piece each, and the convolutions need not turn them round.
        return tuple(scale.permute(0, 2, 3, 1) for scale in self._run(self.inner[decision], activation))

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Logits `(r, num_classes)`; behind a last column after running it."""
        column = self._column(decision, choice)
        seen = self._run(column, activation)[-1].flatten(1) if choice else self.describe(decision, activation)
        return self.classifiers[column](seen)

    def _column(self, decision: int, choice: int) -> int:
        """Column that classifies (choice 0), or that follows."""
        column = self.inner[decision]
        return self.tree[column][choice - 1] if choice else column

    def _run(self, column: int, activation: Activation) -> tuple[Tensor, ...]:
        scales = [plain(scale).permute(0, 3, 1, 2) for scale in activation]
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

        Args:
            decision: Its number.
            choice: A choice that leads out: 0 everywhere, another one where the last column follows.

        Raises:
            ValueError: No such way out.
        """
        known = ways_out(self.decisions)
        if (decision, choice) not in known:
            raise ValueError(f"expected a decision and a choice that leads out, one of {known}, got {decision, choice}")
        way = [self._column(decision, choice)]
        while way[0]:
            way.insert(0, next(j for j, following in enumerate(self.tree) if way[0] in following))
        columns = (cast(Column, static_copy(self.columns[j])) for j in way)
        return StaticPyramid(columns, static_copy(self.classifiers[way[-1]]))


def pyramid_chain(input_shape: Sequence[int], num_classes: int, *, width: int = 16, columns: int = 8) -> RoutedPyramid:
    """Build a `RoutedPyramid` whose columns stand in a chain.

    Args:
        input_shape: `(C, H, W)` of an image, at least 8 pixels high and wide.
        num_classes: Width of the logits.
        width: Channels of the finest scale, 16 in the paper; 32 and 48 in Fig. 10.
        columns: Number of columns, 2 to 8.
    """
    return RoutedPyramid(input_shape, num_classes, width=width, columns=columns)


def pyramid_tree(
    input_shape: Sequence[int], num_classes: int, *, width: int = 16, columns: int = 8, junctions: int = 3
) -> RoutedPyramid:
    """Build a `RoutedPyramid` whose early columns are followed by a left and a right one.

    Args:
        input_shape: `(C, H, W)` of an image, at least 8 pixels high and wide.
        num_classes: Width of the logits.
        width: Channels of the finest scale, 16 in the paper; 32 and 48 in Fig. 10.
        columns: Columns on the way to each leaf, 2 to 8.
        junctions: Number of first columns behind which it splits in two, 1 to `columns - 1`; 3 in the paper.
    """
    check_range("columns", columns, 2, len(CHANNELS))
    check_range("junctions", junctions, 1, columns - 1)
    return RoutedPyramid(input_shape, num_classes, width=width, columns=columns, junctions=junctions)


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
