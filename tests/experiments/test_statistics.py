"""Statistics over seeds and problems, against values worked by hand and against slow loops."""

import pytest

from routing_gym.experiments.statistics import mean_interval


def test_the_interval_of_a_mean_is_students_t():
    # Mean 4, squares of distances 4 + 0 + 4 = 8, variance 4, standard error 2 / sqrt(3); t(0.975, 2) = 4.302653.
    assert mean_interval([2, 4, 6]) == pytest.approx((4 - 4.302653 * 1.154701, 4 + 4.302653 * 1.154701), abs=1e-5)
    assert mean_interval([]) is None and mean_interval([0.5]) is None
    assert mean_interval([0.9, 0.9]) == (0.9, 0.9) and mean_interval([0.1] * 3) == (0.1, 0.1)
