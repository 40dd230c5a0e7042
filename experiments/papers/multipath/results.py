"""The table of Deciding How to Decide (McGill and Perona 2017), and what it says in words, judged by recorded runs.

Curves of error against mean operations are compared where both have points, by linear interpolation, or by their best
points. A difference smaller than its standard error, that of errors counted on as many test images, decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import by_label
from routing_gym.experiments.papers.judging import Judged, judged, sign_of, standard_error
from routing_gym.experiments.papers.reproduction import Claim, Runs, among, distinct, mean_of
from routing_gym.experiments.papers.tables import (
    EFFORT,
    MACS,
    Column,
    error,
    judged_on,
    millions,
    price_text,
    router_share,
    table,
)

ABOUT_EQUAL = 0.1
"""Two errors are comparable that differ by less than this share of the larger curve's mean."""

ABOUT_A_THIRD = 0.4
"""A cost up to this share of another is taken for a third of it."""


def _cost(runs: Runs) -> str:
    if runs[0].get("cost") is None:
        return ""  # prices were drawn: the lines below have one each
    return f"{mean_of(runs, 'cost'):.4f}"


COLUMNS: tuple[Column, ...] = ("error %", error), MACS, router_share("router's, %"), ("c_inf", _cost)


def error_and_operations(records: Runs) -> list[str]:
    """Show error, mean operations and the cost of inference; an agent judged at several prices has a line for each."""

    def at_prices(runs: Runs) -> list[list[str]]:
        return [
            [
                f"… judged at {price_text(points[0]['k_cpt'])}",
                ACCURACY.text([1 - point["test_accuracy"] for point in points]),
                millions("macs")(points),
                "",
                _cost(points),
                *[""] * len(EFFORT),
            ]
            for points in zip(*(run.get("by_price", []) for run in runs), strict=True)
        ]

    return [*table(COLUMNS, by_label(records).values(), at_prices), "", judged_on(records)]


@dataclasses.dataclass(frozen=True)
class Points:
    """A curve of error against mean operations.

    Attributes:
        macs: `(P,)` mean multiply-accumulates per instance, ascending.
        error: `(P,)` share of test instances classified wrong.
        instances: How many instances each error was counted on, over all seeds.
    """

    macs: np.ndarray
    error: np.ndarray
    instances: int

    def at(self, macs: np.ndarray) -> np.ndarray:
        """Return the error at some costs, by linear interpolation."""
        return np.interp(macs, self.macs, self.error)

    def reaches(self, error: float) -> float:
        """Return the least cost at which the interpolated curve is down at an error; infinity where it never is."""
        down = np.flatnonzero(self.error <= error)
        if not len(down) or down[0] == 0:
            return float(self.macs[0]) if len(down) else float("inf")
        around = [down[0], down[0] - 1]
        return float(np.interp(error, self.error[around], self.macs[around]))


def points_of(records: Runs, series: str, part: str = "hybrid") -> Points | None:
    """Return a curve, a point for each network (means over seeds) or for each price one was judged at.

    Returns:
        None with fewer than two points: no curve.
    """
    found: list[tuple[float, float]] = []
    instances = 0
    for runs in by_label(among(records, series=series, part=part)).values():
        points = zip(*(run.get("by_price", [run]) for run in runs), strict=True)
        found += [(mean_of(point, "macs"), 1 - mean_of(point, "test_accuracy")) for point in points]
        instances = sum(int(np.sum(run["exits"])) for run in runs)
    if len(found) < 2:
        return None
    macs, error = np.array(sorted(found)).T
    return Points(macs, error, instances)


def claims(records: Runs) -> list[Claim]:
    """Judge all claims by records that were trained in one way; for `series` and `part` see `Row`."""

    def curve(series: str, part: str = "hybrid") -> Points | None:
        return points_of(records, series, part)

    actor, static = curve("actor"), curve("static")
    pragmatic, optimistic = curve("pragmatic critic"), curve("optimistic critic")
    by_class = curve("pragmatic critic, classification error")
    parts = distinct(among(records, series="actor"), "part")
    said: dict[str, list[Judged]] = {
        "At equal cost actor networks err less than pragmatic critics": [_below("pragmatic", actor, pragmatic)],
        "At equal cost pragmatic critics err less than static networks": [_below("static", pragmatic, static)],
        "Optimistic critics are the worst of the three strategies": [
            _below("optimistic, actor", actor, optimistic),
            _below("optimistic, pragmatic", pragmatic, optimistic),
        ],
        "Routed networks need 2 to 3 times fewer operations than static ones without loss of performance": [
            _if_there("actor and static networks", _fewer_operations, actor, static)
        ],
        "Actor networks have a higher peak accuracy than static ones": [
            _better_peak(part, curve("actor", part), curve("static", part)) for part in parts
        ],
        "On CIFAR-2 routed networks have a higher peak accuracy than static ones, at a third of the cost": [
            _if_there(
                "actor and static networks on CIFAR-2",
                _third_of_the_cost,
                curve("actor", "CIFAR-2"),
                curve("static", "CIFAR-2"),
            )
        ],
        "One network that is told the price is about as good as one network for each price": [
            _if_there(
                "the network that is told the price, and actors",
                _as_good_as_eight,
                curve("actor, dynamic k_cpt"),
                actor,
            )
        ],
        "Throughput-adjusted learning rates improve the peak accuracy of actors and critics": [
            _better_peak("actor", actor, curve("actor, no TALR")),
            _better_peak("pragmatic", pragmatic, curve("pragmatic critic, no TALR")),
        ],
        "Without k_dec actor networks do worse": [_below("k_dec = 0", actor, curve("actor, k_dec = 0"))],
        "Regularising the policy reduces the peak accuracy of actor networks": [
            _better_peak("regularised", actor, curve("actor, regularised policy"))
        ],
        (
            "Pragmatic critics of the classification error do worse than those of the cross-entropy, but better than "
            "static networks"
        ): [
            _below("classification error, cross-entropy", pragmatic, by_class),
            _below("static, classification error", by_class, static),
        ],
    }
    return judged(said)


def _if_there(needed: str, judge: Callable[[Points, Points], Judged | None], *curves: Points | None) -> Judged:
    """Judge two curves, if both are there and can be compared."""
    one, other = curves
    found = None if one is None or other is None else judge(one, other)
    return found or ("not enough", f"Needs {needed}: at least two networks each, of overlapping cost.")


def _gap(lower: Points, upper: Points) -> tuple[float, float, str] | None:
    """Return how far one curve is above another on average, its standard error, and both as text."""
    low, high = max(lower.macs[0], upper.macs[0]), min(lower.macs[-1], upper.macs[-1])
    if high <= low:
        return None
    places = np.linspace(low, high, 201)
    one, other = lower.at(places), upper.at(places)
    gap = float((other - one).mean())
    within = min(int(((points.macs >= low) & (points.macs <= high)).sum()) for points in (lower, upper))
    error = standard_error(float((one + other).mean() / 2), min(lower.instances, upper.instances), max(1, within))
    text = f"{100 * gap:+.2f} ± {100 * error:.2f} points on average from {low / 1e6:.2f} to {high / 1e6:.2f} M"
    return gap, error, text


def _below(what: str, lower: Points | None, upper: Points | None) -> Judged:
    """Judge whether one curve is below another at equal cost; the text says how far `what` is above."""

    def judge(lower: Points, upper: Points) -> Judged | None:
        gap = _gap(lower, upper)
        return gap and (sign_of(gap[0], gap[1]), f"Above ({what}): {gap[2]}.")

    return _if_there(f"both curves ({what})", judge, lower, upper)


def _better_peak(what: str, better: Points | None, worse: Points | None) -> Judged:
    """Judge whether the lowest error of one curve is below that of another."""

    def judge(better: Points, worse: Points) -> Judged:
        ours, theirs = float(better.error.min()), float(worse.error.min())
        noise = standard_error((ours + theirs) / 2, min(better.instances, worse.instances))
        return sign_of(theirs - ours, noise), f"Lowest errors ({what}): {100 * ours:.2f} and {100 * theirs:.2f} %."

    return _if_there(f"both curves ({what})", judge, better, worse)


def _fewer_operations(routed: Points, static: Points) -> Judged:
    """Judge the ratio of costs at which both reach the static networks' lowest error, within its standard error."""
    lowest = float(static.error.min())
    level = lowest + standard_error(lowest, min(routed.instances, static.instances))
    ours, theirs = routed.reaches(level), static.reaches(level)
    if not np.isfinite(ours):
        best = f"The lowest error of routed networks is {100 * routed.error.min():.2f} %"
        return "does not hold", f"{best}, that of static ones {100 * lowest:.2f} %."
    both = f"{100 * level:.2f} % takes routed networks {ours / 1e6:.2f} M, static ones {theirs / 1e6:.2f} M"
    return "holds" if theirs >= 2 * ours else "does not hold", f"{both}: {theirs / ours:.1f} times as many."


def _third_of_the_cost(routed: Points, static: Points) -> Judged:
    """Judge whether routed networks exceed the best static one, and the cheapest that does, at what cost."""
    verdict, numbers = _better_peak("CIFAR-2", routed, static)
    if verdict != "holds":
        return verdict, numbers
    best = static.error.argmin()  # the cheaper one of equals
    share = float(routed.macs[routed.error < static.error[best]].min()) / float(static.macs[best])
    numbers += f" The cheapest routed network above the best static one has {share:.2f} of its operations."
    return "holds" if share <= ABOUT_A_THIRD else "does not hold", numbers


def _as_good_as_eight(one: Points, several: Points) -> Judged | None:
    """Judge whether one network judged at several prices is no worse than networks trained for a price each."""
    gap = _gap(several, one)
    if gap is None:
        return None
    allowed = max(gap[1], ABOUT_EQUAL * float(several.error.mean()))
    numbers = f"Its curve is above theirs by {gap[2]}; up to {100 * allowed:.2f} points are taken for equal."
    return "holds" if gap[0] <= allowed else "does not hold", numbers
