"""What CoDiNet (Wang et al.) reports, as runs.

Training is that of section 4.1: SGD, momentum 0.9, weight decay 1e-4, rate 0.1; alpha = beta = 0.2, margins 0.2 and
0.5, four augmentations per image. The paper does not say how many images make a batch, nor how long the second stage
is, in which routers are frozen and decisions hard: here 256 with their augmentations, and the last eighth of the
epochs. Networks without routers see as many augmentations, so that all rows have the same number of steps. SVHN is
moved only, not mirrored. Table 3 (ImageNet) is not run.

The tables on ResNet-110 are run on the network that the settings name. Where CIFAR-10 is not whole, what there is will
do; the record then says so in the name of its data.

The group `agents` is not in the paper: other agents on the same blocks, those that learn from rewards paid +1 or -1,
less the price of what they ran, as in BlockDrop (Wu et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from routing_gym.experiments.papers.rows import Change, Row, Settings

CIFAR10 = "routing_gym/Cifar10BlockSkip-v0"
DATA = {
    "CIFAR-10": CIFAR10,
    "CIFAR-100": "routing_gym/Cifar100BlockSkip-v0",
    "SVHN": "routing_gym/SvhnBlockSkip-v0",
}

SGD = ("optimizer=sgd", "learning_rate=0.1", "momentum=0.9", "weight_decay=1e-4")
PAPER = Settings(
    name="paper",
    about="as in section 4.1, ResNet-110, the rate divided by 10 at epochs 150 and 200 of 250",
    epochs=250,
    env_options=(*SGD, "augmentations=4", "schedule=step", "schedule_epochs=(150, 200)"),
    changes={CIFAR10: Change(env=("allow_partial=True",))},
)

VANILLA, CONSISTENT, WITH_BOTH = "vanilla", "with consistency", "with both (CoDiNet)"
RESNET = "ResNet, all blocks"

_TABLE_5 = {0.0: (94.47, 25, 0.29), 0.01: (94.3, 22, 0.27), 0.02: (93.94, 19, 0.22), 0.04: (93.71, 17, 0.2),
            0.1: (92.45, 10, 0.1)}  # fmt: skip
_TABLE_8 = {0.25: (93.12, 196, 21), 0.5: (94.47, 276, 25), 0.75: (92.75, 396, 22), 1.0: (92.46, 800, 26)}
GAMMAS, MARGINS, DEPTHS = tuple(_TABLE_5), tuple(_TABLE_8), (32, 74, 110)
RELAXATIONS = {"gumbel": "Gumbel-softmax", "softmax": "softmax", "sampling": "sampling"}

with_gamma = "CoDiNet, gamma {:g}".format
with_margin = "CoDiNet, margin of diversity {:g}".format
with_depth = "{}, {} layers, {}".format
"""Names of rows of Tables 5, 8 and 6, the last from method, depth and data."""

_TABLE_6 = {
    (RESNET, "CIFAR-10"): ((92.4, 15), (93.3, 36), (93.6, 54)),
    (VANILLA, "CIFAR-10"): ((91.55, 10), (93.17, 19), (93.66, 27)),
    (WITH_BOTH, "CIFAR-10"): ((92.48, 10), (93.61, 20), (94.47, 27)),
    (RESNET, "CIFAR-100"): ((68.7, 15), (70.5, 36), (71.2, 54)),
    (VANILLA, "CIFAR-100"): ((66.4, 10), (69.7, 22), (70.3, 23)),
    (WITH_BOTH, "CIFAR-100"): ((69.2, 12), (70.9, 22), (72.9, 24)),
}
PRINTED: dict[str, dict[str, float]] = {
    VANILLA: {"accuracy": 93.16, "paths": 113, "kept": 22.65},
    CONSISTENT: {"accuracy": 92.88, "paths": 20},
    WITH_BOTH: {"accuracy": 94.47, "paths": 276, "kept": 53.42},
    **{
        with_gamma(gamma): {"accuracy": best, "length": k, "gflops": cost}
        for gamma, (best, k, cost) in _TABLE_5.items()
    },
    **{with_margin(margin): {"accuracy": best, "paths": n, "length": k} for margin, (best, n, k) in _TABLE_8.items()},
    **{
        with_depth(method, depth, data): {"accuracy": accuracy, "length": length}
        for (method, data), values in _TABLE_6.items()
        for depth, (accuracy, length) in zip(DEPTHS, values, strict=True)
    },
    with_depth(RESNET, 110, "SVHN"): {"accuracy": 94.19, "gflops": 0.50},
    with_depth(VANILLA, 110, "SVHN"): {"accuracy": 93.15, "gflops": 0.38},
    with_depth(WITH_BOTH, 110, "SVHN"): {"accuracy": 94.28, "gflops": 0.39},
    RELAXATIONS["gumbel"]: {"accuracy": 93.66, "gflops": 0.26},
    RELAXATIONS["softmax"]: {"accuracy": 93.1, "gflops": 0.27},
    RELAXATIONS["sampling"]: {"accuracy": 87.8, "gflops": 0.26},
}
"""Tables 2, 4, 5, 6, 8 and 9, and section 4.4.1, for ResNet-110 where the row does not say otherwise.

Accuracy and images that keep their path when they are augmented are in %, the cost in two operations per
multiply-accumulate, the length is K, the mean number of blocks run.
"""

METHODS = {VANILLA: ("alpha=0.0", "beta=0.0"), CONSISTENT: ("beta=0.0",), WITH_BOTH: ()}


def _row(label: str, groups: tuple[str, ...], agent: str, *options: str, data: str = "CIFAR-10", **more: Any) -> Row:
    """Return a row on one of `DATA`, with what the paper prints of it."""
    printed = PRINTED.get(label, {})
    paper = {PAPER.epochs: printed["accuracy"]} if printed else {}
    more = {"compare_paths": agent != "random", **more}
    return Row(label, groups, DATA[data], agent, options, paper=paper, part=data, **more)


def _codinet(label: str, groups: tuple[str, ...], *options: str, gamma: float = 0.0, **more: Any) -> Row:
    """Return a run of the paper's own agent, with its second stage, at a weight of the cost."""
    return _row(label, groups, "codinet", *options, f"gamma={gamma}", "freeze_after={seven_eighths}", **more)


def _by_depth(data: str, depths: tuple[int, ...], group: str) -> Iterator[Row]:
    """Yield the lines of Table 6, or 4: networks of given depths, all of whose blocks run, and of which some do."""
    for depth in depths:
        groups = (group, "cost") if (depth, data) == (32, "CIFAR-10") else (group,)
        of: dict[str, Any] = {"data": data, "env_options": (f"network=resnet{depth}-skip",)}
        every_block = f"routes={[[1] * ((depth - 2) // 2)]}"
        yield _row(with_depth(RESNET, depth, data), groups, "fixed-routes", every_block, series=RESNET, **of)
        for method in (VANILLA, WITH_BOTH):
            yield _codinet(with_depth(method, depth, data), (group,), *METHODS[method], series=method, **of)


_MLP = "representation=mlp"
AGENTS = {
    "REINFORCE": ("reinforce", _MLP),
    "actor-critic": ("actor-critic", _MLP),
    "Q-learning": ("q-learning", _MLP),
    "REINFORCE, table": ("reinforce",),
    "WPL, table": ("wpl",),
    "Gumbel, straight-through": ("gumbel", _MLP),
    "random": ("random",),
}
"""Other agents, by their names in tables, with their options."""

ROWS = (
    _codinet(VANILLA, ("regularization",), *METHODS[VANILLA], series=VANILLA),
    _codinet(CONSISTENT, ("regularization",), *METHODS[CONSISTENT], series=CONSISTENT),
    _codinet(WITH_BOTH, ("regularization", "cost", "margins"), series=WITH_BOTH),
    *(_codinet(with_gamma(gamma), ("cost",), gamma=gamma, series=WITH_BOTH) for gamma in GAMMAS[1:]),
    *(
        _codinet(with_margin(margin), ("margins",), f"diversity_margin={margin}", series="margin")
        for margin in MARGINS
        if margin != 0.5
    ),
    *_by_depth("CIFAR-10", DEPTHS, "depth"),
    *_by_depth("CIFAR-100", DEPTHS, "depth"),
    *_by_depth("SVHN", DEPTHS[-1:], "svhn"),
    *(
        _codinet(name, ("relaxations",), *METHODS[VANILLA], f"relaxation={relaxation}", gamma=0.01)
        for relaxation, name in RELAXATIONS.items()
    ),
    _codinet("linear routers", ("routers",), "router=linear", gamma=0.01),
    _codinet("recurrent router", ("routers",), "router=rnn", gamma=0.01),
    _codinet("convolutional routers", ("routers",), "router=cnn", env_options=("observes=map",), gamma=0.01),
    *(_row(name, ("agents",), *agent, series=name) for name, agent in AGENTS.items()),
)
