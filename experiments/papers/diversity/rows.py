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

from collections.abc import Iterator
from functools import partial

from routing_gym.experiments.papers.diversity.claims import claims
from routing_gym.experiments.papers.diversity.figures import draw
from routing_gym.experiments.papers.diversity.labels import (
    ALL_ON,
    ANNEALED,
    CELLS_6X32,
    CELLS_6X64,
    CELLS_12X32,
    CIFAR_MTL,
    CONV3,
    CONV5,
    CONVS,
    DIVERSE,
    DIVERSE_BY_TASK,
    FIXED_K,
    OMNIGLOT_EXPERTS,
    SINGLE_TASK,
    from_the_task,
)
from routing_gym.experiments.papers.diversity.tables import across, classes_and_experts, depth, errors
from routing_gym.experiments.papers.reproduction import Reproduction, Row, Settings

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


def _error(percent: float) -> dict[int, float]:
    """Return a test error as the paper's accuracy in %, after epochs that it does not give."""
    return {PAPER.epochs: 100 - percent}


TABLE_2 = {
    DIVERSE: ("omniglot-diverse", 7.81),
    CONVS: ("omniglot-convs", 10.67),
    CONV5: ("omniglot-conv5", 11.96),
    CONV3: ("omniglot-conv3", 16.65),
}
"""Network and test error in % of every line."""


def _table_2() -> Iterator[Row]:
    """Yield the lines of Table 2, in the paper's own way of routing."""
    for label, (network, error) in TABLE_2.items():
        compared = label == DIVERSE
        yield Row(
            label,
            ("omniglot", "agents") if compared else ("omniglot",),
            OMNIGLOT,
            "top-k",
            (*FALLING, *TOLD, *AT_THE_BLOCKS_RATE),
            (*ALPHABETS, *THROUGH, f"network={network}"),
            paper=_error(error),
            series=ANNEALED if compared else "",
            part=OMNIGLOT_EXPERTS if compared else "",
        )


def _in_few_steps() -> Iterator[Row]:
    """Yield the lines of Table 2 by gates that learn in few steps, and one whose gates see the task alone."""
    gates = {from_the_task(label): (FROM_THE_TASK, *line) for label, line in TABLE_2.items()}
    gates[DIVERSE_BY_TASK] = (BY_TASK, *TABLE_2[DIVERSE])
    for label, (options, network, error) in gates.items():
        yield Row(
            label,
            ("few-steps",),
            OMNIGLOT,
            "top-k",
            options,
            (*ALPHABETS, *THROUGH, f"network={network}"),
            paper=_error(error),
        )


def _cells(label: str, network: str, accuracy: float) -> Row:
    """Return a line of Table 4."""
    return Row(
        label,
        ("depth",),
        CELLS,
        "top-k",
        FALLING,
        (*THROUGH, f"network={network}"),
        paper={PAPER.epochs: accuracy},
    )


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

BESIDE_THE_PAPER = ("shared path", "random fixed paths")
"""Those that stand beside Table 2 as well."""


def _compared() -> Iterator[Row]:
    """Yield every agent on both networks, but for what is refused and for the line that Table 2 has."""
    for env, part, more in ((OMNIGLOT, OMNIGLOT_EXPERTS, ALPHABETS), (CIFAR, CIFAR_MTL, ())):
        for series, (agent, options) in COMPARED.items():
            if (series, part) in REFUSED or (series, part) == (ANNEALED, OMNIGLOT_EXPERTS):
                continue
            beside = ("omniglot", "few-steps") if env == OMNIGLOT and series in BESIDE_THE_PAPER else ()
            yield Row(
                f"{series}, {part}",
                (*beside, "agents"),
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
        paper=_error(39.19),
    ),
    *_in_few_steps(),
    Row("5 experts, k = 2", ("mnist",), MNIST, "top-k", ("k=2", *BALANCED), THROUGH),
    _cells(CELLS_6X32, "cells-6x32", 95.1),
    _cells(CELLS_6X64, "cells-6x64", 95.5),
    _cells(CELLS_12X32, "cells-12x32", 94.7),
    Row(ALL_ON, ("depth",), CELLS, "soft-mixture", (), ("network=cells-6x32",), paper={PAPER.epochs: 95.6}),
    *_compared(),
)

DIVERSITY = Reproduction(
    name="diversity",
    title="Diversity and Depth in Per-Example Routing Models (Ramachandran, Le; ICLR 2019)",
    settings=(PAPER, SHORT),
    rows=ROWS,
    groups={
        "omniglot": "Tables 1 and 2, Omniglot: diverse experts",
        "few-steps": "Table 2 in few steps: k = 2",
        "mnist": "Fig. 4, MNIST: specialisation of experts",
        "depth": "Table 4, CIFAR-10: routing depth",
        "agents": "Not in the paper: all agents on both kinds of experts",
    },
    batch_size=32,
    about="± is half of the 95 % interval over seeds; multiply-accumulates (MACs) are per instance, the router's own "
    "included.",
    table=errors,
    tables={
        "mnist": classes_and_experts,
        "depth": depth,
        "agents": partial(across, agents=tuple(COMPARED), networks=(OMNIGLOT_EXPERTS, CIFAR_MTL), refused=REFUSED),
    },
    draw=draw,
    judge=claims,
)
