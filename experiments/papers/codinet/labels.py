"""What the rows of CoDiNet are called, by those who run, judge and draw them, and what the paper prints of them."""

from __future__ import annotations

import dataclasses

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
    **{
        with_gamma(gamma): Printed(accuracy, length=length, gflops=gflops)
        for gamma, gflops, length, accuracy in zip(
            GAMMAS,
            (0.29, 0.27, 0.22, 0.20, 0.10),
            (25, 22, 19, 17, 10),
            (94.47, 94.30, 93.94, 93.71, 92.45),
            strict=True,
        )
    },
    **{
        with_margin(margin): Printed(accuracy, paths=paths, length=length)
        for margin, paths, length, accuracy in zip(
            MARGINS, (196, 276, 396, 800), (21, 25, 22, 26), (93.12, 94.47, 92.75, 92.46), strict=True
        )
    },
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
