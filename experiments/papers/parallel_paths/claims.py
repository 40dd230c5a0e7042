"""What Tissera et al. say in words and by the order of their tables, judged by recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.papers.judging import Verdict, all_of, errs_less, sign_of
from routing_gym.experiments.papers.parallel_paths.labels import (
    ALL_ENSEMBLE,
    BASE,
    BASE_ENSEMBLE,
    CROSSES,
    DATA,
    DEEP,
    DEEP_SQUEEZED,
    PATHS,
    RESNET,
    SQUEEZED,
    STITCHED,
    UNROUTED,
    WIDE,
    on,
    routed,
)
from routing_gym.experiments.papers.parallel_paths.tables import ensembles
from routing_gym.experiments.papers.reproduction import Claim

Judged = tuple[Verdict, str]

SIMILAR = 0.005
"""By how much more networks may err that do similarly; the paper's own pairs differ by up to 0.21 points."""


def claims(records: Sequence[Record]) -> list[Claim]:
    """Judge all claims.

    Args:
        records: All trained in one way; see `record_of` for what they hold.
    """
    known = [*records, *ensembles(records)]

    def runs(label: str) -> list[Record]:
        return [record for record in known if record["label"] == label]

    def less(first: str, second: str) -> Judged:
        return errs_less(first, runs(first), second, runs(second))

    def routed_ones(paths: int, *others: str) -> list[Judged]:
        return [less(routed(paths, cross), other) for cross in CROSSES for other in others]

    twos = {
        "the one path": (BASE,),
        "one of twice the width": (WIDE,),
        "a deeper one": (DEEP,),
        "squeeze and excitation": (SQUEEZED, DEEP_SQUEEZED),
        "cross-stitch": (STITCHED,),
    }
    return [
        *(
            all_of(f"Table 2: two routed paths err less than {what}", routed_ones(2, *others))
            for what, others in twos.items()
        ),
        all_of("Table 2: three routed paths err less than three without routing", routed_ones(3, UNROUTED)),
        all_of("Table 2: three routed paths err less than ensembles", routed_ones(3, BASE_ENSEMBLE, ALL_ENSEMBLE)),
        all_of(
            "Table 2: the third path helps less than the second",
            [_helps_less(runs, [BASE, routed(2, cross), routed(3, cross)]) for cross in CROSSES],
        ),
        all_of(
            "Table 2: cross-connections do about as well as cross-predictions, with fewer parameters",
            [_as_good(runs, routed(paths, "CC"), routed(paths, "CP")) for paths in PATHS],
        ),
        all_of(
            "Table 3: ResNets of two routed paths err less than of one",
            [less(on(routed(2, cross, RESNET), data), on(RESNET, data)) for data in DATA for cross in CROSSES],
        ),
        all_of(
            "Table 3: the more routed paths, the fewer errors",
            [
                less(on(routed(paths + 1, cross, RESNET), data), on(routed(paths, cross, RESNET), data))
                for data in DATA
                for cross in CROSSES
                for paths in PATHS[:-1]
            ],
        ),
    ]


def _error(runs: Sequence[Record]) -> tuple[float, float]:
    """Return the mean error of some runs and its variance: that of counting, or that over seeds where it is larger."""
    errors = [1 - run["test_accuracy"] for run in runs]
    mean, instances = float(np.mean(errors)), int(np.sum(runs[0]["exits"]))
    counting = mean * (1 - mean) / (instances * len(runs))
    return mean, max(counting, float(np.var(errors, ddof=1)) / len(runs) if len(runs) > 1 else 0.0)


def _helps_less(runs: Callable[[str], list[Record]], labels: Sequence[str]) -> Judged:
    """Judge whether the step from the second network to the third saves fewer errors than that from the first."""
    if not all(runs(label) for label in labels):
        return "not enough", f"Needs all: {'; '.join(labels)}."
    (one, first), (two, second), (three, third) = (_error(runs(label)) for label in labels)
    noise = float(np.sqrt(first + 4 * second + third))
    shown = ", ".join(f"{label} {100 * error:.2f} %" for label, error in zip(labels, (one, two, three), strict=True))
    return sign_of((one - two) - (two - three), noise), f"Error: {shown} (± {100 * noise:.2f})."


def _as_good(runs: Callable[[str], list[Record]], smaller: str, larger: str) -> Judged:
    """Judge whether a network with fewer parameters errs no more than `SIMILAR` more than another."""
    if not runs(smaller) or not runs(larger):
        return "not enough", f"Needs both: {smaller}; {larger}."
    (ours, first), (theirs, second) = _error(runs(smaller)), _error(runs(larger))
    noise = float(np.sqrt(first + second))
    sizes = [float(np.mean([run["parameters"] for run in runs(label)])) for label in (smaller, larger)]
    verdict: Verdict = "does not hold" if sizes[0] >= sizes[1] else sign_of(SIMILAR - (ours - theirs), noise)
    parts = [
        f"{label} {100 * error:.2f} % with {size / 1e6:.2f} M"
        for label, error, size in zip((smaller, larger), (ours, theirs), sizes, strict=True)
    ]
    return verdict, f"Error: {', '.join(parts)} (± {100 * noise:.2f}; {100 * SIMILAR:g} points more would do)."
