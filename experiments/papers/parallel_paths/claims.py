"""What Tissera et al. say in words and by the order of their tables, judged by recorded runs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from routing_gym.experiments.papers.judging import Judge, Judged, all_of, sign_of
from routing_gym.experiments.papers.parallel_paths import rows
from routing_gym.experiments.papers.parallel_paths.rows import BASE, CROSSES, DATA, PATHS, RESNET, on, routed
from routing_gym.experiments.papers.parallel_paths.tables import ensembles
from routing_gym.experiments.papers.reproduction import Claim, Runs, mean_of

SIMILAR = 0.005
"""By how much more networks may err that do similarly; the paper's own pairs differ by up to 0.21 points."""


def claims(records: Runs) -> list[Claim]:
    """Judge all claims by records that were trained in one way."""
    judge = Judge([*records, *ensembles(records)])

    def routed_ones(paths: int, *others: str) -> list[Judged]:
        return [judge.less(routed(paths, cross), other) for cross in CROSSES for other in others]

    twos = {
        "the one path": (BASE,),
        "one of twice the width": (rows.WIDE,),
        "a deeper one": (rows.DEEP,),
        "squeeze and excitation": (rows.SQUEEZED, rows.DEEP_SQUEEZED),
        "cross-stitch": (rows.STITCHED,),
    }
    resnets = [[on(routed(n, cross, RESNET), data) for n in PATHS] for data in DATA for cross in CROSSES]
    return [
        *(
            all_of(f"Table 2: two routed paths err less than {what}", *routed_ones(2, *others))
            for what, others in twos.items()
        ),
        all_of("Table 2: three routed paths err less than three without routing", *routed_ones(3, rows.UNROUTED)),
        all_of(
            "Table 2: three routed paths err less than ensembles",
            *routed_ones(3, rows.BASE_ENSEMBLE, rows.ALL_ENSEMBLE),
        ),
        all_of(
            "Table 2: the third path helps less than the second",
            *(_helps_less(judge, BASE, routed(2, cross), routed(3, cross)) for cross in CROSSES),
        ),
        all_of(
            "Table 2: cross-connections do about as well as cross-predictions, with fewer parameters",
            *(_as_good(judge, routed(paths, "CC"), routed(paths, "CP")) for paths in PATHS),
        ),
        all_of(
            "Table 3: ResNets of two routed paths err less than of one",
            *(judge.less(on(routed(2, cross, RESNET), data), on(RESNET, data)) for data in DATA for cross in CROSSES),
        ),
        all_of(
            "Table 3: the more routed paths, the fewer errors",
            *(judge.less(more, fewer) for networks in resnets for fewer, more in pairwise(networks)),
        ),
    ]


def _error(runs: Runs) -> tuple[float, float]:
    """Return the mean error of some runs and its variance: that of counting, or that over seeds where it is larger."""
    errors = [1 - run["test_accuracy"] for run in runs]
    mean, instances = float(np.mean(errors)), int(np.sum(runs[0]["exits"]))
    counting = mean * (1 - mean) / (instances * len(runs))
    return mean, max(counting, float(np.var(errors, ddof=1)) / len(runs) if len(runs) > 1 else 0.0)


def _helps_less(judge: Judge, *labels: str) -> Judged:
    """Judge whether the step from the second network to the third saves fewer errors than that from the first."""
    if not all(map(judge.runs, labels)):
        return "not enough", f"Needs all: {'; '.join(labels)}."
    (one, first), (two, second), (three, third) = (_error(judge.runs(label)) for label in labels)
    noise = float(np.sqrt(first + 4 * second + third))
    shown = ", ".join(f"{label} {100 * error:.2f} %" for label, error in zip(labels, (one, two, three), strict=True))
    return sign_of((one - two) - (two - three), noise), f"Error: {shown} (± {100 * noise:.2f})."


def _as_good(judge: Judge, smaller: str, larger: str) -> Judged:
    """Judge whether a network with fewer parameters errs no more than `SIMILAR` more than another."""
    if not judge.runs(smaller) or not judge.runs(larger):
        return "not enough", f"Needs both: {smaller}; {larger}."
    (ours, first), (theirs, second) = _error(judge.runs(smaller)), _error(judge.runs(larger))
    noise = float(np.sqrt(first + second))
    size, limit = (mean_of(judge.runs(label), "parameters") for label in (smaller, larger))
    numbers = (
        f"Error: {smaller} {100 * ours:.2f} % with {size / 1e6:.2f} M, {larger} {100 * theirs:.2f} % with "
        f"{limit / 1e6:.2f} M (± {100 * noise:.2f}; {100 * SIMILAR:g} points more would do)."
    )
    return "does not hold" if size >= limit else sign_of(SIMILAR - (ours - theirs), noise), numbers
