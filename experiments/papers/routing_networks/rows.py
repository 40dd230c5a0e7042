"""What Routing Networks (Rosenbaum, Klinger, Riemer 2018) reports, as runs: one row per line of its Table 2, and more.

The paper says nothing of batch size, rates of the agents, augmentation, or what was tuned. Batches are 128 here. On
CIFAR-MTL the rates of agents, and of the blocks of fixed ones, were chosen on the validation split, from three values
or more each (`routing-gym sweep --epochs 4 --env-options held_out=50 shift=4 flip=True schedule=cosine
schedule_epochs=4`, one seed); many agents did best at the highest rate tried. SARSA has the rate of Q-learning, the
single and the dispatched agent that of the agents per task. On MNIST-MTL all have their defaults, found on the
validation split of DIGITS-MTL.
"""

from __future__ import annotations

from routing_gym.experiments.papers.reproduction import Measurement, Reproduction, Row, Settings
from routing_gym.experiments.papers.routing_networks.cost import cost_against_number_of_blocks
from routing_gym.experiments.papers.routing_networks.figures import cost_against_blocks, draw
from routing_gym.experiments.papers.tables import accuracy_by_epoch, cost_by_blocks

EPOCHS = (1, 5, 10, 20, 50, 100)
CIFAR, MIN, MNIST = "routing_gym/Cifar100MTL-v0", "routing_gym/MiniImagenetMTL-v0", "routing_gym/MnistMTL-v0"


def _paper(*accuracies: float) -> dict[int, float]:
    """Table 2's figures, in %, at its epochs; a single one is that at 100."""
    epochs = EPOCHS if len(accuracies) > 1 else (100,)
    return dict(zip(epochs, accuracies, strict=True))


PAPER = Settings(
    name="paper",
    about="as printed: SGD, 1e-2 divided by 10 every 20 epochs; no augmentation",
    epochs=100,
    env_options=("optimizer=sgd", "learning_rate=0.01", "schedule=step", "schedule_epochs=20"),
)
TUNED = Settings(
    name="tuned",
    about="Adam 1e-3, cosine to 0 over all epochs; images shifted by up to 4 pixels and mirrored (MNIST: neither)",
    epochs=20,
    env_options=("optimizer=adam", "learning_rate=0.001", "schedule=cosine", "schedule_epochs={epochs}"),
    more_options={CIFAR: ("shift=4", "flip=True"), MIN: ("shift=4", "flip=True")},
    epochs_on={MNIST: 5},
)

WPL, CROSS_STITCH = ("policy_rate=0.1",), ("learning_rate=0.003",)
REINFORCE_MLP = ("representation=mlp", "learning_rate=0.1")
ROWS = (
    Row(
        "routing-all-fc (WPL)",
        ("rl", "architectures", "cifar"),
        CIFAR,
        "wpl",
        WPL,
        paper=_paper(31, 53, 57, 58, 60, 60),
    ),
    Row(
        "Q-learning, table", ("rl",), CIFAR, "q-learning", ("learning_rate=0.03",), paper=_paper(20, 36, 47, 50, 55, 55)
    ),
    Row(
        "Q-learning, approximators",
        ("rl",),
        CIFAR,
        "q-learning",
        ("representation=mlp", "learning_rate=0.003"),
        paper=_paper(20, 20, 20, 20, 24, 25),
    ),
    Row(
        "REINFORCE, approximators",
        ("rl",),
        CIFAR,
        "reinforce",
        REINFORCE_MLP,
        paper=_paper(20, 20, 20, 20, 20, 20),
    ),
    Row("REINFORCE, table", ("rl",), CIFAR, "reinforce", ("learning_rate=0.3",)),
    Row("Q-learning, table, whole returns", ("rl",), CIFAR, "q-learning", ("td_lambda=1.0", "learning_rate=0.03")),
    Row("SARSA, table", ("rl",), CIFAR, "sarsa", ("learning_rate=0.03",)),
    Row("actor-critic, table", ("rl",), CIFAR, "actor-critic", ("learning_rate=0.3",)),
    Row("actor-critic, approximators", ("rl",), CIFAR, "actor-critic", ("representation=mlp", "learning_rate=0.03")),
    Row("WPL, approximators", ("rl",), CIFAR, "wpl", ("representation=mlp", "policy_rate=0.3")),
    Row(
        "routing-all-fc recurrent, PASS",
        ("architectures",),
        CIFAR,
        "wpl",
        WPL,
        env_options=("recurrent=True",),
        paper=_paper(46),
    ),
    Row(
        "dispatched",
        ("architectures",),
        CIFAR,
        "reinforce",
        (*REINFORCE_MLP, "arrangement=dispatched"),
        paper=_paper(41),
    ),
    Row(
        "single agent",
        ("architectures",),
        CIFAR,
        "reinforce",
        (*REINFORCE_MLP, "arrangement=single"),
        paper=_paper(44),
    ),
    Row("soft mixture", ("architectures",), CIFAR, "soft-mixture", ("learning_rate=0.003",), paper=_paper(35)),
    Row(
        "soft mixture, conditioned",
        ("architectures",),
        CIFAR,
        "soft-mixture",
        ("conditioned=True", "learning_rate=0.01"),
    ),
    Row("Gumbel, straight-through", ("architectures",), CIFAR, "gumbel", ("learning_rate=1.0",)),
    Row("Gumbel, soft", ("architectures",), CIFAR, "gumbel", ("estimator=soft", "learning_rate=1.0")),
    Row(
        "cross-stitch",
        ("cifar",),
        CIFAR,
        "cross-stitch",
        CROSS_STITCH,
        paper=_paper(26, 37, 42, 49, 52, 53),
    ),
    Row("task-specific-all-fc", ("cifar",), CIFAR, "task-specific-all", paper=_paper(22, 29, 33, 36, 42, 42)),
    Row("task-specific-1-fc", ("cifar",), CIFAR, "task-specific-last", paper=_paper(27, 34, 39, 42, 48, 49)),
    Row("shared, told the task", ("cifar",), CIFAR, "shared-with-task", tuned={"tuned": ("learning_rate=0.003",)}),
    Row("random frozen paths", ("cifar",), CIFAR, "random-fixed"),
    *(
        Row(
            f"{label}, last {stages} stages too",
            ("stages",),
            CIFAR,
            agent,
            options,
            env_options=(f"routed_stages={stages}",),
        )
        for label, agent, options, depths in (
            ("routing (WPL)", "wpl", WPL, (2,)),
            ("task-specific", "task-specific-all", (), (2, 1, 3, 4)),
            ("random frozen paths", "random-fixed", (), (2,)),
        )
        for stages in depths
    ),
    Row("routing-all-fc (WPL)", ("min",), MIN, "wpl", paper=_paper(34, 54, 57, 55, 58, 57)),
    Row("cross-stitch", ("min",), MIN, "cross-stitch", paper=_paper(29, 41, 48, 53, 56, 55)),
    Row("task-specific-all-fc", ("min",), MIN, "task-specific-all", paper=_paper(22, 30, 37, 43, 47, 48)),
    Row("task-specific-1-fc", ("min",), MIN, "task-specific-last", paper=_paper(29, 38, 43, 46, 51, 51)),
    Row("shared, told the task", ("min",), MIN, "shared-with-task"),
    Row("random frozen paths", ("min",), MIN, "random-fixed"),
    Row(
        "routing-all-fc (WPL)", ("mnist",), MNIST, "wpl", env_options=("rho=0.3",), paper=_paper(90, 90, 98, 99, 99, 99)
    ),
    Row("soft mixture", ("mnist",), MNIST, "soft-mixture", paper=_paper(90, 90, 90, 90, 90, 90)),
    Row("cross-stitch", ("mnist",), MNIST, "cross-stitch", paper=_paper(90, 90, 90, 90, 90, 90)),
    Row("task-specific-all-fc", ("mnist",), MNIST, "task-specific-all", paper=_paper(90, 91, 94, 95, 95, 96)),
    Row("task-specific-1-fc", ("mnist",), MNIST, "task-specific-last", paper=_paper(90, 90, 91, 92, 93, 95)),
    Row("shared, told the task", ("mnist",), MNIST, "shared-with-task"),
    Row("random frozen paths", ("mnist",), MNIST, "random-fixed"),
    *(
        Row(f"WPL, ρ = {rho}", ("rho",), CIFAR, "wpl", WPL, env_options=(f"rho={rho}",), x=rho)
        for rho in (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)
    ),
    *(
        Row(f"{label}, {n} tasks", ("first-tasks",), CIFAR, agent, options, env_options=(f"num_tasks={n}",), x=n)
        for n in (2, 3, 5, 10)
        for label, agent, options in (
            ("routing-all-fc (WPL)", "wpl", WPL),
            ("cross-stitch", "cross-stitch", CROSS_STITCH),
            ("task-specific-all-fc", "task-specific-all", ()),
            ("task-specific-1-fc", "task-specific-last", ()),
        )
    ),
)

ROUTING_NETWORKS = Reproduction(
    name="routing-networks",
    title="Routing Networks (Rosenbaum, Klinger, Riemer; ICLR 2018)",
    settings=(PAPER, TUNED),
    rows=ROWS,
    groups={
        "rl": "Fig. 4, CIFAR-MTL: algorithms",
        "architectures": "Fig. 5, CIFAR-MTL: architectures",
        "cifar": "Fig. 6, CIFAR-MTL: baselines",
        "stages": "Not in the paper, CIFAR-MTL: the last convolutional stages routed too, at equal MACs",
        "min": "Fig. 7, MIN-MTL",
        "mnist": "Fig. 8, MNIST-MTL",
        "rho": "Fig. 12, CIFAR-MTL: the collaboration reward",
        "first-tasks": "Fig. 15, CIFAR-MTL: the first tasks",
    },
    batch_size=128,
    about="Test accuracy in %, ± half of the 95 % interval over seeds.",
    table=accuracy_by_epoch,
    draw=draw,
    measured={
        "cost": Measurement(
            title="Fig. 13: what a task's epoch costs",
            env=CIFAR,
            measure=cost_against_number_of_blocks,
            table=cost_by_blocks,
            draw=cost_against_blocks,
        )
    },
)
