"""Statistics over seeds and over problems: intervals, verdicts and aggregates, on plain numbers.

Two levels. Of one pair of agents on one problem, Student's t over seeds that both were trained with. Of aggregates over
several problems, the definitions of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (rliable), whose intervals are bootstrapped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Confidence interval (95 %, Student's t) of the mean of independent values, such as one per seed.

    None for fewer than two values. Equal values give a point: what was seen, not what other seeds would give.
    """
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return float(low), float(high)
