"""What Routing Networks (Rosenbaum, Klinger, Riemer 2018) reports, as runs: one row per line of its Table 2, and more.

The paper says nothing of batch size, rates of the agents, augmentation, or what was tuned. Batches are 128 here. On
CIFAR-MTL the rates of agents, and of the blocks of fixed ones, were chosen on the validation split, from three values
or more each (`routing-gym sweep --epochs 4 --env-options held_out=50 shift=4 flip=True schedule=cosine
schedule_epochs=4`, one seed); many agents did best at the highest rate tried. SARSA has the rate of Q-learning, the
single and the dispatched agent that of the agents per task. On MNIST-MTL all have their defaults, found on the
validation split of DIGITS-MTL.
"""

from __future__ import annotations

from typing import Any

from routing_gym.experiments.papers.judging import SEEN
from routing_gym.experiments.papers.rows import Change, Row, Settings

EPOCHS = (1, 5, 10, 20, 50, 100)
TASKS = (2, 3, 5, 10)
"""How many of CIFAR-MTL's Fig. 15 is on."""
CIFAR, MIN, MNIST = "routing_gym/Cifar100MTL-v0", "routing_gym/MiniImagenetMTL-v0", "routing_gym/MnistMTL-v0"

PAPER = Settings(
    name="paper",
    about="as printed: SGD, also of gates, scores and values, 1e-2 divided by 10 every 20 epochs; no augmentation; the "
    "paper steps once per sample, so that a block learns from the mean over the rows that ran it",
    epochs=100,
    env_options=("optimizer=sgd", "learning_rate=0.01", "schedule=step", "schedule_epochs=20", "block_gradient=rows"),
    changes=dict.fromkeys(  # what these train by gradients follows the blocks' rate
        ("Q-learning, approximators", "cross-stitch", "soft-mixture", "gumbel", "reinforce", "actor-critic"),
        Change(agent=("optimizer=sgd", "learning_rate=none")),
    ),
)
TUNED = Settings(
    name="tuned",
    about="Adam 1e-3, cosine to 0 over all epochs; images shifted by up to 4 pixels and mirrored (MNIST: neither)",
    epochs=20,
    env_options=("optimizer=adam", "learning_rate=0.001", "schedule=cosine", "schedule_epochs={epochs}"),
    changes={
        **dict.fromkeys((CIFAR, MIN), Change(env=("shift=4", "flip=True"))),
        MNIST: Change(epochs=5),
        "cifar: shared, told the task": Change(env=("learning_rate=0.003",)),
    },
)


def _row(
    label: str, groups: str, agent: str, *options: str, paper: tuple[float, ...] = (), env: str = CIFAR, **more: Any
) -> Row:
    """Return a row; `paper` are Table 2's figures, in %, at its epochs, a single one that at 100."""
    printed = dict(zip(EPOCHS[-len(paper) :], paper, strict=False))
    return Row(label, tuple(groups.split()), env, agent, options, paper=printed, **more)


WPL, CROSS_STITCH, MLP = "policy_rate=0.1", "learning_rate=0.003", "representation=mlp"
ROUTING, STITCHED = "routing-all-fc (WPL)", "cross-stitch"
SPECIFIC, SPECIFIC_LAST = "task-specific-all-fc", "task-specific-1-fc"
SHARED = "shared, told the task"
WHOLE_RETURNS = "Q-learning, table, whole returns"
"""One step ahead, as printed, all choices of a layer but the last look equally good to a table."""
BASELINES, OURS = (STITCHED, SPECIFIC, SPECIFIC_LAST), (SHARED, "random frozen paths")
ROWS = (
    _row(ROUTING, "rl architectures cifar", "wpl", WPL, paper=(31, 53, 57, 58, 60, 60)),
    _row("Q-learning, table", "rl", "q-learning", "learning_rate=0.03", paper=(20, 36, 47, 50, 55, 55)),
    _row("Q-learning, approximators", "rl", "q-learning", MLP, "learning_rate=0.003", paper=(20, 20, 20, 20, 24, 25)),
    _row("REINFORCE, approximators", "rl", "reinforce", MLP, "learning_rate=0.1", paper=(20, 20, 20, 20, 20, 20)),
    _row("REINFORCE, table", "rl", "reinforce", "learning_rate=0.3"),
    _row(WHOLE_RETURNS, "rl", "q-learning", "td_lambda=1.0", "learning_rate=0.03"),
    _row("SARSA, table", "rl", "sarsa", "learning_rate=0.03"),
    _row("actor-critic, table", "rl", "actor-critic", "learning_rate=0.3"),
    _row("actor-critic, approximators", "rl", "actor-critic", MLP, "learning_rate=0.03"),
    _row("WPL, approximators", "rl", "wpl", MLP, "policy_rate=0.3"),
    _row("routing-all-fc recurrent, PASS", "architectures", "wpl", WPL, env_options=("recurrent=True",), paper=(46,)),
    _row("dispatched", "architectures", "reinforce", MLP, "learning_rate=0.1", "arrangement=dispatched", paper=(41,)),
    _row("single agent", "architectures", "reinforce", MLP, "learning_rate=0.1", "arrangement=single", paper=(44,)),
    _row("soft mixture", "architectures", "soft-mixture", "learning_rate=0.003", paper=(35,)),
    _row("soft mixture, conditioned", "architectures", "soft-mixture", "conditioned=True", "learning_rate=0.01"),
    _row("Gumbel, straight-through", "architectures", "gumbel", "learning_rate=1.0"),
    _row("Gumbel, soft", "architectures", "gumbel", "estimator=soft", "learning_rate=1.0"),
    _row(STITCHED, "cifar", "cross-stitch", CROSS_STITCH, paper=(26, 37, 42, 49, 52, 53)),
    _row(SPECIFIC, "cifar", "task-specific-all", paper=(22, 29, 33, 36, 42, 42)),
    _row(SPECIFIC_LAST, "cifar", "task-specific-last", paper=(27, 34, 39, 42, 48, 49)),
    _row(SHARED, "cifar", "shared-with-task"),
    _row("random frozen paths", "cifar", "random-fixed"),
    *(
        _row(f"{label}, last {n} stages too", "stages", agent, *options, env_options=(f"routed_stages={n}",))
        for label, agent, depths, *options in (
            ("routing (WPL)", "wpl", (2,), WPL),
            ("task-specific", "task-specific-all", (2, 1, 3, 4)),
            ("random frozen paths", "random-fixed", (2,)),
        )
        for n in depths
    ),
    _row(ROUTING, "min", "wpl", env=MIN, paper=(34, 54, 57, 55, 58, 57)),
    _row(STITCHED, "min", "cross-stitch", env=MIN, paper=(29, 41, 48, 53, 56, 55)),
    _row(SPECIFIC, "min", "task-specific-all", env=MIN, paper=(22, 30, 37, 43, 47, 48)),
    _row(SPECIFIC_LAST, "min", "task-specific-last", env=MIN, paper=(29, 38, 43, 46, 51, 51)),
    _row(SHARED, "min", "shared-with-task", env=MIN),
    _row("random frozen paths", "min", "random-fixed", env=MIN),
    _row(ROUTING, "mnist", "wpl", env=MNIST, env_options=("rho=0.3",), paper=(90, 90, 98, 99, 99, 99)),
    _row("soft mixture", "mnist", "soft-mixture", env=MNIST, paper=(90, 90, 90, 90, 90, 90)),
    _row(STITCHED, "mnist", "cross-stitch", env=MNIST, paper=(90, 90, 90, 90, 90, 90)),
    _row(SPECIFIC, "mnist", "task-specific-all", env=MNIST, paper=(90, 91, 94, 95, 95, 96)),
    _row(SPECIFIC_LAST, "mnist", "task-specific-last", env=MNIST, paper=(90, 90, 91, 92, 93, 95)),
    _row(SHARED, "mnist", "shared-with-task", env=MNIST),
    _row("random frozen paths", "mnist", "random-fixed", env=MNIST),
    *(
        _row(f"WPL, ρ = {rho}", "rho", "wpl", WPL, env_options=(f"rho={rho}",), x=rho)
        for rho in (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)
    ),
    *(
        _row(f"{label}, {n} tasks", "first-tasks", agent, *options, env_options=(f"num_tasks={n}",), x=n)
        for n in TASKS
        for label, agent, *options in (
            (ROUTING, "wpl", WPL),
            (STITCHED, "cross-stitch", CROSS_STITCH),
            (SPECIFIC, "task-specific-all"),
            (SPECIFIC_LAST, "task-specific-last"),
        )
    ),
)

PAIRS = (
    ("Fig. 4: WPL errs less than the next best algorithm, Q-learning on tables", CIFAR, ROUTING, "Q-learning, table"),
    (f"Fig. 4: WPL errs less than Q-learning on tables of whole returns{SEEN}", CIFAR, ROUTING, WHOLE_RETURNS),
    ("Fig. 4: tables err less than approximators", CIFAR, "Q-learning, table", "Q-learning, approximators"),
    ("Fig. 4: WPL errs less than a vanilla policy gradient", CIFAR, ROUTING, "REINFORCE, approximators"),
    ("Fig. 5: layered routes err less than recurrent ones", CIFAR, ROUTING, "routing-all-fc recurrent, PASS"),
    ("Fig. 5: an agent per task errs less than dispatched ones", CIFAR, ROUTING, "dispatched"),
    ("Fig. 5: an agent per task errs less than a single one", CIFAR, ROUTING, "single agent"),
    ("Fig. 5: hard routes err less than a soft mixture", CIFAR, ROUTING, "soft mixture"),
    *(
        (f"{figure}: {ROUTING} errs less than {other}", env, ROUTING, other)
        for figure, env, others in (
            ("Fig. 6", CIFAR, BASELINES),
            ("Not in the paper, CIFAR-MTL", CIFAR, OURS),
            ("Fig. 7", MIN, BASELINES),
            ("Not in the paper, MIN-MTL", MIN, OURS),
            ("Fig. 8", MNIST, (*BASELINES, "soft mixture")),
            ("Not in the paper, MNIST-MTL", MNIST, OURS),
        )
        for other in others
    ),
    ("Fig. 12, CIFAR-MTL: no collaboration reward errs less than the largest", CIFAR, "WPL, ρ = 0.0", "WPL, ρ = 1.0"),
)
"""What the paper says of two rows, the first of which errs less: text, environment, rows."""
