"""Statistics over seeds and over problems: intervals, verdicts and aggregates, on plain numbers.

Of one pair of agents on one problem, Student's t over seeds that both were trained with. Of aggregates over several
problems, the definitions of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(rliable), whose intervals are bootstrapped. docs/statistics.md says why these, and how often they err.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its parts are imported when they are used
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
MISTAKES = 0.05
"""How often a difference may be claimed that is not there: 1 - `CONFIDENCE`."""
FEWEST_SEEDS = 3
"""Common seeds below which no difference is claimed."""
ROUNDING = 1e-9
"""Spread of differences, as a share of the values, that is taken for rounding."""

BySeed = Mapping[int, float]
"""A value, such as the test accuracy of a run, by seed. Larger is better: negate errors and costs."""
Verdict = Literal["better", "worse", "not enough"]


def half_width(error: float, count: int) -> float:
    """Half of the 95 % confidence interval (Student's t) of the mean of so many values, from its standard error."""
    return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error


def half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % confidence interval (Student's t) of the mean of independent values, such as one per seed.

    None for fewer than two values, and for equal ones, which do not say what other seeds would give.
    """
    if len(values) < 2 or not np.ptp(values):
        return None
    return half_width(float(scipy.stats.sem(values)), len(values))


@dataclass(frozen=True)
class Difference:
    """Paired difference of two agents over the seeds that both were trained with.

    Attributes:
        mean: Mean of the differences, in the units of the values.
        low: Lower end of the 95 % confidence interval of the mean; -inf where the differences bound it nowhere.
        high: Upper end; inf likewise.
        p: Two-sided p-value of "the mean is 0".
        seeds: Number of common seeds.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int

    @property
    def verdict(self) -> Verdict:
        """The only rule by which one agent is called better or worse than another: an interval without 0, 3 seeds."""
        if self.seeds < FEWEST_SEEDS or self.low <= 0 <= self.high:
            return "not enough"
        return "better" if self.mean > 0 else "worse"


def paired_difference(a: BySeed, b: BySeed) -> Difference:
    """Paired difference `a - b` over common seeds, with Student's t-interval and t-test.

    It holds for one pair that was named before the runs were looked at; for the best of a table see `best_and_alike`.
    Differences that are all equal have no spread to divide by. What is left are their signs: all n are equal with
    probability 2^(1-n) at most if both are equally likely, and bound the median with 95 % confidence from n = 6 on
    (sign test). Below that the interval is the whole line. Differences that are all 0 have p = 1.

    Raises:
        ValueError: No seed is common, or a value is not finite.
    """
    common = _common_seeds({"the first": a, "the second": b})
    pairs = np.array([(a[seed], b[seed]) for seed in common], dtype=np.float64)
    differences = pairs[:, 0] - pairs[:, 1]
    mean, n = float(differences.mean()), len(common)
    rounding = ROUNDING * np.abs(pairs).max()
    if np.ptp(differences) <= rounding:
        mean = 0.0 if abs(mean) <= rounding else mean
        same_sign = 2.0 ** (1 - n)
        low, high = (mean, mean) if same_sign <= MISTAKES else (-np.inf, np.inf)
        return Difference(mean, low, high, same_sign if mean else 1.0, n)
    error = float(scipy.stats.sem(differences))
    half = half_width(error, n)
    return Difference(mean, mean - half, mean + half, float(2 * scipy.stats.t.sf(abs(mean) / error, n - 1)), n)


@dataclass(frozen=True)
class Best:
    """Best of a table of agents, and who cannot be told apart from it.

    Attributes:
        agent: Agent with the largest mean over the common seeds; of equals, the first.
        alike: Other agents that cannot be told apart from it, in the order of the table.
        worse: Agents that are worse, in the order of the table.
        seeds: Number of seeds common to all.
    """

    agent: str
    alike: tuple[str, ...]
    worse: tuple[str, ...]
    seeds: int


def best_and_alike(values: Mapping[str, BySeed]) -> Best:
    """Best agent of a table by its mean over common seeds, and who is worse, wrongly in at most 5 % of tables.

    A table is wrong if it calls any agent worse than its best that is truly as good or better. Holm's procedure (1979,
    "A Simple Sequentially Rejective Multiple Test Procedure") over the pairs with the best, at 5 % divided by the
    number of agents, since any of them may be picked as the best (Bonferroni): of k agents the j-th surest, j = 0, 1,
    ..., is worse if its two-sided p-value is below 2 * 0.05 / (k * (k - 1 - j)) and all before it are.

    Raises:
        ValueError: There are no agents, no seed is common to all, or a value is not finite.
    """
    if not values:
        raise ValueError("expected values of at least one agent, got none")
    common = _common_seeds(values)
    paired = {agent: {seed: by_seed[seed] for seed in common} for agent, by_seed in values.items()}
    best = max(paired, key=lambda agent: float(np.mean(list(paired[agent].values()))))
    p_values = {agent: paired_difference(paired[best], of).p for agent, of in paired.items() if agent != best}
    worse: set[str] = set()
    if len(common) >= FEWEST_SEEDS:
        for agent in sorted(p_values, key=p_values.__getitem__):
            if p_values[agent] >= 2 * MISTAKES / (len(values) * (len(p_values) - len(worse))):
                break
            worse.add(agent)
    alike = tuple(agent for agent in p_values if agent not in worse)
    return Best(best, alike, tuple(agent for agent in p_values if agent in worse), len(common))


def _common_seeds(values: Mapping[str, BySeed]) -> list[int]:
    """Seeds that all agents have a value for, in order; refuses none, and values that are not finite."""
    for agent, by_seed in values.items():
        for seed, value in by_seed.items():
            if not np.isfinite(value):
                raise ValueError(f"{agent}, seed {seed}: expected a finite value, got {value}")
    common = set.intersection(*(set(by_seed) for by_seed in values.values()))
    if not common:
        seeds = {agent: ", ".join(map(str, sorted(by_seed))) or "none" for agent, by_seed in values.items()}
        got = "; ".join(f"{agent} has {of}" for agent, of in seeds.items())
        raise ValueError(f"expected seeds in common, got none ({got}): train all with the same seeds")
    return sorted(common)


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean of scores `(runs, problems)`: the 25 % trimmed mean over all runs and problems together.

    Agarwal et al. 2021, section 4.3. Of n scores, floor(n / 4) are left out at either end, as in rliable.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"scores: expected shape (runs, problems), at least 1 of each, got {array.shape}")
    for run, problem in np.argwhere(~np.isfinite(array)):
        raise ValueError(f"scores[{run}, {problem}]: expected a finite number, got {array[run, problem]}")
    return float(scipy.stats.trim_mean(array, 0.25, axis=None))


def iqm_interval(scores: np.ndarray) -> tuple[float, float]:
    """Confidence interval (95 %) of the interquartile mean, by the stratified percentile bootstrap.

    Every one of 2000 repetitions draws, for each problem by itself, as many runs with replacement as there are, 2 at
    least; problems are not drawn, they are those that the claim is about (Agarwal et al. 2021, section 4.1). It shows
    an uncertainty and decides nothing; of one problem see `half_interval` and `paired_difference`.
    """

    def of_drawn(*columns: np.ndarray, axis: int) -> np.ndarray:
        return scipy.stats.trim_mean(np.concatenate(columns, axis), 0.25, axis)

    found = scipy.stats.bootstrap(
        scores.T, of_drawn, n_resamples=2000, vectorized=True,
        method="percentile", random_state=np.random.default_rng(0), confidence_level=CONFIDENCE,
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """Probability that a run of one agent is better than one of another, on a problem taken at random.

    The mean over problems of the Mann-Whitney statistic U / (n * m), the share of pairs of runs, of scores
    `(n, problems)` and `(m, problems)`, in which `x` is larger, ties counted half (Agarwal et al. 2021, section 4.3).
    """
    return float(np.mean((np.sign(np.asarray(x)[:, None] - np.asarray(y)[None]) + 1) / 2))


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Performance profile `(thresholds,)`: the share of runs whose score is above each, mean over problems.

    The score distribution of Agarwal et al. 2021, section 4.2, of scores `(runs, problems)`: strictly above.
    """
    return np.mean(np.asarray(scores) > np.asarray(thresholds)[:, None, None], axis=(1, 2))
