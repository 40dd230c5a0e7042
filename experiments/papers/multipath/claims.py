"""What Deciding How to Decide (McGill and Perona 2017) says in words, judged by recorded runs.

Curves of error against mean operations are compared where both have points, by linear interpolation, or by their best
points. A difference smaller than its standard error, that of errors counted on as many test images, decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.judging import Verdict, all_of, sign_of, standard_error
from routing_gym.experiments.papers.reproduction import Claim

ABOUT_EQUAL = 0.1
"""Two errors are comparable that differ by less than this share of the larger curve's mean."""

ABOUT_A_THIRD = 0.4
"""A cost up to this share of another is taken for a third of it."""

MISSING = "Needs {}: at least two networks each, of overlapping cost."


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
        if self.error[0] <= error:
            return float(self.macs[0])
        for i in range(1, len(self.error)):
            if self.error[i] <= error:
                share = (self.error[i - 1] - error) / (self.error[i - 1] - self.error[i])
                return float(self.macs[i - 1] + share * (self.macs[i] - self.macs[i - 1]))
        return float("inf")

    @property
    def best(self) -> int:
        """The place of the lowest error, the cheaper one of equals."""
        return int(self.error.argmin())


def points_of(records: Sequence[Record], series: str, part: str = "hybrid") -> Points | None:
    """Return a curve, a point for each network (means over seeds) or for each price one was judged at.

    Returns:
        None with fewer than two points: no curve.
    """
    found: list[tuple[float, float]] = []
    instances = 0
    own = [record for record in records if record["series"] == series and record["part"] == part]
    for runs in by_label(own).values():
        several = [run.get("by_price", [run]) for run in runs]
        found += [
            (float(np.mean([p["macs"] for p in point])), 1 - float(np.mean([p["test_accuracy"] for p in point])))
            for point in zip(*several, strict=True)
        ]
        instances = sum(int(np.sum(run["exits"])) for run in runs)
    if len(found) < 2:
        return None
    macs, error = np.array(sorted(found)).T
    return Points(macs, error, instances)


def claims(records: Sequence[Record]) -> list[Claim]:
    """Judge all claims.

    Args:
        records: All trained in one way; see `record_of` for what they hold, and `Row` for `series` and `part`.
    """

    def curve(series: str, part: str = "hybrid") -> Points | None:
        return points_of(records, series, part)

    actor, static = curve("actor"), curve("static")
    pragmatic, optimistic = curve("pragmatic critic"), curve("optimistic critic")
    by_class = curve("pragmatic critic, classification error")
    return [
        all_of("At equal cost actor networks err less than pragmatic critics", [_below("pragmatic", actor, pragmatic)]),
        all_of("At equal cost pragmatic critics err less than static networks", [_below("static", pragmatic, static)]),
        all_of(
            "Optimistic critics are the worst of the three strategies",
            [_below("optimistic, actor", actor, optimistic), _below("optimistic, pragmatic", pragmatic, optimistic)],
        ),
        _fewer_operations(actor, static),
        all_of(
            "Actor networks have a higher peak accuracy than static ones",
            [
                _better_peak(part, curve("actor", part), curve("static", part))
                for part in dict.fromkeys(record["part"] for record in records if record["series"] == "actor")
            ],
        ),
        _third_of_the_cost(curve("actor", "CIFAR-2"), curve("static", "CIFAR-2")),
        _as_good_as_eight(curve("actor, dynamic k_cpt"), actor),
        all_of(
            "Throughput-adjusted learning rates improve the peak accuracy of actors and critics",
            [
                _better_peak("actor", actor, curve("actor, no TALR")),
                _better_peak("pragmatic", pragmatic, curve("pragmatic critic, no TALR")),
            ],
        ),
        all_of(
            "Without k_dec actor networks do worse",
            [_below("k_dec = 0", actor, curve("actor, k_dec = 0"))],
        ),
        all_of(
            "Regularising the policy reduces the peak accuracy of actor networks",
            [_better_peak("regularised", actor, curve("actor, regularised policy"))],
        ),
        all_of(
            "Pragmatic critics of the classification error do worse than those of the cross-entropy, but better than "
            "static networks",
            [
                _below("classification error, cross-entropy", pragmatic, by_class),
                _below("static, classification error", by_class, static),
            ],
        ),
    ]


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


def _below(what: str, lower: Points | None, upper: Points | None) -> tuple[Verdict, str]:
    """Judge whether one curve is below another at equal cost; the text says how far `what` is above."""
    gap = None if lower is None or upper is None else _gap(lower, upper)
    if gap is None:
        return "not enough", MISSING.format(f"both curves ({what})")
    return sign_of(gap[0], gap[1]), f"Above ({what}): {gap[2]}."


def _better_peak(what: str, better: Points | None, worse: Points | None) -> tuple[Verdict, str]:
    """Judge whether the lowest error of one curve is below that of another."""
    if better is None or worse is None:
        return "not enough", MISSING.format(f"both curves ({what})")
    ours, theirs = float(better.error.min()), float(worse.error.min())
    noise = standard_error((ours + theirs) / 2, min(better.instances, worse.instances))
    return sign_of(theirs - ours, noise), f"Lowest errors ({what}): {100 * ours:.2f} and {100 * theirs:.2f} %."


def _fewer_operations(routed: Points | None, static: Points | None) -> Claim:
    """Judge the ratio of costs at which both reach the static networks' lowest error, within its standard error."""
    text = "Routed networks need 2 to 3 times fewer operations than static ones without loss of performance"
    if routed is None or static is None:
        return Claim(text, "not enough", MISSING.format("actor and static networks"))
    lowest = float(static.error.min())
    level = lowest + standard_error(lowest, min(routed.instances, static.instances))
    ours, theirs = routed.reaches(level), static.reaches(level)
    if not np.isfinite(ours):
        numbers = (
            f"The lowest error of routed networks is {100 * routed.error.min():.2f} %, that of static ones "
            f"{100 * lowest:.2f} %."
        )
        return Claim(text, "does not hold", numbers)
    numbers = (
        f"{100 * level:.2f} % takes routed networks {ours / 1e6:.2f} M, static ones {theirs / 1e6:.2f} M: "
        f"{theirs / ours:.1f} times as many."
    )
    return Claim(text, "holds" if theirs >= 2 * ours else "does not hold", numbers)


def _third_of_the_cost(routed: Points | None, static: Points | None) -> Claim:
    """Judge whether routed networks exceed the best static one, and the cheapest that does, at what cost."""
    text = "On CIFAR-2 routed networks have a higher peak accuracy than static ones, at a third of the cost"
    if routed is None or static is None:
        return Claim(text, "not enough", MISSING.format("actor and static networks on CIFAR-2"))
    verdict, numbers = _better_peak("CIFAR-2", routed, static)
    if verdict == "holds":
        cheapest = float(routed.macs[routed.error < static.error.min()].min())
        share = cheapest / float(static.macs[static.best])
        numbers += f" The cheapest routed network above the best static one has {share:.2f} of its operations."
        verdict = "holds" if share <= ABOUT_A_THIRD else "does not hold"
    return Claim(text, verdict, numbers)


def _as_good_as_eight(one: Points | None, several: Points | None) -> Claim:
    """Judge whether one network judged at several prices is no worse than networks trained for a price each."""
    text = "One network that is told the price is about as good as one network for each price"
    gap = None if one is None or several is None else _gap(several, one)
    if gap is None or several is None:
        return Claim(text, "not enough", MISSING.format("the network that is told the price, and actors"))
    allowed = max(gap[1], ABOUT_EQUAL * float(several.error.mean()))
    numbers = f"Its curve is above theirs by {gap[2]}; up to {100 * allowed:.2f} points are taken for equal."
    return Claim(text, "holds" if gap[0] <= allowed else "does not hold", numbers)
