"""What the paper on multipath early exit says, judged by made-up records."""

import numpy as np
import pytest
from records import (
    CLASSES,
    COSTS,
    chain_decisions,
    curve,
    exits_of,
    made_up,
    over_seeds,
    verdict,
    ways_of,
)

from routing_gym.experiments.papers.multipath.results import claims, curve_of
from routing_gym.experiments.papers.multipath.rows import PRICES

STATIC = np.array([0.10, 0.08, 0.07, 0.06, 0.055, 0.06])


def judged(records, *starts):
    """Return the verdict of each claim on the records of three seeds."""
    found = claims(over_seeds(records))
    return [verdict(found, start)[0] for start in starts]


def strategies(actor=-0.02, pragmatic=-0.01, optimistic=0.02):
    """Curves that are so far from the static one."""
    static = curve("static", COSTS[:6], STATIC)
    moved = (("actor", actor), ("pragmatic critic", pragmatic), ("optimistic critic", optimistic))
    return [*static, *(record for name, by in moved for record in curve(name, COSTS[:6] * 0.8, STATIC + by))]


def test_the_order_of_strategies():
    order = ("At equal cost actor", "At equal cost pragmatic", "Optimistic critics")
    assert judged(strategies(), *order) == ["holds"] * 3
    assert judged(strategies(actor=0.02, pragmatic=0.01, optimistic=-0.02), *order) == ["does not hold"] * 3
    between = strategies(actor=-0.02, pragmatic=0.03, optimistic=0.0)  # worse than one of the two only
    assert judged(between, "Optimistic critics") == ["does not hold"]
    assert judged([], *order) == ["not enough"] * 3
    assert judged(strategies(actor=-0.01), "At equal cost actor") == ["not enough"]
    two_seeds = claims(over_seeds(strategies(), 2))
    assert [verdict(two_seeds, text)[0] for text in order] == ["not enough"] * 3


def test_the_gap_is_taken_at_equal_cost():
    # A straight line and one that is a point below it, at other costs: 1 point wherever both are.
    upper = curve("pragmatic critic", [4e6, 8e6, 16e6], [0.20, 0.16, 0.08])
    lower = curve("actor", [2e6, 10e6, 12e6], [0.21, 0.13, 0.11])
    said = verdict(claims([*upper, *lower]), "At equal cost actor")
    assert said[0] == "not enough" and ": +1 points (1 seed, of 3 at least)" in said[1]
    apart = curve("actor", [1e6, 2e6], [0.1, 0.1])
    assert "Needs runs" in verdict(claims([*upper, *apart]), "At equal cost actor")[1]


def test_seeds_are_averaged():
    runs = [
        made_up("actor", 2e6 + 1e6 * seed, 0.2 + 0.02 * seed, label="actor, k_cpt 0", seed=seed) for seed in range(3)
    ]
    points = curve_of([*runs, made_up("actor", 8e6, 0.1)])
    assert points.macs.tolist() == [3, 8] and points.error.tolist() == pytest.approx([22, 10])


def test_half_of_the_operations_at_equal_error():
    text = "Routed networks need 2 to 3 times"
    static = curve("static", [4e6, 8e6, 12e6], [0.2, 0.1, 0.12])

    def verdict_of(macs, error):
        return judged([*static, *curve("actor", macs, error)], text)

    assert verdict_of([1e6, 3e6, 6e6], [0.2, 0.08, 0.07]) == ["holds"]
    assert verdict_of([1e6, 6e6, 9e6], [0.2, 0.08, 0.07]) == ["does not hold"]  # better, but not cheap
    assert verdict_of([1e6, 3e6, 6e6], [0.2, 0.15, 0.14]) == ["does not hold"]  # cheap, but worse
    assert verdict_of([1e6, 5e6], [0.2, 0.0666]) == ["holds"]  # on the line between, at 4 M: 10 %
    assert verdict_of([1e6, 5e6], [0.2, 0.0733]) == ["not enough"]  # 10.5 %: a twentieth more is no loss
    assert verdict_of([5e6, 6e6], [0.08, 0.07]) == ["does not hold"]  # none is so cheap
    assert judged(static, text) == ["not enough"]
    numbers = verdict(claims([*static, *curve("actor", [1e6, 5e6], [0.2, 0.08])]), text)[1]
    assert "errs more with half of its operations (actor, static): -0.5 points" in numbers  # 11 % at 4 M


def test_peak_at_a_third_of_the_cost():
    static = curve("static", [4e6, 8e6, 12e6], [0.06, 0.05, 0.04], part="CIFAR-2")

    def verdict_of(macs, error):
        return judged([*static, *curve("actor", macs, error, part="CIFAR-2")], "On CIFAR-2")

    assert verdict_of([1e6, 4e6, 5e6], [0.05, 0.03, 0.03]) == ["holds"]
    assert verdict_of([1e6, 8e6, 9e6], [0.06, 0.03, 0.03]) == ["does not hold"]  # better, but not cheap
    assert verdict_of([1e6, 4e6, 5e6], [0.07, 0.06, 0.05]) == ["does not hold"]  # cheap, but not better
    assert verdict_of([1e6, 4e6], [0.05, 0.0399]) == ["not enough"]
    assert judged(static, "On CIFAR-2") == ["not enough"]


def leaving(share, accuracy, lean=None, **more):
    """An actor whose exits take these shares of images, and are so often right."""
    decisions = chain_decisions()
    exits = exits_of(decisions, ways_of(decisions), share, accuracy, lean=lean)
    return made_up("actor", 4e6, 0.1, exits=exits, **more)


def of_three(share, accuracy, text, lean=None):
    """The verdict on three seeds, which are a little less right each."""
    runs = [leaving(share, accuracy * (1 - 0.01 * seed), lean, seed=seed) for seed in range(3)]
    return verdict(claims(runs), text)[0]


def test_difficult_decisions_downstream():
    text, share = "Early layers are right more often", np.full(8, 1 / 8)
    falling = np.linspace(1.0, 0.6, 8)
    assert of_three(share, falling, text) == "holds"
    assert of_three(share, falling[::-1], text) == "does not hold"
    assert of_three(share, np.full(8, 0.8), text) == "not enough"
    assert "Needs runs" in verdict(claims([leaving(share, np.ones(8))]), text)[1]  # none is wrong
    # Two exits: 0.8 of the images right 9 times of 10, and the rest every second time; 0.08 and 0.1 are wrong.
    two = leaving(np.array([0.8, 0.2, *[0] * 6]), np.array([0.9, 0.5, *[1] * 6]), part="CIFAR-2")
    said = verdict(claims([two]), text)[1]
    assert f": {0.1 / 0.18 - 0.1 / 0.82:+.3g} columns (1 seed" in said and "(actor; CIFAR-2)" in said


def test_a_harder_class_makes_no_decision_difficult():
    """Wrong images run 0.7 columns more in all, since their class goes further, and 1 less than right ones of it."""
    runs = []
    for seed in range(3):
        run = leaving(np.full(8, 1 / 8), np.full(8, 0.9), seed=seed)
        ways, counts = sorted(map(tuple, run["ways_out"])), np.zeros_like(np.array(run["exits"]))
        counts[ways[0]][0] = 10, 990
        counts[ways[2]][1, 0], counts[ways[3]][1, 1] = 300 + seed, 700 - seed
        runs.append({**run, "exits": counts.tolist()})
    decided, said = verdict(claims(runs), "Early layers are right more often")
    assert decided == "does not hold" and f": {-np.mean([1 - 10 / (310 + seed) for seed in range(3)]):+.3g}" in said


def test_layers_of_classes():
    text, share = "Layers become specialised", np.array([0.5, 0.5, *[0] * 6])
    apart = np.zeros((8, CLASSES))
    apart[0, : CLASSES // 2] = apart[1:, CLASSES // 2 :] = 1
    told = verdict(claims([leaving(share, np.full(8, 0.9), apart)]), text)[1]
    assert ": +0.999 bits (1 seed" in told  # one bit, less what chance gives: 9 / 2 ln 2 of 10 000 images
    numbers = np.random.default_rng(0)
    seeds = [leaving(share, np.full(8, 0.9), apart + numbers.random(apart.shape), seed=seed) for seed in range(3)]
    assert verdict(claims(seeds), text)[0] == "holds"
    by_chance = [leaving(share, np.full(8, 0.9), numbers.poisson(500, (8, CLASSES)), seed=seed) for seed in range(3)]
    assert verdict(claims(by_chance), text)[0] == "not enough"


def test_a_given_budget():
    text = "With a given budget"
    assert judged(strategies(actor=-0.02), text) == ["holds"]
    assert judged(strategies(actor=0.02), text) == ["does not hold"]
    elsewhere = [*strategies(actor=-0.02), *curve("static", COSTS[:6], STATIC, part="CIFAR-2"),
                 *curve("actor", COSTS[:6], STATIC + 0.02, part="CIFAR-2")]  # fmt: skip
    assert judged(elsewhere, text) == ["does not hold"]


def test_one_network_for_all_prices():
    text = "One network that is told the price"
    several = [made_up("actor", macs, error, price=price) for macs, error, price in zip(COSTS[5::-1], STATIC[::-1],
               PRICES, strict=False)]  # fmt: skip

    def verdict_of(above, response):
        middle = several[2]["macs"]
        by_price = [
            {"k_cpt": run["x"], "macs": middle + response * (run["macs"] - middle), "loss": 0.1, "cost": 0.1,
             "test_accuracy": run["test_accuracy"] - above}
            for run in several
        ]  # fmt: skip
        return judged([*several, made_up("actor, dynamic k_cpt", 5e6, 0.1, by_price=by_price)], text)

    assert verdict_of(0.0, 0.9) == verdict_of(-0.02, 1.0) == ["holds"]
    assert verdict_of(0.02, 1.0) == ["does not hold"]  # 2 points above a tenth of 7
    assert verdict_of(-0.02, 0.2) == ["does not hold"]  # good, but deaf to the price
    assert verdict_of(-0.02, 0.5) == ["not enough"]
    assert judged(several, text) == ["not enough"]


def test_variants():
    base = strategies()
    parts = {
        "actor, no TALR": -0.01,
        "pragmatic critic, no TALR": 0.0,
        "actor, k_dec = 0": 0.0,
        "actor, regularised policy": 0.0,
        "pragmatic critic, classification error": -0.005,
    }
    texts = ("Throughput", "Without k_dec", "Regularising", "Pragmatic critics of")
    holds = [*base, *(r for name, by in parts.items() for r in curve(name, COSTS[:6] * 0.8, STATIC + by))]
    assert judged(holds, *texts) == ["holds"] * 4
    turned = [*base, *(r for name in parts for r in curve(name, COSTS[:6] * 0.8, STATIC - 0.035))]
    assert judged(turned, *texts) == ["does not hold"] * 4
    peak = "Actor networks have a higher peak"
    assert judged(base, peak) == ["holds"] and judged(strategies(actor=0.02), peak) == ["does not hold"]
    worse_somewhere = [*base, *curve("static", COSTS[:6], STATIC, part="CIFAR-5"),
                       *curve("actor", COSTS[:6], STATIC + 0.02, part="CIFAR-5")]  # fmt: skip
    assert judged(worse_somewhere, peak) == ["does not hold"]
