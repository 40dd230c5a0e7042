"""What Deciding How to Decide (McGill and Perona 2017) reports, as runs: a row per network of its Figs. 5, 9 and 10.

Training is that of section 4.7: rate, temperature and their half-life, an eighth of the training, are the paper's. The
penalty on weights is the agent's, weighted by the probability of the paths, for routed networks, and the optimiser's
for static ones, where twice the factor is the same penalty: the gradient of k w² is 2 k w. The throughput-adjusted
learning rate is for agents that are the paper's own; the others of the group `agents` train without it, in the same
number of steps.

Half of CIFAR-10 will do where there is no more of it; the record then says so in the name of its data.
"""

from __future__ import annotations

from collections.abc import Iterator

from routing_gym.experiments.papers.reproduction import Row, Settings
from routing_gym.experiments.papers.tables import price_text

HYBRID = "routing_gym/HybridEarlyExit-v0"
CIFAR10, CIFAR5, CIFAR2 = (f"routing_gym/Cifar{classes}EarlyExit-v0" for classes in (10, 5, 2))
PRICES = (0.0, 1e-9, 2e-9, 4e-9, 8e-9, 1.6e-8, 3.2e-8, 6.4e-8)

TRAINING = (
    "optimizer=sgd",
    "learning_rate=0.1",
    "momentum=0.9",
    "schedule=halving",
    "schedule_epochs={eighth}",
    "allow_partial=True",
)
PAPER = Settings(
    name="paper",
    about="as in section 4.7: SGD 0.1, momentum 0.9, rate and temperature halved every 10 000 of 80 000 steps; the "
    "epochs are so many steps on the whole data",
    epochs=184,  # of 435 steps
    epochs_on=dict.fromkeys((CIFAR10, CIFAR5, CIFAR2), 205),  # of 391 steps
    env_options=TRAINING,
)
SHORT = Settings(
    name="short",
    about="as the paper's, in fewer epochs: rate and temperature are halved in an eighth of them",
    epochs=12,
    env_options=TRAINING,
)

ACTOR = ("temperature=1.0", "temperature_epochs={eighth}", "decisiveness=0.01", "weight_decay=1e-4")
CRITIC = ("temperature=0.1", "temperature_epochs={eighth}", "regression=0.001", "weight_decay=1e-4")
TALR = ("talr=True",)


def named(series: str, part: str) -> str:
    """Name a curve of one of the data sets."""
    return series if part == "hybrid" else f"{series}, {part}"


def _priced(
    series: str,
    group: str | tuple[str, ...],
    agent: str,
    options: tuple[str, ...],
    env_options: tuple[str, ...] = TALR,
    env: str = HYBRID,
    part: str = "hybrid",
    at_medium_price: tuple[str, ...] = (),
    cheaper: int = 1,
) -> Iterator[Row]:
    """Yield the networks of a curve, one for each price, divided by `cheaper`; that of 4e-9 has further groups."""
    groups = (group,) if isinstance(group, str) else group
    for price in PRICES:
        paid = price_text(price / cheaper)
        yield Row(
            f"{named(series, part)}, k_cpt {paid}",
            (*groups, *(at_medium_price if price == 4e-9 else ())),
            env,
            agent,
            options,
            (*env_options, f"k_cpt={paid}"),
            x=price / cheaper,
            series=series,
            part=part,
        )


def static_labels(part: str) -> list[str]:
    """Name the first 1 to 8 columns as networks of their own."""
    return [f"{named('static', part)}, {columns} column{'s' if columns > 1 else ''}" for columns in range(1, 9)]


def _static(
    groups: tuple[str, ...], env: str = HYBRID, part: str = "hybrid", env_options: tuple[str, ...] = ()
) -> Iterator[Row]:
    """Yield the first 1 to 8 columns as networks of their own."""
    for columns, label in enumerate(static_labels(part), 1):
        options = (f"network=pyramid-static-{columns}", "weight_decay=2e-4", *env_options)
        yield Row(label, groups, env, "shared", env_options=options, series="static", part=part)


def _at_medium_price(series: str, agent: str, options: tuple[str, ...], env_options: tuple[str, ...] = ()) -> Row:
    """Return one of the agents that are compared at one price."""
    env_options = (*env_options, "k_cpt=4e-9")
    label = f"{series}, k_cpt 4e-9"
    return Row(label, ("agents",), HYBRID, agent, options, env_options, series=series, part="hybrid")


MLP = "representation=mlp"
NO_K_DEC = (*(option for option in ACTOR if not option.startswith("decisiveness=")), "decisiveness=0.0")
ROWS = (
    *_priced("actor", "fig5", "actor", ACTOR, at_medium_price=("agents",)),
    *_priced("pragmatic critic", "fig5", "pragmatic-critic", CRITIC),
    *_priced("optimistic critic", "fig5", "optimistic-critic", CRITIC),
    *_static(("fig5",)),
    *_priced("actor, no TALR", "variants", "actor", ACTOR, ()),
    *_priced("actor, k_dec = 0", "variants", "actor", NO_K_DEC),
    *_priced("actor, regularised policy", "variants", "actor", (*ACTOR, "regularized_policy=True")),
    *_priced("actor, branching", "variants", "actor", ACTOR, (*TALR, "network=pyramid-tree")),
    Row(
        "actor, dynamic k_cpt",
        ("variants",),
        HYBRID,
        "actor",
        ACTOR,
        (*TALR, "price=True", f"k_cpt=({', '.join(map(price_text, PRICES))})"),
        series="actor, dynamic k_cpt",
        part="hybrid",
        judge_at=PRICES,
    ),
    *_priced("pragmatic critic, no TALR", "variants", "pragmatic-critic", CRITIC, ()),
    *_priced(
        *("pragmatic critic, classification error", "variants", "pragmatic-critic", (*CRITIC, "error=classification"))
    ),
    *(
        row
        for env, part, groups in (
            (CIFAR10, "CIFAR-10", ("classes", "width")),
            (CIFAR5, "CIFAR-5", ("classes",)),
            (CIFAR2, "CIFAR-2", ("classes",)),
        )
        for row in (*_priced("actor", groups, "actor", ACTOR, TALR, env, part), *_static(groups, env, part))
    ),
    *(
        row
        for width, cheaper in (("width=32", 4), ("width=48", 9))
        for part in (f"CIFAR-10, {width.replace('=', ' ')}",)
        for row in (
            *_priced("actor", "width", "actor", ACTOR, (*TALR, width), CIFAR10, part, cheaper=cheaper),
            *_static(("width",), CIFAR10, part, (width,)),
        )
    ),
    _at_medium_price("pragmatic critic, sampled", "pragmatic-critic-sampled", CRITIC, TALR),
    _at_medium_price("optimistic critic, sampled", "optimistic-critic-sampled", CRITIC, TALR),
    _at_medium_price("WPL", "wpl", (MLP,)),
    _at_medium_price("REINFORCE", "reinforce", (MLP,)),
    _at_medium_price("REINFORCE, entropy 0.1", "reinforce", (MLP, "entropy=0.1")),
    _at_medium_price("actor-critic", "actor-critic", (MLP,)),
    _at_medium_price("PPO", "sb3:PPO", (MLP,)),
)
