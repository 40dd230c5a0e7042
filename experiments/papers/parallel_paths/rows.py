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
from typing import Any, NamedTuple

from routing_gym.experiments.papers.rows import Change, Row, Settings

CIFAR10 = "routing_gym/Cifar10ParallelPaths-v0"
CIFAR100 = "routing_gym/Cifar100ParallelPaths-v0"

SGD = ("optimizer=sgd", "momentum=0.9")
RESNET_EPOCHS = 350
PAPER = Settings(
    name="paper",
    about="as in section 6: batches of 128, the rate divided by 10 at epochs 80 and 150 of 200; ResNets batches of 64, "
    "at 150 and 250 of 350",
    epochs=200,
    env_options=(*SGD, "learning_rate=0.1", "schedule=step", "schedule_epochs=(80, 150)"),
    changes={
        CIFAR10: Change(env=("allow_partial=True",)),
        "resnet": Change(env=("schedule_epochs=(150, 250)",), epochs=RESNET_EPOCHS, batch_size=64),
    },
)

BASE, WIDE, DEEP = "BaseCNN", "WideCNN", "DeepCNN"
UNROUTED, STITCHED = "BaseCNN-3", "Cr-Stitch2"
SQUEEZED, DEEP_SQUEEZED = "SEBaseCNN", "SEDeepCNN"
BASE_ENSEMBLE, ALL_ENSEMBLE = "BaseCNN ensemble", "All ensemble"
PATHS = (2, 3, 4)
CROSSES = {"CP": "cross-prediction", "CC": "cross-connection"}
"""How a network's name ends, and the agent that computes its gates."""
RESNET = "ResNet20"
DATA = ("CIFAR-10", "CIFAR-100")

TOLD = "WPL, table, told the coarse class"
OWN_PATHS = "every tensor on its own path"

on = "{}, {}".format
"""Name of a row of Table 3, from network and data, or of a hard-routed network, from network and agent."""


def routed(paths: int, cross: str, layout: str = BASE) -> str:
    """Name a network of several paths, as the paper does: BaseCNN-2-CC."""
    return f"{layout}-{paths}-{cross}"


class Printed(NamedTuple):
    """Millions of parameters, and test errors in %: on CIFAR-10, after 350 epochs instead of 200, on CIFAR-100."""

    parameters: float
    error: float | None = None
    longer: float | None = None
    cifar100: float | None = None

    def error_on(self, data: str) -> float | None:
        """Return the test error on one of `DATA` in %."""
        return self.error if data == DATA[0] else self.cifar100


CNNS = {
    BASE: Printed(0.55, 9.26),
    WIDE: Printed(1.67, 8.96),
    DEEP: Printed(2.0, 8.49),
    UNROUTED: Printed(1.5, 9.41),
    BASE_ENSEMBLE: Printed(1.66, 7.87),
    ALL_ENSEMBLE: Printed(4.27, 6.9),
    SQUEEZED: Printed(0.58, 8.99),
    DEEP_SQUEEZED: Printed(2.06, 8.15),
    STITCHED: Printed(1.11, 7.89),
    routed(2, "CP"): Printed(1.3, 7.24, 6.48),
    routed(3, "CP"): Printed(2.23, 6.63, 6.04),
    routed(4, "CP"): Printed(3.34, 6.45, 5.91),
    routed(2, "CC"): Printed(1.11, 7.03, 6.53),
    routed(3, "CC"): Printed(1.67, 6.51, 6.09),
    routed(4, "CC"): Printed(2.22, 6.55, 6.26),
}
"""Table 2, but for what it quotes from others."""

RESNETS = {
    RESNET: Printed(0.27, 8.75),
    routed(2, "CP", RESNET): Printed(0.59, 5.86, cifar100=27.7),
    routed(3, "CP", RESNET): Printed(0.92, 4.99, cifar100=25.13),
    routed(4, "CP", RESNET): Printed(1.29, 4.81, cifar100=23.82),
    routed(2, "CC", RESNET): Printed(0.55, 5.5, cifar100=27.36),
    routed(3, "CC", RESNET): Printed(0.82, 5.18, cifar100=25.76),
    routed(4, "CC", RESNET): Printed(1.1, 4.96, cifar100=24.81),
    routed(2, "CC", "ResNet32"): Printed(0.94, 5.14, cifar100=25.96),
    routed(3, "CC", "ResNet32"): Printed(1.41, 4.96, cifar100=24.51),
    routed(4, "CC", "ResNet32"): Printed(1.88, 4.59, cifar100=23.52),
}
"""Table 3; ResNet20 is quoted there from He et al."""

QUOTED = {
    "ResNet110": Printed(1.7, 6.61, cifar100=26.88),
    "ResNet164": Printed(2.5, 5.93, cifar100=25.16),
    "WRN-40-2": Printed(2.2, 5.33, cifar100=26.04),
    "HyperWRN40-2": Printed(0.15, 7.23),
    "SEResNet110": Printed(1.7, 5.21, cifar100=23.85),
    "BlockDrop": Printed(1.7, 6.4, cifar100=26.3),
    "ConvNet-AIG": Printed(1.78, 5.76),
    "ConvNet-AIG all": Printed(1.78, 5.14),
}
"""What else Table 3 quotes from others."""

HARD_NETWORKS = {routed(2, "CC"): (2, 4), routed(3, "CC"): (3, 4), routed(2, "CP"): (2, 3)}
"""Networks that are routed hard: their paths and decisions."""
_MLP = ("representation=mlp", "arrangement=single")
HARD_AGENTS: dict[str, tuple[str, ...]] = {
    "REINFORCE": ("reinforce", *_MLP),
    "REINFORCE, entropy 0.1": ("reinforce", *_MLP, "entropy=0.1"),
    "actor-critic": ("actor-critic", *_MLP),
    "Gumbel, straight-through": ("gumbel", *_MLP),
    "WPL, table": ("wpl", "arrangement=single"),
    TOLD: ("wpl", "arrangement=per_task"),
    "random routes, fixed": ("random-fixed",),
    "random": ("random",),
}
"""Who routes them, by their names in tables, with their options."""


def _row(label: str, groups: tuple[str, ...], data: str, agent: str, network: str, *options: str, **more: Any) -> Row:
    """Return a row on a network, by its name in `make_network` or the paper's, with options of the environment."""
    name = network.lower().replace("cr-stitch", "crstitch")
    env = dict(zip(DATA, (CIFAR10, CIFAR100), strict=True))[data]
    return Row(label, groups, env, agent, env_options=(f"network={name}", *options), **{"part": data, **more})


def _accuracy(error: float | None, epochs: int) -> dict[int, float]:
    return {} if error is None else {epochs: 100 - error}


def _cnn_rows() -> Iterator[Row]:
    """Yield the lines of Table 2 that are trained; hard routes are compared with some of them."""
    for label, printed in CNNS.items():
        if label not in (BASE_ENSEMBLE, ALL_ENSEMBLE):
            groups = ("cnn", "hard") if label in (BASE, *HARD_NETWORKS) else ("cnn",)
            agent = "cross-stitch" if label == STITCHED else CROSSES.get(label[-2:], "shared")
            more: dict[str, Any] = {"series": label, "keep_logits": label in (BASE, WIDE, DEEP)}
            yield _row(label, groups, DATA[0], agent, label, paper=_accuracy(printed.error, PAPER.epochs), **more)


def _resnet_rows() -> Iterator[Row]:
    """Yield the lines of Table 3: ResNets with routing, and the one path of ResNet20."""
    for data in DATA:
        for label, printed in RESNETS.items():
            network = ("resnet20-2-cc", "paths=1") if label == RESNET else (label,)
            paper = _accuracy(printed.error_on(data), RESNET_EPOCHS)
            agent = CROSSES.get(label[-2:], "shared")
            yield _row(on(label, data), ("resnet",), data, agent, *network, series=label, paper=paper)


def _hard_rows() -> Iterator[Row]:
    """Yield networks in which every tensor goes to one path."""
    for network, (paths, decisions) in HARD_NETWORKS.items():
        stay = [[list(range(paths))] * decisions]
        for name, (agent, *options) in {**HARD_AGENTS, OWN_PATHS: ("fixed-routes", f"routes={stay}")}.items():
            more: dict[str, Any] = {"agent_options": tuple(options), "series": name, "part": network}
            where = ("task=coarse",) if name == TOLD else ()
            yield _row(on(network, name), ("hard",), DATA[0], agent, network, *where, **more)


ROWS = (*_cnn_rows(), *_hard_rows(), *_resnet_rows())
