"""Statistics over seeds and problems, against values worked by hand and against slow loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from routing_gym.experiments.statistics import Difference, mean_interval, paired_difference

WHOLE = (-math.inf, math.inf)
VALUES = st.integers(-1000, 1000).map(lambda thousandths: thousandths / 1000)


def by_seed(*values):
    return dict(enumerate(values))


def test_the_interval_of_a_mean_is_students_t():
    # Mean 4, squares of distances 4 + 0 + 4 = 8, variance 4, standard error 2 / sqrt(3); t(0.975, 2) = 4.302653.
    assert mean_interval([2, 4, 6]) == pytest.approx((4 - 4.302653 * 1.154701, 4 + 4.302653 * 1.154701), abs=1e-5)
    assert mean_interval([]) is None and mean_interval([0.5]) is None
    assert mean_interval([0.9, 0.9]) == (0.9, 0.9) and mean_interval([0.1] * 3) == (0.1, 0.1)


def test_a_difference_worked_by_hand():
    # Differences 1, 2, 3: mean 2, variance 1, standard error 1 / sqrt(3), t = 2 sqrt(3) with 2 degrees of freedom,
    # whose distribution is known: P(|T| > t) = 1 - t / sqrt(2 + t^2) = 1 - sqrt(12 / 14).
    seen = paired_difference({7: 5, 8: 9, 9: 4, 10: 0}, {9: 1, 8: 7, 7: 4, 11: 100})
    assert (seen.mean, seen.seeds, seen.verdict) == (2, 3, "not enough")
    assert (seen.low, seen.high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6)
    assert seen.p == pytest.approx(1 - math.sqrt(12 / 14))


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=8))
def test_a_difference_is_that_of_scipy_and_its_verdict_follows_from_the_interval(pairs):
    a, b = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    seen, back = paired_difference(a, b), paired_difference(b, a)
    differences = np.subtract(*np.transpose(pairs))
    if np.ptp(differences) > 1e-6:
        test = stats.ttest_rel(*np.transpose(pairs))
        assert (seen.low, seen.high, seen.p) == pytest.approx((*test.confidence_interval(0.95), test.pvalue))
    sure = len(pairs) >= 3 and not seen.low <= 0 <= seen.high
    assert seen.verdict == (("better" if differences.mean() > 0 else "worse") if sure else "not enough")
    assert (seen.p < 0.05 and len(pairs) >= 3) == sure
    assert (back.low, back.high, back.p) == pytest.approx((-seen.high, -seen.low, seen.p))
    assert (seen.verdict, back.verdict) in {("better", "worse"), ("worse", "better"), ("not enough", "not enough")}


def test_fewer_than_three_seeds_are_not_enough():
    two = paired_difference(by_seed(0.9, 0.9001), by_seed(0.1, 0.1))
    assert two.low > 0 and two.p < 0.05 and two.verdict == "not enough"
    assert paired_difference({3: 0.9}, {3: 0.1}) == Difference(pytest.approx(0.8), *WHOLE, 1.0, 1)


@pytest.mark.parametrize(("n", "sign_test"), [(3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_equal_differences_are_judged_by_their_signs(n, sign_test):
    base = [0.7, 0.6, 0.8, 0.5, 0.3, 0.1][:n]
    seen = paired_difference(by_seed(*(value + 0.1 for value in base)), by_seed(*base))  # equal but for rounding
    assert (seen.mean, seen.p, seen.verdict) == (pytest.approx(0.1), sign_test, "better" if n == 6 else "not enough")
    assert (seen.low, seen.high) == ((seen.mean, seen.mean) if n == 6 else WHOLE)
    same = paired_difference(by_seed(*base), by_seed(*base))
    assert same == Difference(0.0, *((0.0, 0.0) if n == 6 else WHOLE), 1.0, n) and same.verdict == "not enough"


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match=r"seeds in common, got none \(the first has 1, 2; the second has 3\): train"):
        paired_difference({2: 0.5, 1: 0.5}, {3: 0.5})
    with pytest.raises(ValueError, match="the second has none"):
        paired_difference({2: 0.5}, {})
    with pytest.raises(ValueError, match="the second, seed 1: expected a finite value, got nan"):
        paired_difference({1: 0.5}, {1: math.nan})
