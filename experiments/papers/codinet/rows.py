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

from collections.abc import Iterator

from routing_gym.experiments.papers.codinet.claims import claims
from routing_gym.experiments.papers.codinet.figures import draw
from routing_gym.experiments.papers.codinet.labels import (
    CONSISTENT,
    DEPTHS,
    GAMMAS,
    MARGINS,
    PRINTED,
    RELAXATIONS,
    RESNET,
    ROUTERS,
    VANILLA,
    WITH_BOTH,
    with_depth,
    with_gamma,
    with_margin,
)
from routing_gym.experiments.papers.codinet.tables import paths_and_cost
from routing_gym.experiments.papers.reproduction import Reproduction, Row, Settings

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

SECOND_STAGE = ("freeze_after={seven_eighths}",)
METHODS = {
    VANILLA: ("alpha=0.0", "beta=0.0"),
    CONSISTENT: ("beta=0.0",),
    WITH_BOTH: (),
}
BLOCKS = {depth: (depth - 2) // 2 for depth in DEPTHS}


def _printed(label: str) -> dict[int, float]:
    """Return the paper's accuracy after its training."""
    accuracy = PRINTED[label].accuracy if label in PRINTED else None
    return {} if accuracy is None else {PAPER.epochs: accuracy}


def _codinet(
    label: str,
    groups: tuple[str, ...],
    options: tuple[str, ...] = (),
    env_options: tuple[str, ...] = (),
    *,
    env: str = CIFAR10,
    gamma: float = 0.0,
    series: str = "",
    part: str = "CIFAR-10",
) -> Row:
    """Return a run of the paper's own agent, at a weight of the cost."""
    return Row(
        label,
        groups,
        env,
        "codinet",
        (*options, f"gamma={gamma}", *SECOND_STAGE),
        env_options,
        paper=_printed(label),
        series=series,
        part=part,
        compare_paths=True,
    )


def _all_blocks(depth: int, data: str, groups: tuple[str, ...]) -> Row:
    """Return a ResNet of which every image runs all blocks."""
    label = with_depth(RESNET, depth, data)
    return Row(
        label,
        groups,
        DATA[data],
        "fixed-routes",
        (f"routes={[[1] * BLOCKS[depth]]}",),
        (f"network=resnet{depth}-skip",),
        paper=_printed(label),
        series=RESNET,
        part=data,
        compare_paths=True,
    )


def _by_depth(data: str, depths: tuple[int, ...], groups: tuple[str, ...]) -> Iterator[Row]:
    """Yield the lines of Table 6, or 4: networks of given depths, without routing and with."""
    for depth in depths:
        yield _all_blocks(depth, data, (*groups, "cost") if (depth, data) == (32, "CIFAR-10") else groups)
        for method in (VANILLA, WITH_BOTH):
            yield _codinet(
                with_depth(method, depth, data),
                groups,
                METHODS[method],
                (f"network=resnet{depth}-skip",),
                env=DATA[data],
                series=method,
                part=data,
            )


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
    *(
        _codinet(
            method,
            ("regularization", *(("cost", "margins") if method == WITH_BOTH else ())),
            options,
            series=method,
        )
        for method, options in METHODS.items()
    ),
    *(
        _codinet(with_gamma(gamma), ("cost",), METHODS[WITH_BOTH], gamma=gamma, series=WITH_BOTH)
        for gamma in GAMMAS[1:]
    ),
    *(
        _codinet(
            with_margin(margin), ("margins",), (*METHODS[WITH_BOTH], f"diversity_margin={margin}"), series="margin"
        )
        for margin in MARGINS
        if margin != 0.5
    ),
    *_by_depth("CIFAR-10", DEPTHS, ("depth",)),
    *_by_depth("CIFAR-100", DEPTHS, ("depth",)),
    *_by_depth("SVHN", DEPTHS[-1:], ("svhn",)),
    *(
        _codinet(name, ("relaxations",), (*METHODS[VANILLA], f"relaxation={relaxation}"), gamma=0.01)
        for relaxation, name in RELAXATIONS.items()
    ),
    *(
        _codinet(
            name,
            ("routers",),
            (*METHODS[WITH_BOTH], f"router={router}"),
            ("observes=map",) if router == "cnn" else (),
            gamma=0.01,
        )
        for router, name in ROUTERS.items()
    ),
    *(
        Row(name, ("agents",), CIFAR10, agent, options, series=name, part="CIFAR-10", compare_paths=agent != "random")
        for name, (agent, options) in AGENTS.items()
    ),
)

CODINET = Reproduction(
    name="codinet",
    title="CoDiNet: Path Distribution Modeling with Consistency and Diversity for Dynamic Routing (Wang et al.)",
    settings=(PAPER, SHORT),
    rows=ROWS,
    groups={
        "regularization": "Table 2: consistency and diversity",
        "cost": "Table 5 and Fig. 7: cost and accuracy",
        "depth": "Table 6: ResNets of three depths",
        "margins": "Table 8: margin of diversity",
        "relaxations": "Table 9: relaxations of a decision, without the losses on paths",
        "routers": "Table 10: kinds of routers",
        "svhn": "Table 4: SVHN",
        "agents": "Not in the paper: other agents, k_cpt = 2e-9 (gamma = 0.01)",
    },
    batch_size=256,
    about="Test accuracy in %, ± half of the 95 % interval over seeds, the paper's in italics behind ours; GFLOPs are "
    "twice the multiply-accumulates, routers included; K is the mean number of blocks run; kept is the share of test "
    "images whose path stays the same when they are moved and mirrored as in training, KL how far the predicted "
    "classes then are from what they were, in nats.",
    table=paths_and_cost,
    draw=draw,
    judge=claims,
)
