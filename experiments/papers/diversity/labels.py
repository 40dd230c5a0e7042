"""What the rows of Ramachandran and Le (2019) are called, by those who run, judge and draw them."""

DIVERSE = "convolutions, pooling, identity"
CONVS = "only convolutions"
CONV5 = "only 5x5"
CONV3 = "only 3x3"
SINGLE_TASK = "single task"
DIVERSE_BY_TASK = f"{DIVERSE}, by task"
"""The experts of Table 2, by gates that see the task alone."""


def from_the_task(label: str) -> str:
    """Name a line of Table 2 whose gates see example and task, the task stronger at first."""
    return f"{label}, k = 2"


CELLS_6X32 = "routing, C = 6, F = 32"
CELLS_6X64 = "routing, C = 6, F = 64"
CELLS_12X32 = "routing, C = 12, F = 32"
ALL_ON = "all on, C = 6, F = 32"

OMNIGLOT_EXPERTS = "Omniglot, unlike experts"
CIFAR_MTL = "CIFAR-MTL, equal blocks"

ANNEALED = "top-k, k from 7 to 2"
FIXED_K = "top-k, k = 2"
