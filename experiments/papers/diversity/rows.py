"""What Diversity and Depth in Per-Example Routing Models (Ramachandran and Le 2019) reports, as runs.

k and the balancing losses are the paper's. It gives neither rates nor epochs nor the size of batches, which are chosen
here, batches of 32 everywhere. k falls over all decisions alike; in cells every second one chooses among at most five
inputs, and takes all there are where k is larger.

Two networks of its tables are stood in for. `single task` has a column of 3x3 experts for every alphabet and nothing in
common but the first convolution, where Meyerson and Miikkulainen (2018) trained a network of their own per alphabet.
`all on` mixes all operations by learned weights, where Bender et al. (2018) add them up. Its other static networks, and
the ResNets of Table 3, are not run.

The group `few-steps` has the lines of Table 2 in a way that learns in a few thousand steps, where the paper's own does
not begin to: two experts a layer, gates without noise, and embeddings that outweigh the activations at first, so that
the examples of a task begin on one way; in one line more the gates see nothing but the task.

The group `agents` is not in the paper: all agents on its Omniglot network and on CIFAR-MTL's, with the rates found on
CIFAR-MTL for batches of 128, or the defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from routing_gym.experiments.papers.reproduction import Row, Settings

OMNIGLOT, MNIST = "routing_gym/OmniglotDiverse-v0", "routing_gym/MnistExperts-v0"
CIFAR, CELLS = "routing_gym/Cifar100MTL-v0", "routing_gym/Cifar10Cells-v0"
TASKS = 20

ADAM = ("optimizer=adam", "learning_rate=0.001", "schedule=cosine", "schedule_epochs={epochs}")
OF_CIFAR = {
    CIFAR: ("shift=4", "flip=True"),
    CELLS: ("optimizer=sgd", "momentum=0.9", "learning_rate=0.025", "weight_decay=3e-4", "allow_partial=True"),
}
OF_OMNIGLOT = ("learning_rate=2e-4",)
PAPER = Settings(
    name="paper",
    about="images of 105x105 pixels and Adam as in the paper; chosen here are its rates, 2e-4 for Omniglot (at 1e-3 "
    "the features of all drawings become one) and 1e-3 elsewhere, cosine to 0 over all epochs, for cells SGD 0.025 "
    "with momentum 0.9 and images shifted and mirrored, and the numbers of epochs",
    epochs=100,
    env_options=ADAM,
    more_options={**OF_CIFAR, OMNIGLOT: OF_OMNIGLOT},
    epochs_on={MNIST: 10, CIFAR: 20, CELLS: 200},
)
SHORT = Settings(
    name="short",
    about="as the other, in few epochs, and for Omniglot drawings made 32x32, experts of 24 channels between their two "
    "convolutions (1.8 million parameters, as printed), readouts that see all of the last map, and training in "
    "bfloat16: for small machines",
    epochs=16,
    env_options=ADAM,
    more_options={
        **OF_CIFAR,
        OMNIGLOT: (*OF_OMNIGLOT, "size=32", "expert_mid=24", "readout=flat", "precision=bfloat16"),
    },
    epochs_on={MNIST: 3, CIFAR: 3, CELLS: 8},
)

BALANCED = ("balance=0.1", "balance_epochs={epochs}")
FALLING = ("k=7", "k_last=2", *BALANCED)
TOLD = ("task_embedding=16",)
AT_THE_BLOCKS_RATE = ("learning_rate=2e-4",)
"""Of the gates on Omniglot: blocks and gates are one network for the paper's optimiser."""
FROM_THE_TASK = ("k=2", "noise=False", *BALANCED, *TOLD, *AT_THE_BLOCKS_RATE, "embedding_scale=5.0")
"""What learns in few steps: rows of a task take one way at first, through two experts a layer."""
BY_TASK = ("k=2", "noise=False", *BALANCED, *TOLD, *AT_THE_BLOCKS_RATE, "task_only=True")
THROUGH = ("differentiable=True",)
"""Gates are trained through the experts below them, as any layer is."""

ALPHABETS = ("alphabets=liang-2018",)

DIVERSE = "convolutions, pooling, identity"
CONVS = "only convolutions"
CONV5 = "only 5x5"
CONV3 = "only 3x3"
CONTROL = "only 3x3 and identity"
"""Not in the paper: whether unlike experts help, or one that does nothing."""
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


def _omniglot(label: str, groups: tuple[str, ...], options: tuple[str, ...], network: str, error: float) -> Row:
    """Return a line of Table 2 under gates; the paper's accuracy is after epochs that it does not give."""
    env_options = (*ALPHABETS, *THROUGH, f"network={network}")
    return Row(label, groups, OMNIGLOT, "top-k", options, env_options, paper={PAPER.epochs: 100 - error})


def _table_2() -> Iterator[Row]:
    """Yield the lines of Table 2, in the paper's own way of routing; the first is compared with other agents."""
    for label, line in TABLE_2.items():
        row = _omniglot(label, ("omniglot",), (*FALLING, *TOLD, *AT_THE_BLOCKS_RATE), *line)
        more: dict[str, Any] = {"groups": ("omniglot", "agents"), "series": ANNEALED, "part": OMNIGLOT_EXPERTS}
        yield dataclasses.replace(row, **more) if label == DIVERSE else row


def _cells(label: str, network: str, accuracy: float, agent: str, *options: str) -> Row:
    """Return a line of Table 4."""
    gates = THROUGH if agent == "top-k" else ()
    paper = {PAPER.epochs: accuracy}
    return Row(label, ("depth",), CELLS, agent, options, (*gates, f"network={network}"), paper=paper)


MLP = ("representation=mlp",)
COMPARED: dict[str, tuple[str, tuple[str, ...]]] = {
    ANNEALED: ("top-k", (*FALLING, *TOLD)),
    FIXED_K: ("top-k", ("k=2", *BALANCED, *TOLD)),
    "top-k, k = 1": ("top-k", ("k=1", *BALANCED, *TOLD)),
    "WPL": ("wpl", ("policy_rate=0.1",)),
    "REINFORCE, table": ("reinforce", ("learning_rate=0.3",)),
    "REINFORCE, approximators": ("reinforce", (*MLP, "learning_rate=0.1")),
    "Q-learning": ("q-learning", ("learning_rate=0.03",)),
    "SARSA": ("sarsa", ("learning_rate=0.03",)),
    "actor-critic, table": ("actor-critic", ("learning_rate=0.3",)),
    "actor-critic, approximators": ("actor-critic", (*MLP, "learning_rate=0.03")),
    "Gumbel": ("gumbel", ("learning_rate=1.0",)),
    "soft mixture": ("soft-mixture", ("learning_rate=0.003",)),
    "cross-stitch": ("cross-stitch", ("learning_rate=0.003",)),
    "task-specific, all layers": ("task-specific-all", ()),
    "task-specific, last layer": ("task-specific-last", ()),
    "shared path": ("shared", ()),
    "shared path, told the task": ("shared-with-task", ()),
    "random fixed paths": ("random-fixed", ()),
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


def _compared() -> Iterator[Row]:
    """Yield every agent on both networks, but for what is refused and for the line that Table 2 has.

    Two of them stand beside Table 2 as well.
    """
    for env, part, more in ((OMNIGLOT, OMNIGLOT_EXPERTS, ALPHABETS), (CIFAR, CIFAR_MTL, ())):
        for series, (agent, options) in COMPARED.items():
            if (series, part) in REFUSED or (series, part) == (ANNEALED, OMNIGLOT_EXPERTS):
                continue
            beside = env == OMNIGLOT and series in ("shared path", "random fixed paths")
            yield Row(
                f"{series}, {part}",
                ("omniglot", "few-steps", "agents") if beside else ("agents",),
                env,
                agent,
                (*options, *(AT_THE_BLOCKS_RATE if agent == "top-k" and env == OMNIGLOT else ())),
                (*more, *(THROUGH if agent == "top-k" else ())),
                series=series,
                part=part,
            )


ROWS = (
    *_table_2(),
    Row(
        SINGLE_TASK,
        ("omniglot", "few-steps"),
        OMNIGLOT,
        "task-specific-all",
        (),
        (*ALPHABETS, "network=omniglot-conv3", f"experts={['conv3'] * TASKS}"),
        paper={PAPER.epochs: 100 - 39.19},
    ),
    *(_omniglot(from_the_task(label), ("few-steps",), FROM_THE_TASK, *line) for label, line in TABLE_2.items()),
    _omniglot(DIVERSE_BY_TASK, ("few-steps",), BY_TASK, *TABLE_2[DIVERSE]),
    Row(
        from_the_task(CONTROL),
        ("few-steps",),
        OMNIGLOT,
        "top-k",
        FROM_THE_TASK,
        (*ALPHABETS, *THROUGH, "network=omniglot-conv3", f"experts={['conv3'] * 7 + ['identity']}"),
    ),
    Row("5 experts, k = 2", ("mnist",), MNIST, "top-k", ("k=2", *BALANCED), THROUGH),
    _cells(CELLS_6X32, "cells-6x32", 95.1, "top-k", *FALLING),
    _cells(CELLS_6X64, "cells-6x64", 95.5, "top-k", *FALLING),
    _cells(CELLS_12X32, "cells-12x32", 94.7, "top-k", *FALLING),
    _cells(ALL_ON, "cells-6x32", 95.6, "soft-mixture"),
    *_compared(),
)
