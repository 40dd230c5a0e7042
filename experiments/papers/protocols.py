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
    routing.ROUTING: tuple(Change(agent=(f"policy_rate={rate}",)) for rate in (0.03, 0.1, 0.3)),
    routing.STITCHED: tuple(Change(agent=(f"learning_rate={rate}",)) for rate in (0.01, 0.1, 1.0)),
}
STITCHED_BY_SGD = {routing.STITCHED: Change(agent=("optimizer=sgd",))}
ROUTING_NETWORKS = (
    Settings(
        name="two-cores-cifar",
        about="Fig. 6 as printed: SGD, 1e-2 divided by 10 every 20 epochs, a step per sample: each block's gradient is "
        "the mean over the rows that ran it",
        epochs=50,
        env_options=(*AS_PRINTED, "held_out=50"),
        changes=STITCHED_BY_SGD,
        protocol=Protocol(
            keeps="data, network, optimiser, rate and its schedule, batches of one image in what a block learns from",
            shrinks="epochs from 100 to 50, after which the rate is 1e-4; 50 of each class's 500 training images are "
            "the validation split; 3 seeds",
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
        changes=STITCHED_BY_SGD,
        protocol=Protocol(
            keeps="data, network, optimiser, rate, batches of one image in what a block learns from",
            shrinks="epochs from 100 to 10, in which all curves flatten; 5 seeds",
            decides=f"Fig. 8: {routing.ROUTING} errs less than {routing.SPECIFIC}",
            rows=ROUTED_AND_BASELINES,
            groups=("mnist",),
            seeds=5,
            search=Search(epochs=3, choices=OWN_RATES),
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
            shrinks="images from 32x32 to 16x16, half of the training images, 10 000 of 80 000 steps, 4 of 8 prices",
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
            shrinks="drawings from 105x105 to 32x32, 24 of 48 filters, k = 2 in place of 7 to 2, readouts that see all "
            "of the last map; epochs, which are not printed, are 40",
            decides="In few steps: the order of Table 2 with k = 2",
            rows=tuple(
                map(diversity.from_the_task, (diversity.DIVERSE, diversity.CONVS, diversity.CONV3, diversity.CONTROL))
            ),
        ),
    ),
)

CODINET = (
    Settings(
        name="two-cores",
        about="Tables 2, 5 and 8 on a ResNet of 9 blocks, 8 channels wide, and images of 16x16 pixels, the rate 0.1 "
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
            rows=(
                *(codinet.VANILLA, codinet.CONSISTENT, codinet.WITH_BOTH),
                *map(codinet.with_gamma, codinet.GAMMAS[1:]),
            ),
        ),
    ),
)

PATHS_2 = tuple(parallel.routed(2, cross) for cross in parallel.CROSSES)
OF_TABLE_2 = (parallel.BASE, parallel.WIDE, parallel.DEEP, parallel.UNROUTED, *PATHS_2, parallel.routed(3, "CC"))
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
