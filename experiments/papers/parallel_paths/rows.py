"""What Tissera et al. report of data-dependent routing among parallel paths, as runs.

Networks and training are those of section 6: SGD, momentum 0.9, rate 0.1; no weight decay is printed, and there is
none. The paper reports the best of three trials, we report the mean. Section 6.3 (ImageNet) is not run; section 7 is
drawn of BaseCNN-2-CC on CIFAR-10, in place of VGG13-2 on ImageNet. Where CIFAR-10 is not whole, what there is will do;
the record then says so in the name of its data.

A single network, and paths without routing, need no choices: agent `shared` makes the only ones there are. The members
of an ensemble are other rows, trained on their own, of which the class probabilities are averaged.

The group `hard` is what the paper suggests in its last sentence: every tensor goes to one path. Agents learn from
rewards of +1 or -1, `gumbel` by gradient. A table knows the task only; where it is the coarse class, whoever routes is
told part of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator

from routing_gym.experiments.papers.parallel_paths.claims import claims
from routing_gym.experiments.papers.parallel_paths.figures import draw
from routing_gym.experiments.papers.parallel_paths.labels import (
    BASE,
    CNNS,
    CROSSES,
    DATA,
    DEEP,
    DEEP_SQUEEZED,
    OWN_PATHS,
    PATHS,
    RANDOM_ROUTES,
    RESNET,
    RESNETS,
    SQUEEZED,
    STITCHED,
    TOLD,
    UNROUTED,
    WIDE,
    hard,
    on,
    routed,
)
from routing_gym.experiments.papers.parallel_paths.tables import cnns, hard_routes, resnets
from routing_gym.experiments.papers.reproduction import Reproduction, Row, Settings

CIFAR10 = "routing_gym/Cifar10ParallelPaths-v0"
CIFAR100 = "routing_gym/Cifar100ParallelPaths-v0"

SGD = ("optimizer=sgd", "momentum=0.9")
PARTIAL: dict[str, tuple[str, ...]] = {CIFAR10: ("allow_partial=True",)}
PAPER = Settings(
    name="paper",
    about="as in section 6: batches of 128, the rate divided by 10 at epochs 80 and 150 of 200; ResNets batches of 64, "
    "at 150 and 250 of 350",
    epochs=200,
    env_options=(*SGD, "learning_rate=0.1", "schedule=step", "schedule_epochs=(80, 150)"),
    more_options=PARTIAL,
)
SHORT = Settings(
    name="short",
    about="as the other, but batches of 128 for all, training in bfloat16, and few epochs, in which the rate falls "
    "from 0.03 to 0 along a cosine: for small machines",
    epochs=6,
    # At a rate of 0.1 wide networks have hardly begun to learn by then: their dense layers are not normalised.
    env_options=(*SGD, "learning_rate=0.03", "precision=bfloat16", "schedule=cosine", "schedule_epochs={epochs}"),
    more_options=PARTIAL,
)
RESNET_EPOCHS, RESNET_BATCH = 350, 64

CNN_AGENTS = {
    BASE: "shared",
    WIDE: "shared",
    DEEP: "shared",
    UNROUTED: "shared",
    SQUEEZED: "shared",
    DEEP_SQUEEZED: "shared",
    STITCHED: "cross-stitch",
    **{routed(paths, cross): agent for cross, agent in CROSSES.items() for paths in PATHS},
}
"""Who makes the choices in the networks of Table 2."""

HARD_NETWORKS = {routed(2, "CC"): (2, 4), routed(3, "CC"): (3, 4), routed(2, "CP"): (2, 3)}
"""Networks that are routed hard: their paths and decisions."""
HARD_AGENTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "REINFORCE": ("reinforce", ("representation=mlp", "arrangement=single"), ()),
    "REINFORCE, entropy 0.1": ("reinforce", ("representation=mlp", "arrangement=single", "entropy=0.1"), ()),
    "actor-critic": ("actor-critic", ("representation=mlp", "arrangement=single"), ()),
    "Gumbel, straight-through": ("gumbel", ("representation=mlp", "arrangement=single"), ()),
    "WPL, table": ("wpl", ("arrangement=single",), ()),
    TOLD: ("wpl", ("arrangement=per_task",), ("task=coarse",)),
    RANDOM_ROUTES: ("random-fixed", (), ()),
    "random": ("random", (), ()),
}
"""Who routes them, by their names in tables: agent, its options, and the environment's."""
SHOWN = (routed(2, "CC"), routed(3, "CC"), routed(2, "CP"), BASE)
"""Networks of Table 2 that hard routes are compared with."""


def _name(label: str) -> str:
    """Return a network's name in `make_network`."""
    return label.lower().replace("cr-stitch", "crstitch")


def _cnn_rows() -> Iterator[Row]:
    """Yield the lines of Table 2 that are trained."""
    for label, agent in CNN_AGENTS.items():
        error = CNNS[label].error
        assert error is not None
        yield Row(
            label,
            ("cnn", *(["hard"] if label in SHOWN else [])),
            CIFAR10,
            agent,
            (),
            (f"network={_name(label)}",),
            paper={PAPER.epochs: 100 - error},
            series=label,
            part="CIFAR-10",
            keep_logits=label in (BASE, WIDE, DEEP),
        )


def _resnet_rows() -> Iterator[Row]:
    """Yield the lines of Table 3: ResNets with routing, and the one path of ResNet20."""
    for data, env in zip(DATA, (CIFAR10, CIFAR100), strict=True):
        for label, printed in RESNETS.items():
            error = printed.error if data == "CIFAR-10" else printed.cifar100
            single = label == RESNET
            options = ("network=resnet20-2-cc", "paths=1") if single else (f"network={_name(label)}",)
            yield Row(
                on(label, data),
                ("resnet",),
                env,
                "shared" if single else CROSSES[label.rpartition("-")[2]],
                (),
                options,
                tuned={"paper": ("schedule_epochs=(150, 250)",)},
                paper={} if error is None else {RESNET_EPOCHS: 100 - error},
                series=label,
                part=data,
                trained={"paper": (RESNET_EPOCHS, RESNET_BATCH)},
            )


def _hard_rows() -> Iterator[Row]:
    """Yield networks in which every tensor goes to one path."""
    for network, (paths, decisions) in HARD_NETWORKS.items():
        stay = [[list(range(paths))] * decisions]
        agents = {**HARD_AGENTS, OWN_PATHS: ("fixed-routes", (f"routes={stay}",), ())}
        for name, (agent, options, env_options) in agents.items():
            yield Row(
                hard(network, name),
                ("hard",),
                CIFAR10,
                agent,
                options,
                (f"network={_name(network)}", *env_options),
                series=name,
                part=network,
            )


PARALLEL_PATHS = Reproduction(
    name="parallel-paths",
    title="End-to-End Data-Dependent Routing in Multi-Path Neural Networks (Tissera et al.)",
    settings=(PAPER, SHORT),
    rows=(*_cnn_rows(), *_hard_rows(), *_resnet_rows()),
    groups={
        "cnn": "Table 2: parallel paths against wider, deeper and other networks",
        "hard": "Not in the paper: every tensor goes to one path",
        "resnet": "Table 3 and Fig. 7: ResNets of parallel paths",
    },
    batch_size=128,
    about="Test error in %, ± half of the 95 % interval over seeds; behind our figures in italics the paper's, of "
    "which errors are those of the best of three trials. Parameters and multiply-accumulates are those of network and "
    "gates together; gates', and agent's, is the agent's own share of the latter.",
    table=cnns,
    draw=draw,
    judge=claims,
    tables={"resnet": resnets, "hard": hard_routes},
)
