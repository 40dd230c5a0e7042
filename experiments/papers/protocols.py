"""Protocols: of each paper, what two cores can decide in some hours. All of each is fixed before it runs.

Rows of one table have the same data, steps and schedule. What they are to decide is one of the claims the paper is
judged by, over at least three common seeds.
"""

from __future__ import annotations

from routing_gym.experiments.papers.codinet import rows as codinet
from routing_gym.experiments.papers.diversity import rows as diversity
from routing_gym.experiments.papers.multipath import rows as multipath
from routing_gym.experiments.papers.parallel_paths import rows as parallel
from routing_gym.experiments.papers.routing_networks import rows as routing
from routing_gym.experiments.papers.rows import Change, Protocol, Search, Settings


def _rates(option: str, *values: float | str) -> tuple[Change, ...]:
    """Values of an option of an agent to choose from."""
    return tuple(Change(agent=(f"{option}={value}",)) for value in values)


ROUTED_AND_BASELINES = (
    routing.ROUTING,
    routing.STITCHED,
    routing.SPECIFIC,
    routing.SPECIFIC_LAST,
    "shared, told the task",
    "random frozen paths",
)
AS_PRINTED = routing.PAPER.env_options
OWN_RATES = {
    routing.ROUTING: _rates("policy_rate", 0.03, 0.1, 0.3),
    routing.STITCHED: _rates("learning_rate", "none", 0.1, 1.0),
}
"""What is an agent's own; none is the blocks' rate, with its schedule."""
AS_THE_PAPER = {
    routing.ROUTING: Change(agent=("baseline=action",)),
    routing.STITCHED: Change(agent=("optimizer=sgd",)),
}
ROUTING_NETWORKS = (
    Settings(
        name="two-cores-cifar",
        about="Fig. 6 as printed, but for batches: SGD, 1e-2 divided by 10 every 20 epochs; a block's gradient is the "
        "mean over the rows that ran it",
        epochs=50,
        env_options=(*AS_PRINTED, "held_out=50"),
        changes=AS_THE_PAPER,
        protocol=Protocol(
            keeps="data, network, optimiser, rate and its schedule; a block learns from its own rows alone",
            shrinks="steps: one for a batch of 128 images, where the paper takes one for each; epochs from 100 to 50, "
            "in the last of which the rate is 1e-4; 50 of each class's 500 training images are the validation split",
            effect="18 points (42 against 60 % accuracy)",
            decides=f"Fig. 6: {routing.ROUTING} errs less than {routing.SPECIFIC}",
            rows=ROUTED_AND_BASELINES,
            groups=("cifar",),
            search=Search(epochs=10, choices=OWN_RATES),
        ),
    ),
    Settings(
        name="two-cores-mnist",
        about="Fig. 8 as printed, likewise",
        epochs=10,
        env_options=AS_PRINTED,
        changes=AS_THE_PAPER,
        protocol=Protocol(
            keeps="data, network, optimiser, rate; a block learns from its own rows alone",
            shrinks="steps: one for a batch of 128 images, where the paper takes one for each; epochs from 100 to 10",
            effect="3 points (96 against 99 % accuracy); a pilot of the baseline was at 99.4 %, so that some tenths "
            "are all there can be",
            decides=f"Fig. 8: {routing.ROUTING} errs less than {routing.SPECIFIC}",
            rows=ROUTED_AND_BASELINES,
            groups=("mnist",),
            seeds=5,
            search=Search(epochs=3, choices={**OWN_RATES, routing.ROUTING: _rates("policy_rate", 0.005, 0.03, 0.1)}),
        ),
    ),
)

MULTIPATH = (
    Settings(
        name="two-cores",
        about="Fig. 9, CIFAR-2, as in section 4.7, 10 000 steps on images of 16x16 pixels",
        epochs=51,  # of 196 steps
        env_options=(*multipath.TRAINING, "decayed=weights", "size=16", "shift=2"),
        protocol=Protocol(
            keeps="networks at full width, rates, temperatures and their halving in an eighth of the steps, penalties "
            "(of weights alone, in static networks too)",
            shrinks="images from 32x32 to 16x16, which take a quarter of the operations at the same prices; half of "
            "the training images, 10 000 of 80 000 steps, 4 of 8 prices (static networks have 8 chances of a lowest "
            "error, routed ones 4)",
            effect="half a point of error: 6.5 % is what a network of 8 columns is at after a quarter of the steps",
            decides="Not in the paper, CIFAR-2: actor networks err less than static ones with half of the operations",
            rows=(
                *(
                    f"{multipath.named(series, 'CIFAR-2')}, k_cpt {price}"
                    for price in ("0", "4e-9", "1.6e-8", "6.4e-8")
                    for series in ("actor", "pragmatic critic")
                ),
                *multipath.static_labels("CIFAR-2"),
            ),
        ),
    ),
)

OF_OMNIGLOT = (
    *map(diversity.from_the_task, (diversity.DIVERSE, diversity.CONVS, diversity.CONV3, diversity.CONTROL)),
    diversity.FALLING_FROM_THE_TASK,
)
BOTH_RATES = tuple(
    Change(env=(f"learning_rate={rate}",), agent=(f"learning_rate={rate}",)) for rate in ("1e-4", "2e-4", "4e-4")
)
"""Experts and gates are one network for the paper's optimiser."""
SMALL_OMNIGLOT = ("size=32", "width=24", "expert_mid=24", "readout=flat", "precision=float32")
DIVERSITY = (
    Settings(
        name="two-cores",
        about="Table 2 in a way that learns from the start: two experts a layer, gates without noise whose first "
        "choices are the task's",
        epochs=40,
        env_options=(*diversity.ADAM, *diversity.OF_OMNIGLOT, *SMALL_OMNIGLOT),
        protocol=Protocol(
            keeps="data, number and kinds of experts and layers, Adam, balancing",
            shrinks="drawings from 105x105 to 32x32, 24 of 48 filters, k = 2 in place of 7 to 2 in all rows but one, "
            "readouts that see all of the last map; epochs, which are not printed, are 40",
            decides="In few steps: unlike experts err less than 3x3 alone, and than 3x3 and identity",
            effect="9 points (7.8 against 16.7 % error)",
            rows=OF_OMNIGLOT,
            search=Search(epochs=8, choices=dict.fromkeys(OF_OMNIGLOT, BOTH_RATES)),
        ),
    ),
)

CODINET = (
    Settings(
        name="two-cores",
        about="Tables 2 and 5 on a ResNet of 9 blocks, 8 channels wide, and images of 16x16 pixels, the rate 0.1 "
        "falling to 0 along a cosine",
        epochs=24,
        batch_size=128,
        env_options=(
            *codinet.SGD,
            *("augmentations=4", "schedule=cosine", "schedule_epochs={epochs}", "network=resnet32-skip"),
            *("stages=(3, 3, 3)", "width=8", "size=16", "shift=2", "allow_partial=True"),
        ),
        protocol=Protocol(
            keeps="losses, margins and their weights, four augmentations per image, optimiser and rate, the second "
            "stage with frozen routers",
            shrinks="ResNet-110 to 9 blocks of 8, 16 and 32 channels, images to 16x16, half of the training images, "
            "250 epochs to 24, of 781 steps",
            decides="Table 2: with both losses fewer are than with neither",
            effect="1.3 points (5.5 against 6.8 % error)",
            rows=(
                *(codinet.VANILLA, codinet.CONSISTENT, codinet.WITH_BOTH),
                *map(codinet.with_gamma, codinet.GAMMAS[1:]),
            ),
        ),
    ),
)

ROUTED = tuple(parallel.routed(paths, cross) for paths in (2, 3) for cross in parallel.CROSSES)
OF_TABLE_2 = (parallel.BASE, parallel.WIDE, parallel.DEEP, parallel.UNROUTED, *ROUTED)
RATES = tuple(Change(env=(f"learning_rate={rate}",)) for rate in (0.01, 0.03, 0.1))
PARALLEL_PATHS = (
    Settings(
        name="two-cores",
        about="Table 2 at half the width, on images of 16x16 pixels, the rate falling to 0 along a cosine",
        epochs=40,
        env_options=(
            *parallel.SGD,
            *("schedule=cosine", "schedule_epochs={epochs}", "width=16", "size=16", "shift=2"),
            *("allow_partial=True", "held_out=250"),
        ),
        changes={parallel.WIDE: Change(env=("width=32",))},
        protocol=Protocol(
            keeps="layouts, gates, the proportions of the networks' parameters, momentum, batches",
            shrinks="32 to 16 channels, images to 16x16, half of the training images, of which 2 500 are the "
            "validation split, 200 epochs to 40; rates chosen per row from 0.01, 0.03, 0.1, where 0.1 is printed",
            decides="Table 2: two routed paths err less than one of twice the width",
            effect="1.7 points (7.2 against 9.0 % error)",
            rows=OF_TABLE_2,
            search=Search(epochs=10, choices=dict.fromkeys(OF_TABLE_2, RATES)),
        ),
    ),
)

PROTOCOLS = {
    "routing-networks": ROUTING_NETWORKS,
    "multipath": MULTIPATH,
    "diversity": DIVERSITY,
    "codinet": CODINET,
    "parallel-paths": PARALLEL_PATHS,
}
"""Protocols by the name of the paper."""
