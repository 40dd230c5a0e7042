"""What Deciding How to Decide (McGill and Perona 2017) reports, as runs: a row per network of its Figs. 5, 9 and 10.

Training is that of section 4.7: rate, temperature and their half-life, an eighth of the training, are the paper's. The
penalty on weights is the agent's, weighted by the probability of the paths, for routed networks, and the optimiser's
for static ones, where twice the factor is the same penalty: the gradient of k w² is 2 k w. The throughput-adjusted
learning rate is for agents that are the paper's own; the others of the group `agents` train without it, in the same
number of steps.

Half of CIFAR-10 will do where there is no more of it; the record then says so in the name of its data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from routing_gym.experiments.papers.rows import Change, Row, Settings
from routing_gym.experiments.papers.tables import price_text

HYBRID = "routing_gym/HybridEarlyExit-v0"
CIFAR10, CIFAR5, CIFAR2 = (f"routing_gym/Cifar{classes}EarlyExit-v0" for classes in (10, 5, 2))
PRICES = (0.0, 1e-9, 2e-9, 4e-9, 8e-9, 1.6e-8, 3.2e-8, 6.4e-8)

TRAINING = (
    *("optimizer=sgd", "learning_rate=0.1", "momentum=0.9", "schedule=halving", "schedule_epochs={eighth}"),
    "allow_partial=True",
)
PAPER = Settings(
    name="paper",
    about="as in section 4.7: SGD 0.1, momentum 0.9, rate and temperature halved every 10 000 of 80 000 steps; the "
    "epochs are so many steps on the whole data",
    epochs=184,  # of 435 steps
    changes=dict.fromkeys((CIFAR10, CIFAR5, CIFAR2), Change(epochs=205)),  # of 391 steps
    env_options=TRAINING,
)

ACTOR = ("temperature=1.0", "temperature_epochs={eighth}", "decisiveness=0.01", "weight_decay=1e-4")
NO_K_DEC = (*ACTOR[:2], "decisiveness=0.0", ACTOR[3])
CRITIC = ("temperature=0.1", "temperature_epochs={eighth}", "regression=0.001", "weight_decay=1e-4")
TALR, STATIC, MLP = ("talr=True",), ("weight_decay=2e-4",), ("representation=mlp",)

Point = tuple[str, float | None, str]
"""Of a curve: its name, where it stands, and what makes it, an option of the environment."""


def _prices(prices: Iterable[float]) -> list[Point]:
    return [(f"k_cpt {price_text(price)}", price, f"k_cpt={price_text(price)}") for price in prices]


PRICED = _prices(PRICES)
ONE_PRICE = [("k_cpt 4e-9", None, "k_cpt=4e-9")]
COLUMNS = [(f"{n} column{'s' if n > 1 else ''}", None, f"network=pyramid-static-{n}") for n in range(1, 9)]


def named(series: str, part: str) -> str:
    """Name a curve of one of the data sets."""
    return series if part == "hybrid" else f"{series}, {part}"


def static_labels(part: str) -> list[str]:
    """Name the first 1 to 8 columns as networks of their own."""
    return [f"{named('static', part)}, {name}" for name, *_ in COLUMNS]


def _curve(
    series: str,
    groups: str,
    agent: str,
    options: tuple[str, ...] = (),
    env_options: tuple[str, ...] = TALR,
    points: Iterable[Point] = PRICED,
    part: str = "hybrid",
    env: str = HYBRID,
) -> Iterator[Row]:
    """Yield the networks of a curve, one for each point; the actor's at 4e-9 is among the other agents too."""
    for name, x, option in points:
        label = f"{named(series, part)}, {name}"
        in_groups = (*groups.split(), "agents") if label == "actor, k_cpt 4e-9" else tuple(groups.split())
        yield Row(label, in_groups, env, agent, options, (*env_options, option), x=x, series=series, part=part)


def _parts() -> Iterator[Row]:
    """Yield actor and static networks of the other data and widths, whose prices are divided by their operations'."""
    for env, part, groups, options, cheaper in (
        (CIFAR10, "CIFAR-10", "classes width skipping", (), 1),
        (CIFAR5, "CIFAR-5", "classes", (), 1),
        (CIFAR2, "CIFAR-2", "classes cifar-2", (), 1),
        (CIFAR10, "CIFAR-10, width 32", "width", ("width=32",), 4),
        (CIFAR10, "CIFAR-10, width 48", "width", ("width=48",), 9),
    ):
        prices = _prices(price / cheaper for price in PRICES)
        yield from _curve("actor", groups, "actor", ACTOR, (*TALR, *options), prices, part, env)
        if "cifar-2" in groups:
            yield from _curve("pragmatic critic", "cifar-2", "pragmatic-critic", CRITIC, TALR, prices, part, env)
        yield from _curve("static", groups, "shared", (), (*STATIC, *options), COLUMNS, part, env)


ROWS = (
    *_curve("actor", "fig5", "actor", ACTOR),
    *_curve("pragmatic critic", "fig5", "pragmatic-critic", CRITIC),
    *_curve("optimistic critic", "fig5", "optimistic-critic", CRITIC),
    *_curve("static", "fig5", "shared", (), STATIC, COLUMNS),
    *_curve("actor, no TALR", "variants", "actor", ACTOR, ()),
    *_curve("actor, k_dec = 0", "variants", "actor", NO_K_DEC),
    *_curve("actor, regularised policy", "variants", "actor", (*ACTOR, "regularized_policy=True")),
    *_curve("actor, branching", "variants", "actor", ACTOR, (*TALR, "network=pyramid-tree")),
    Row(
        *("actor, dynamic k_cpt", ("variants",), HYBRID, "actor", ACTOR),
        (*TALR, "price=True", f"k_cpt=({', '.join(map(price_text, PRICES))})"),
        series="actor, dynamic k_cpt",
        part="hybrid",
        judge_at=PRICES,
    ),
    *_curve("pragmatic critic, no TALR", "variants", "pragmatic-critic", CRITIC, ()),
    *_curve(
        *("pragmatic critic, classification error", "variants", "pragmatic-critic", (*CRITIC, "error=classification"))
    ),
    *_parts(),
    *_curve("pragmatic critic, sampled", "agents", "pragmatic-critic-sampled", CRITIC, TALR, ONE_PRICE),
    *_curve("optimistic critic, sampled", "agents", "optimistic-critic-sampled", CRITIC, TALR, ONE_PRICE),
    *_curve("WPL", "agents", "wpl", MLP, (), ONE_PRICE),
    *_curve("REINFORCE", "agents", "reinforce", MLP, (), ONE_PRICE),
    *_curve("REINFORCE, entropy 0.1", "agents", "reinforce", (*MLP, "entropy=0.1"), (), ONE_PRICE),
    *_curve("actor-critic", "agents", "actor-critic", MLP, (), ONE_PRICE),
    *_curve("PPO", "agents", "sb3:PPO", MLP, (), ONE_PRICE),
)
