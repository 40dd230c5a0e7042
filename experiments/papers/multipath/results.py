"""The table of Deciding How to Decide (McGill and Perona 2017), and what it says in words, judged by recorded runs.

Claims are of curves of error against mean operations, one for each seed: a point is a network, or a price that one
network was judged at, and lines join them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from routing_gym.experiments.engine.records import by_label
from routing_gym.experiments.papers import tables
from routing_gym.experiments.papers.judging import SEEN, Judge, judged
from routing_gym.experiments.papers.reproduction import Claim, Judged, Runs, among, distinct, mean_of

ABOUT_EQUAL = 0.1
"""Two errors are comparable that differ by less than this share of the larger curve's mean."""
LOSS = 0.05
"""Share of a static network's error that a routed one may err more "without loss of performance"."""

ABOUT_A_THIRD = 0.4
"""A cost up to this share of another is taken for a third of it."""
THIRD = f" (taken for up to {ABOUT_A_THIRD:g})"

RESPONSE = 0.5
"""How much of what the operations of networks for a price each fall those of one for all prices must fall."""

Value = Callable[..., float | None]
"""A number of one or two curves of one seed; None where they cannot be compared."""


def _cost(runs: Runs) -> str:
    if runs[0].get("cost") is None:
        return ""  # prices were drawn: the lines below have one each
    return f"{mean_of(runs, 'cost'):.4f}"


COLUMNS = (("error %", tables.error), tables.MACS, tables.router_share("router's, %"), ("c_inf", _cost))


def error_and_operations(records: Runs) -> list[str]:
    """Show error, mean operations and the cost of inference; an agent judged at several prices has a line for each."""

    def at_prices(runs: Runs) -> list[list[str]]:
        lines = []
        for points in zip(*(run.get("by_price", []) for run in runs), strict=True):
            cells = [f"… judged at {tables.price_text(points[0]['k_cpt'])}", tables.error(points).strip("*")]
            lines.append([*cells, tables.millions("macs")(points), "", _cost(points), *[""] * len(tables.EFFORT)])
        return lines

    return [*tables.table(COLUMNS, by_label(records).values(), at_prices), "", tables.judged_on(records)]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Test error in % against millions of mean operations, both `(P,)`, by rising operations."""

    macs: np.ndarray
    error: np.ndarray

    def at(self, macs: np.ndarray | float) -> np.ndarray:
        """Return the error at some costs, by linear interpolation."""
        return np.interp(macs, self.macs, self.error)


def curve_of(runs: Runs) -> Curve:
    """Return the curve of some networks: a point for each, or for each price one was judged at; means over seeds."""
    points = [
        (mean_of(point, "macs") / 1e6, 100 * (1 - mean_of(point, "test_accuracy")))
        for network in by_label(runs).values()
        for point in zip(*(run.get("by_price", [run]) for run in network), strict=True)
    ]
    return Curve(*np.array(sorted(points)).T)


def _gap(lower: Runs, upper: Runs) -> float | None:
    """Return how far one curve is above another, on average over the operations that both reach."""
    ours, theirs = curve_of(lower), curve_of(upper)
    low, high = max(ours.macs[0], theirs.macs[0]), min(ours.macs[-1], theirs.macs[-1])
    if high <= low:
        return None
    places = np.linspace(low, high, 201)
    return float((theirs.at(places) - ours.at(places)).mean())


def _lead(share: float, better: Runs, worse: Runs) -> float:
    """Return how far the lowest error at up to a share of the operations of another curve's lowest is below that."""
    ours, theirs = curve_of(better), curve_of(worse)
    lowest = theirs.error.argmin()  # the cheaper one of equals
    limit = min(share * theirs.macs[lowest], ours.macs[-1])
    if limit < ours.macs[0]:  # none is as cheap as it should be: that is no better than to err twice as often
        return -float(theirs.error[lowest])
    return float(theirs.error[lowest] - min(ours.error[ours.macs <= limit].min(), ours.at(limit)))


def _spared(share: float, better: Runs, worse: Runs) -> float:
    """Return how many points more a curve might err at a share of the operations, until it counts as loss."""
    return _lead(share, better, worse) + LOSS * float(curve_of(worse).error.min())


def _comparable(one: Runs, several: Runs) -> float | None:
    gap = _gap(several, one)
    return None if gap is None else ABOUT_EQUAL * float(curve_of(several).error.mean()) - gap


def _response(one: Runs, several: Runs) -> float | None:
    theirs = {run["x"]: run["macs"] for run in several}
    ours = {point["k_cpt"]: point["macs"] for run in one for point in run["by_price"] if point["k_cpt"] in theirs}
    if len(ours) < 2:
        return None
    low, high = min(ours), max(ours)
    return float(ours[low] - ours[high] - RESPONSE * (theirs[low] - theirs[high])) / 1e6


def _leaving(runs: Runs) -> Iterator[np.ndarray]:
    """Yield `(W, C, 2)`, how many images of each class left each chain by each way out, wrong and right."""
    for run in runs:
        yield np.array(run["exits"])[tuple(zip(*sorted(map(tuple, run["ways_out"])), strict=True))]


def _later(runs: Runs) -> float | None:
    """Return how many columns more are run by images that are classified wrong than by right ones of their class.

    Mean over wrong images, and over networks. Of all classes together it would tell that one is the harder one, whose
    images leave where that class does.
    """
    differences = []
    for counts in _leaving(runs):
        images = counts.sum(0)  # (C, 2)
        both = images.all(-1)  # a class without wrong images, or without right ones, says nothing
        if not both.any():
            return None
        wrong, right = np.einsum("w,wcj->jc", np.arange(len(counts)), counts)[:, both] / images[both].T
        differences.append(np.average(wrong - right, weights=images[both, 0]))
    return float(np.mean(differences))


def _told(runs: Runs) -> float:
    """Return how many bits the way out tells of the class, less what it would by chance, on average over networks.

    Chance is of the first order in the number of images (Miller 1955).
    """
    bits = []
    for counts in _leaving(runs):
        of_class = counts.sum(2)
        images, ways, classes = of_class.sum(), *(np.count_nonzero(of_class.sum(axis)) for axis in (1, 0))
        joint, way, label = (of_class / images, of_class.sum(1) / images, of_class.sum(0) / images)
        entropy = [-(p[p > 0] * np.log2(p[p > 0])).sum() for p in (way, label, joint)]
        bits.append(entropy[0] + entropy[1] - entropy[2] - (ways - 1) * (classes - 1) / (2 * np.log(2) * images))
    return float(np.mean(bits))


def claims(records: Runs) -> list[Claim]:
    """Judge all claims by records that were trained in one way; for `series` and `part` see `Row`."""
    everywhere = distinct(among(records, series="actor"), "part")

    def judge(what: str, value: Value, *curves: str, part: str = "hybrid", unit: str = " points") -> Judged:
        text = f"{what} ({', '.join(curves)}{'' if part == 'hybrid' else f'; {part}'})"
        return Judge(records, by="series", part=part).positive(text, value, *curves, unit=unit)

    def below(lower: str, upper: str, part: str = "hybrid") -> Judged:
        return judge("the second above the first at equal operations", _gap, lower, upper, part=part)

    def peak(better: str, worse: str, part: str = "hybrid", share: float = np.inf) -> Judged:
        within = "" if np.isinf(share) else f", with {share:g} of its operations at most"
        return judge(
            f"lowest error, the first below the second{within}", partial(_lead, share), better, worse, part=part
        )

    actor, static, pragmatic, optimistic = "actor", "static", "pragmatic critic", "optimistic critic"
    dynamic, by_class = "actor, dynamic k_cpt", "pragmatic critic, classification error"
    comparable = f"{ABOUT_EQUAL:g} of the mean error of the second, less what the first is above it at equal operations"
    response = f"fall of operations from the lowest to the highest price, less {RESPONSE:g} of the second's"
    without_loss = f"{LOSS:g} of the second's lowest error, less what the first errs more with half of its operations"
    said = {
        f"Layers become specialised: where an image leaves tells something of its class{SEEN}": [
            judge("bits that the way out tells of the class", _told, actor, part=p, unit=" bits") for p in everywhere
        ],
        f"Early layers are right more often, and difficult decisions are pushed downstream{SEEN}": [
            judge(
                "columns that wrong images run more than right ones of their class",
                _later,
                actor,
                part=p,
                unit=" columns",
            )
            for p in everywhere
        ],
        f"With a given budget of operations actor networks err less than static ones{SEEN}": [
            below(actor, static, p) for p in everywhere
        ],
        "At equal cost actor networks err less than pragmatic critics": [below(actor, pragmatic)],
        "At equal cost pragmatic critics err less than static networks": [below(pragmatic, static)],
        "Optimistic critics are the worst of the three strategies": [
            below(actor, optimistic),
            below(pragmatic, optimistic),
        ],
        "Routed networks need 2 to 3 times fewer operations than static ones without loss of performance": [
            judge(without_loss, partial(_spared, 1 / 2), actor, static)
        ],
        "Actor networks have a higher peak accuracy than static ones": [peak(actor, static, p) for p in everywhere],
        f"On CIFAR-2 routed networks have a higher peak accuracy than static ones, at a third of the cost{THIRD}": [
            peak(actor, static, "CIFAR-2", ABOUT_A_THIRD)
        ],
        **{
            f"Not in the paper, {part}: {series} networks err less than static ones with half of the operations": [
                peak(series, static, part, 1 / 2)
            ]
            for series, part in ((actor, "CIFAR-2"), (pragmatic, "CIFAR-2"), (actor, "CIFAR-10"))
        },
        "One network that is told the price is about as good as one network for each price, and reacts to it": [
            judge(comparable, _comparable, dynamic, actor),
            judge(response, _response, dynamic, actor, unit=" M"),
        ],
        "Throughput-adjusted learning rates improve the peak accuracy of actors and critics": [
            peak(actor, "actor, no TALR"),
            peak(pragmatic, "pragmatic critic, no TALR"),
        ],
        "Without k_dec actor networks do worse": [below(actor, "actor, k_dec = 0")],
        "Regularising the policy reduces the peak accuracy of actor networks": [
            peak(actor, "actor, regularised policy")
        ],
        (
            "Pragmatic critics of the classification error do worse than those of the cross-entropy, but better than "
            "static networks"
        ): [below(pragmatic, by_class), below(by_class, static)],
    }
    return judged(said)
