"""What Diversity and Depth in Per-Example Routing Models (Ramachandran and Le 2019) reports, as runs.

k and the balancing losses are the paper's. It gives neither rates nor epochs nor the size of batches, which are chosen
here, batches of 32 everywhere. k falls over all decisions alike; in cells every second one chooses among at most five
inputs, and takes all there are where k is larger.

Two networks of its tables are stood in for. `single task` has a column of 3x3 experts for every alphabet and nothing in
common but the first convolution, where Meyerson and Miikkulainen (2018) trained a network of their own per alphabet.
`all on` mixes all operations by learned weights, where Bender et al. (2018) add them up. `one-shot top` averages, has
every operation on with a chance that comes to the size printed, draws and judges by 500 training images of each class
that it does not learn from, and is retrained for seven eighths of the epochs. The other sizes of both, and the ResNets
of Table 3, are not run.

The group `few-steps` has the lines of Table 2 in a way that learns in a few thousand steps, where the paper's own does
not begin to: two experts a layer, gates without noise, and embeddings that outweigh the activations at first, so that
the examples of a task begin on one way; in one line more the gates see nothing but the task.

The group `agents` is not in the paper: all agents on its Omniglot network and on CIFAR-MTL's, with the rates found on
CIFAR-MTL for batches of 128, or the defaults.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from routing_gym.experiments.papers.rows import Change, Row, Settings

OMNIGLOT, MNIST = "routing_gym/OmniglotDiverse-v0", "routing_gym/MnistExperts-v0"
CIFAR, CELLS = "routing_gym/Cifar100MTL-v0", "routing_gym/Cifar10Cells-v0"
TASKS = 20

ADAM = ("optimizer=adam", "learning_rate=0.001", "schedule=cosine", "schedule_epochs={epochs}")
MOVED = ("shift=4", "flip=True")
OF_CELLS = ("optimizer=sgd", "momentum=0.9", "learning_rate=0.025", "weight_decay=3e-4", "allow_partial=True")
OF_OMNIGLOT = ("learning_rate=2e-4",)
PAPER = Settings(
    name="paper",
    about="images of 105x105 pixels and Adam as in the paper; chosen here are its rates, 2e-4 for Omniglot (at 1e-3 "
    "the features of all drawings become one) and 1e-3 elsewhere, cosine to 0 over all epochs, for cells SGD 0.025 "
    "with momentum 0.9 and images shifted and mirrored, and the numbers of epochs",
    epochs=100,
    env_options=ADAM,
    changes={
        OMNIGLOT: Change(env=OF_OMNIGLOT),
        MNIST: Change(epochs=10),
        CIFAR: Change(env=MOVED, epochs=20),
        CELLS: Change(env=OF_CELLS, epochs=200),
    },
)

BALANCED = ("balance=0.1", "balance_epochs={epochs}")
FALLING = ("k=7", "k_last=2", *BALANCED)
TOLD = ("task_embedding=16",)
FROM_THE_TASK = ("top-k", "k=2", "noise=False", *BALANCED, *TOLD, "embedding_scale=5.0")
"""What learns in few steps: rows of a task take one way at first, through two experts a layer."""
BY_TASK = ("top-k", "k=2", "noise=False", *BALANCED, *TOLD, "task_only=True")
THROUGH = ("differentiable=True",)
"""Gates are trained through the experts below them, as any layer is."""
ALPHABETS = ("alphabets=liang-2018",)

DIVERSE = "convolutions, pooling, identity"
CONVS = "only convolutions"
CONV5 = "only 5x5"
CONV3 = "only 3x3"
FALLING_FROM_THE_TASK = f"{DIVERSE}, k from 7 to 2, from the task"
CONTROL = "only 3x3 and identity"
"""Not in the paper: whether unlike experts help, or one that does nothing."""
SINGLE_TASK = "single task"
from_the_task = "{}, k = 2".format
"""Names of lines of Table 2 whose gates see example and task, the task stronger at first."""
SPECIALIZED = "5 experts, k = 2"
CELLS_6X32 = "routing, C = 6, F = 32"
CELLS_6X64 = "routing, C = 6, F = 64"
CELLS_12X32 = "routing, C = 12, F = 32"
ALL_ON = "all on, C = 6, F = 32"
ONE_SHOT = "one-shot top, C = 6, F = 32"

PRINTED_PARAMETERS = {CELLS_6X32: 2.5, CELLS_6X64: 9.6, CELLS_12X32: 7.8, ALL_ON: 4.8, ONE_SHOT: 2.7}
"""Table 4's millions of parameters per example."""

NETWORKS = OMNIGLOT_EXPERTS, CIFAR_MTL = "Omniglot, unlike experts", "CIFAR-MTL, equal blocks"

ANNEALED = "top-k, k from 7 to 2"
FIXED_K = "top-k, k = 2"

TABLE_2 = {
    DIVERSE: ("omniglot-diverse", 7.81),
    CONVS: ("omniglot-convs", 10.67),
    CONV5: ("omniglot-conv5", 11.96),
    CONV3: ("omniglot-conv3", 16.65),
}
"""Network and test error in % of every line."""


COMPARED: dict[str, tuple[str, ...]] = {
    ANNEALED: ("top-k", *FALLING, *TOLD),
    FIXED_K: ("top-k", "k=2", *BALANCED, *TOLD),
    "top-k, k = 1": ("top-k", "k=1", *BALANCED, *TOLD),
    "WPL": ("wpl", "policy_rate=0.1"),
    "REINFORCE, table": ("reinforce", "learning_rate=0.3"),
    "REINFORCE, approximators": ("reinforce", "representation=mlp", "learning_rate=0.1"),
    "Q-learning": ("q-learning", "learning_rate=0.03"),
    "SARSA": ("sarsa", "learning_rate=0.03"),
    "actor-critic, table": ("actor-critic", "learning_rate=0.3"),
    "actor-critic, approximators": ("actor-critic", "representation=mlp", "learning_rate=0.03"),
    "Gumbel": ("gumbel", "learning_rate=1.0"),
    "soft mixture": ("soft-mixture", "learning_rate=0.003"),
    "cross-stitch": ("cross-stitch", "learning_rate=0.003"),
    "task-specific, all layers": ("task-specific-all",),
    "task-specific, last layer": ("task-specific-last",),
    "shared path": ("shared",),
    "shared path, told the task": ("shared-with-task",),
    "random fixed paths": ("random-fixed",),
}
"""Every agent by its name in tables, with its options."""

REFUSED = {
    ("cross-stitch", OMNIGLOT_EXPERTS): "refused: needs a column of equal blocks per task (form='columns')",
    ("task-specific, all layers", OMNIGLOT_EXPERTS): f"refused: {TASKS} tasks, 7 experts",
    ("task-specific, last layer", OMNIGLOT_EXPERTS): f"refused: {TASKS} tasks, 7 experts",
    ("shared path, told the task", OMNIGLOT_EXPERTS): "refused: readouts know the task, experts cannot be told "
    "(task_input=True)",
}
"""What environment or agent refuse to make, and why."""


def _row(
    label: str, groups: tuple[str, ...], env: str, agent: tuple[str, ...], *options: str, accuracy: float | None = None,
    **more: Any,
) -> Row:  # fmt: skip
    """Return a row of an agent with its options, and of an environment with its own.

    The paper's accuracy is after epochs that it does not give. On Omniglot gates learn at the blocks' rate: they are
    one network for the paper's optimiser.
    """
    gates = agent[0] == "top-k"
    own = (*agent[1:], *(OF_OMNIGLOT if gates and env == OMNIGLOT else ()))
    where = (*(ALPHABETS if env == OMNIGLOT else ()), *(THROUGH if gates else ()), *options)
    paper = {} if accuracy is None else {PAPER.epochs: accuracy}
    return Row(label, groups, env, agent[0], own, where, paper=paper, **more)


def _compared(env: str, part: str) -> Iterator[Row]:
    """Yield every agent on a network but for those refused; two stand beside Table 2 as well, and one in it."""
    for series, agent in COMPARED.items():
        if (series, part) not in REFUSED and (series, part) != (ANNEALED, OMNIGLOT_EXPERTS):
            beside = env == OMNIGLOT and series in ("shared path", "random fixed paths")
            groups = ("omniglot", "few-steps", "agents") if beside else ("agents",)
            yield _row(f"{series}, {part}", groups, env, agent, series=series, part=part)


def _table_2(label: str, groups: tuple[str, ...], agent: tuple[str, ...], of: str, **more: Any) -> Row:
    """Return a line of Table 2 under gates."""
    network, error = TABLE_2[of]
    return _row(label, groups, OMNIGLOT, agent, f"network={network}", accuracy=100 - error, **more)


A_BLOCK_PER_TASK = ("network=omniglot-conv3", f"experts={['conv3'] * TASKS}")
SEVEN_AND_IDENTITY = ("network=omniglot-conv3", f"experts={['conv3'] * 7 + ['identity']}")

ROWS = (
    _table_2(DIVERSE, ("omniglot", "agents"), COMPARED[ANNEALED], DIVERSE, series=ANNEALED, part=OMNIGLOT_EXPERTS),
    *(_table_2(label, ("omniglot",), COMPARED[ANNEALED], label) for label in (CONVS, CONV5, CONV3)),
    _row(
        SINGLE_TASK,
        ("omniglot", "few-steps"),
        OMNIGLOT,
        ("task-specific-all",),
        *A_BLOCK_PER_TASK,
        accuracy=100 - 39.19,
    ),
    *(_table_2(from_the_task(label), ("few-steps",), FROM_THE_TASK, label) for label in TABLE_2),
    _table_2(FALLING_FROM_THE_TASK, ("few-steps",), (*FROM_THE_TASK, "k=7", "k_last=2"), DIVERSE),
    _table_2(f"{DIVERSE}, by task", ("few-steps",), BY_TASK, DIVERSE),
    _row(from_the_task(CONTROL), ("few-steps",), OMNIGLOT, FROM_THE_TASK, *SEVEN_AND_IDENTITY),
    _row(SPECIALIZED, ("mnist",), MNIST, ("top-k", "k=2", *BALANCED)),
    _row(CELLS_6X32, ("depth",), CELLS, ("top-k", *FALLING), "network=cells-6x32", accuracy=95.1),
    _row(CELLS_6X64, ("depth",), CELLS, ("top-k", *FALLING), "network=cells-6x64", accuracy=95.5),
    _row(CELLS_12X32, ("depth",), CELLS, ("top-k", *FALLING), "network=cells-12x32", accuracy=94.7),
    _row(ALL_ON, ("depth",), CELLS, ("soft-mixture",), "network=cells-6x32", accuracy=95.6),
    _row(
        ONE_SHOT,
        ("depth",),
        CELLS,
        ("one-shot", "passes={eighth:.0f}", "keep=0.55"),
        "network=cells-6x32",
        "held_out=500",
        "schedule_epochs={seven_eighths}",
        accuracy=95.5,
    ),
    *_compared(OMNIGLOT, OMNIGLOT_EXPERTS),
    *_compared(CIFAR, CIFAR_MTL),
)
