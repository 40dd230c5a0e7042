"""What the rows of parallel paths are called, by those who run, judge and draw them, and what the paper prints."""

from __future__ import annotations

import dataclasses

BASE, WIDE, DEEP = "BaseCNN", "WideCNN", "DeepCNN"
UNROUTED = "BaseCNN-3"
SQUEEZED, DEEP_SQUEEZED = "SEBaseCNN", "SEDeepCNN"
STITCHED = "Cr-Stitch2"
BASE_ENSEMBLE, ALL_ENSEMBLE = "BaseCNN ensemble", "All ensemble"
PATHS = (2, 3, 4)
CROSSES = {"CP": "cross-prediction", "CC": "cross-connection"}
"""How a network's name ends, and the agent that computes its gates."""
RESNET = "ResNet20"
DATA = ("CIFAR-10", "CIFAR-100")

TOLD = "WPL, table, told the coarse class"
OWN_PATHS, RANDOM_ROUTES = "every tensor on its own path", "random routes, fixed"


def routed(paths: int, cross: str, layout: str = BASE) -> str:
    """Name a network of several paths, as the paper does: BaseCNN-2-CC."""
    return f"{layout}-{paths}-{cross}"


def on(network: str, data: str) -> str:
    """Name a row of Table 3."""
    return f"{network}, {data}"


def hard(network: str, agent: str) -> str:
    """Name a hard-routed network."""
    return f"{network}, {agent}"


@dataclasses.dataclass(frozen=True)
class Printed:
    """What the paper prints of a network.

    Attributes:
        parameters: In millions.
        error: Test error on CIFAR-10 in %.
        longer: Likewise after 350 epochs instead of 200.
        cifar100: Test error on CIFAR-100 in %.
    """

    parameters: float
    error: float | None = None
    longer: float | None = None
    cifar100: float | None = None


CNNS = {
    BASE: Printed(0.55, 9.26),
    WIDE: Printed(1.67, 8.96),
    DEEP: Printed(2.0, 8.49),
    UNROUTED: Printed(1.5, 9.41),
    BASE_ENSEMBLE: Printed(1.66, 7.87),
    ALL_ENSEMBLE: Printed(4.27, 6.9),
    SQUEEZED: Printed(0.58, 8.99),
    DEEP_SQUEEZED: Printed(2.06, 8.15),
    STITCHED: Printed(1.11, 7.89),
    routed(2, "CP"): Printed(1.3, 7.24, 6.48),
    routed(3, "CP"): Printed(2.23, 6.63, 6.04),
    routed(4, "CP"): Printed(3.34, 6.45, 5.91),
    routed(2, "CC"): Printed(1.11, 7.03, 6.53),
    routed(3, "CC"): Printed(1.67, 6.51, 6.09),
    routed(4, "CC"): Printed(2.22, 6.55, 6.26),
}
"""Table 2, but for what it quotes from others."""

RESNETS = {
    RESNET: Printed(0.27, 8.75),
    routed(2, "CP", RESNET): Printed(0.59, 5.86, cifar100=27.7),
    routed(3, "CP", RESNET): Printed(0.92, 4.99, cifar100=25.13),
    routed(4, "CP", RESNET): Printed(1.29, 4.81, cifar100=23.82),
    routed(2, "CC", RESNET): Printed(0.55, 5.5, cifar100=27.36),
    routed(3, "CC", RESNET): Printed(0.82, 5.18, cifar100=25.76),
    routed(4, "CC", RESNET): Printed(1.1, 4.96, cifar100=24.81),
    routed(2, "CC", "ResNet32"): Printed(0.94, 5.14, cifar100=25.96),
    routed(3, "CC", "ResNet32"): Printed(1.41, 4.96, cifar100=24.51),
    routed(4, "CC", "ResNet32"): Printed(1.88, 4.59, cifar100=23.52),
}
"""Table 3; ResNet20 is quoted there from He et al."""

QUOTED = {
    "ResNet110": Printed(1.7, 6.61, cifar100=26.88),
    "ResNet164": Printed(2.5, 5.93, cifar100=25.16),
    "WRN-40-2": Printed(2.2, 5.33, cifar100=26.04),
    "HyperWRN40-2": Printed(0.15, 7.23),
    "SEResNet110": Printed(1.7, 5.21, cifar100=23.85),
    "BlockDrop": Printed(1.7, 6.4, cifar100=26.3),
    "ConvNet-AIG": Printed(1.78, 5.76),
    "ConvNet-AIG all": Printed(1.78, 5.14),
}
"""What else Table 3 quotes from others."""
