"""What CoDiNet (Wang et al.) reports, as runs.

Training is that of section 4.1: SGD, momentum 0.9, weight decay 1e-4, rate 0.1; alpha = beta = 0.2, margins 0.2 and
0.5, four augmentations per image. The paper does not say how many images make a batch, nor how long the second stage
is, in which routers are frozen and decisions hard: here 256 with their augmentations, and the last eighth of the
epochs. In batches of 256, routers hardly leave a half in the few steps that a small machine can take: the short
setting has batches of 64. Networks without routers see as many augmentations, so that all rows have the same number
of steps. SVHN is moved only, not mirrored. Table 3 (ImageNet) is not run.

The tables on ResNet-110 are run on the network that the settings name. Where CIFAR-10 is not whole, what there is will
do; the record then says so in the name of its data.

The group `agents` is not in the paper: other agents on the same blocks, those that learn from rewards paid +1 or -1,
less the price of what they ran, as in BlockDrop (Wu et al. 2018).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from routing_gym.experiments.papers.reproduction import Row, Settings

CIFAR10 = "routing_gym/Cifar10BlockSkip-v0"
CIFAR100 = "routing_gym/Cifar100BlockSkip-v0"
SVHN = "routing_gym/SvhnBlockSkip-v0"
DATA = {"CIFAR-10": CIFAR10, "CIFAR-100": CIFAR100, "SVHN": SVHN}

SGD = ("optimizer=sgd", "learning_rate=0.1", "momentum=0.9", "weight_decay=1e-4")
PARTIAL = ("allow_partial=True",)
PAPER = Settings(
    name="paper",
    about="as in section 4.1, ResNet-110, the rate divided by 10 at epochs 150 and 200 of 250",
    epochs=250,
    env_options=(*SGD, "augmentations=4", "schedule=step", "schedule_epochs=(150, 200)"),
    more_options={CIFAR10: PARTIAL},
)
SHORT = Settings(
    name="short",
    about="as the other, but ResNet-32 in place of ResNet-110, two augmentations per image, batches of 64 images, "
    "training in bfloat16, and few epochs, in which the rate falls to 0 along a cosine: for small machines",
    epochs=4,
    batch_size=64,
    env_options=(
        *SGD,
        "augmentations=2",
        "precision=bfloat16",
        "schedule=cosine",
        "schedule_epochs={epochs}",
        "network=resnet32-skip",
    ),
    more_options={CIFAR10: PARTIAL},
)

VANILLA, CONSISTENT, WITH_BOTH = "vanilla", "with consistency", "with both (CoDiNet)"
RESNET = "ResNet, all blocks"

GAMMAS = (0.0, 0.01, 0.02, 0.04, 0.1)
MARGINS = (0.25, 0.5, 0.75, 1.0)
DEPTHS = (32, 74, 110)
RELAXATIONS = {"gumbel": "Gumbel-softmax", "softmax": "softmax", "sampling": "sampling"}
ROUTERS = {"linear": "linear routers", "rnn": "recurrent router", "cnn": "convolutional routers"}


def with_gamma(gamma: float) -> str:
    """Name a row of Table 5."""
    return f"CoDiNet, gamma {gamma:g}"


def with_margin(margin: float) -> str:
    """Name a row of Table 8."""
    return f"CoDiNet, margin of diversity {margin:g}"


def with_depth(method: str, depth: int, data: str) -> str:
    """Name a row of Table 6."""
    return f"{method}, {depth} layers, {data}"


@dataclasses.dataclass(frozen=True)
class Printed:
    """What the paper prints of a row, for ResNet-110 where the row does not say otherwise.

    Attributes:
        accuracy: Test accuracy in %.
        paths: Number of paths.
        length: Mean number of blocks run, K.
        gflops: Mean cost, two operations per multiply-accumulate.
        kept: Share of images whose path stays the same when they are augmented.
    """

    accuracy: float | None = None
    paths: int | None = None
    length: float | None = None
    gflops: float | None = None
    kept: float | None = None


_TABLE_6 = {
    "CIFAR-10": {
        RESNET: ((92.4, 15), (93.3, 36), (93.6, 54)),
        VANILLA: ((91.55, 10), (93.17, 19), (93.66, 27)),
        WITH_BOTH: ((92.48, 10), (93.61, 20), (94.47, 27)),
    },
    "CIFAR-100": {
        RESNET: ((68.7, 15), (70.5, 36), (71.2, 54)),
        VANILLA: ((66.4, 10), (69.7, 22), (70.3, 23)),
        WITH_BOTH: ((69.2, 12), (70.9, 22), (72.9, 24)),
    },
}

PRINTED = {
    VANILLA: Printed(93.16, paths=113, kept=0.2265),
    CONSISTENT: Printed(92.88, paths=20),
    WITH_BOTH: Printed(94.47, paths=276, kept=0.5342),
    with_gamma(0.0): Printed(94.47, length=25, gflops=0.29),
    with_gamma(0.01): Printed(94.30, length=22, gflops=0.27),
    with_gamma(0.02): Printed(93.94, length=19, gflops=0.22),
    with_gamma(0.04): Printed(93.71, length=17, gflops=0.20),
    with_gamma(0.1): Printed(92.45, length=10, gflops=0.10),
    with_margin(0.25): Printed(93.12, paths=196, length=21),
    with_margin(0.5): Printed(94.47, paths=276, length=25),
    with_margin(0.75): Printed(92.75, paths=396, length=22),
    with_margin(1.0): Printed(92.46, paths=800, length=26),
    **{
        with_depth(method, depth, data): Printed(accuracy, length=length)
        for data, methods in _TABLE_6.items()
        for method, values in methods.items()
        for depth, (accuracy, length) in zip(DEPTHS, values, strict=True)
    },
    with_depth(RESNET, 110, "SVHN"): Printed(94.19, gflops=0.50),
    with_depth(VANILLA, 110, "SVHN"): Printed(93.15, gflops=0.38),
    with_depth(WITH_BOTH, 110, "SVHN"): Printed(94.28, gflops=0.39),
    RELAXATIONS["gumbel"]: Printed(93.66, gflops=0.26),
    RELAXATIONS["softmax"]: Printed(93.1, gflops=0.27),
    RELAXATIONS["sampling"]: Printed(87.8, gflops=0.26),
}
"""Tables 2, 4, 5, 6, 8 and 9, and section 4.4.1."""

SECOND_STAGE = ("freeze_after={seven_eighths}",)
METHODS = {VANILLA: ("alpha=0.0", "beta=0.0"), CONSISTENT: ("beta=0.0",), WITH_BOTH: ()}


def _row(
    label: str, groups: tuple[str, ...], agent: str, options: tuple[str, ...], data: str = "CIFAR-10", **more: Any
) -> Row:
    """Return a row on one of `DATA`, with what the paper prints of it."""
    accuracy = PRINTED.get(label, Printed()).accuracy
    paper = {} if accuracy is None else {PAPER.epochs: accuracy}
    return Row(label, groups, DATA[data], agent, options, paper=paper, part=data, **more)


def _codinet(label: str, group: str | tuple[str, ...], *options: str, gamma: float = 0.0, **more: Any) -> Row:
    """Return a run of the paper's own agent, at a weight of the cost."""
    groups = (group,) if isinstance(group, str) else group
    options = (*options, f"gamma={gamma}", *SECOND_STAGE)
    return _row(label, groups, "codinet", options, compare_paths=True, **more)


def _by_depth(data: str, depths: tuple[int, ...], group: str) -> Iterator[Row]:
    """Yield the lines of Table 6, or 4: networks of given depths, all of whose blocks run, and of which some do."""
    for depth in depths:
        groups = (group, "cost") if (depth, data) == (32, "CIFAR-10") else (group,)
        every_block = (f"routes={[[1] * ((depth - 2) // 2)]}",)
        of: dict[str, Any] = {"data": data, "env_options": (f"network=resnet{depth}-skip",)}
        label = with_depth(RESNET, depth, data)
        yield _row(label, groups, "fixed-routes", every_block, series=RESNET, compare_paths=True, **of)
        for method in (VANILLA, WITH_BOTH):
            yield _codinet(with_depth(method, depth, data), group, *METHODS[method], series=method, **of)


AGENTS = {
    "REINFORCE": ("reinforce", ("representation=mlp",)),
    "actor-critic": ("actor-critic", ("representation=mlp",)),
    "Q-learning": ("q-learning", ("representation=mlp",)),
    "REINFORCE, table": ("reinforce", ()),
    "WPL, table": ("wpl", ()),
    "Gumbel, straight-through": ("gumbel", ("representation=mlp",)),
    "random": ("random", ()),
}
"""Other agents, by their names in tables."""

ROWS = (
    _codinet(VANILLA, "regularization", *METHODS[VANILLA], series=VANILLA),
    _codinet(CONSISTENT, "regularization", *METHODS[CONSISTENT], series=CONSISTENT),
    _codinet(WITH_BOTH, ("regularization", "cost", "margins"), series=WITH_BOTH),
    *(_codinet(with_gamma(gamma), "cost", gamma=gamma, series=WITH_BOTH) for gamma in GAMMAS[1:]),
    *(
        _codinet(with_margin(margin), "margins", f"diversity_margin={margin}", series="margin")
        for margin in MARGINS
        if margin != 0.5
    ),
    *_by_depth("CIFAR-10", DEPTHS, "depth"),
    *_by_depth("CIFAR-100", DEPTHS, "depth"),
    *_by_depth("SVHN", DEPTHS[-1:], "svhn"),
    *(
        _codinet(name, "relaxations", *METHODS[VANILLA], f"relaxation={relaxation}", gamma=0.01)
        for relaxation, name in RELAXATIONS.items()
    ),
    *(
        _codinet(
            *(name, "routers", f"router={router}"), env_options=("observes=map",) if router == "cnn" else (), gamma=0.01
        )
        for router, name in ROUTERS.items()
    ),
    *(
        _row(name, ("agents",), agent, options, series=name, compare_paths=agent != "random")
        for name, (agent, options) in AGENTS.items()
    ),
)
