"""Statistics over seeds and problems, against values worked by hand and against slow loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import made_up_run
from scipy import stats

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import comparison_table, differences_table
from routing_gym.experiments.engine.statistics import (
    Best,
    Difference,
    best_and_alike,
    half_interval,
    iqm,
    iqm_interval,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)

WHOLE = (-math.inf, math.inf)
VALUES = st.integers(-1000, 1000).map(lambda thousandths: thousandths / 1000)

TENTHS = st.integers(-20, 20).map(lambda tenths: tenths / 10)


@st.composite
def matrices(draw, problems=None):
    runs, columns = draw(st.integers(1, 6)), problems or draw(st.integers(1, 4))
    row = st.lists(TENTHS, min_size=columns, max_size=columns)
    return draw(st.lists(row, min_size=runs, max_size=runs))


def by_seed(*values):
    return dict(enumerate(values))


def test_the_interval_of_a_mean_is_students_t():
    # Mean 4, squares of distances 4 + 0 + 4 = 8, variance 4, standard error 2 / sqrt(3); t(0.975, 2) = 4.302653.
    assert half_interval([2, 4, 6]) == pytest.approx(4.302653 * 1.154701, abs=1e-5)
    assert half_interval([]) is None and half_interval([0.5]) is None
    assert half_interval([0.9, 0.9]) is half_interval([0.1] * 3) is half_interval([0.7] * 7) is None
    assert ACCURACY.text([0.5]) == "50.00" and ACCURACY.text([0.9, 0.9]) == "90.00"


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


def test_the_best_of_a_table_worked_by_hand():
    # Differences from x over seeds 0 to 2: "near" 1, 2, 3 (p = 0.074), "far" 99, 100, 101 (p = 0.000033).
    # Levels of 3 agents: 2 * 0.05 / (3 * 2), then 2 * 0.05 / 3.
    table = {"far": by_seed(-94, -91, -97, 10**6), "x": by_seed(5, 9, 4), "near": by_seed(4, 7, 1)}
    assert best_and_alike(table) == Best("x", ("near",), ("far",), 3)
    # Three agents at p = 0.04 each: alone it is enough, beside another it is not.
    t = stats.t.isf(0.02, 2)
    noise = np.array([-1, 0, 1]) / math.sqrt(3)  # standard error 1 / sqrt(9) = 1 / 3
    pair = {"a": by_seed(*noise + t / 3), "b": by_seed(0, 0, 0)}
    assert paired_difference(pair["a"], pair["b"]).p == pytest.approx(0.04)
    assert best_and_alike(pair) == Best("a", (), ("b",), 3)
    assert best_and_alike({**pair, "c": pair["b"]}) == Best("a", ("b", "c"), (), 3)


def test_the_best_of_few():
    assert best_and_alike({"only": {4: 0.5}}) == Best("only", (), (), 1)
    two_seeds = {"a": by_seed(0.9, 0.9001), "b": by_seed(0.1, 0.1)}
    assert best_and_alike(two_seeds) == Best("a", ("b",), (), 2)
    same = {"b": by_seed(0.5, 0.6, 0.7), "a": by_seed(0.5, 0.6, 0.7)}
    assert best_and_alike(same) == Best("b", ("a",), (), 3)


@given(st.integers(2, 6), st.integers(3, 6), st.integers(0, 2**32 - 1))
def test_the_best_is_told_apart_as_by_closed_testing(agents, seeds, draw):
    rng = np.random.default_rng(draw)
    drawn = rng.normal(size=(agents, seeds)) + 10 * rng.exponential(size=(agents, 1))
    seen = best_and_alike({str(i): by_seed(*values) for i, values in enumerate(drawn)})
    best = int(drawn.mean(1).argmax())
    others = [i for i in range(agents) if i != best]
    # Holm's procedure is the closure of Bonferroni's: worse is who is rejected in every group that it is in.
    p = {i: stats.ttest_rel(drawn[best], drawn[i], alternative="greater").pvalue for i in others}
    groups = [set(group) for size in range(1, agents) for group in itertools.combinations(others, size)]
    kept = [group for group in groups if min(p[i] for i in group) >= 0.05 / agents / len(group)]
    worse = {str(i) for i in others if not any(i in group for group in kept)}
    assert seen.agent == str(best) and set(seen.worse) == worse and seen.seeds == seeds
    assert sorted((seen.agent, *seen.alike, *seen.worse)) == sorted(map(str, range(agents)))


def test_the_best_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one agent, got none"):
        best_and_alike({})
    with pytest.raises(ValueError, match=r"got none \(a has 1, 2; b has 2, 3; c has 1, 3\)"):
        best_and_alike({"a": {1: 0, 2: 0}, "b": {2: 0, 3: 0}, "c": {1: 0, 3: 0}})
    with pytest.raises(ValueError, match="b, seed 3: expected a finite value, got inf"):
        best_and_alike({"a": {3: 0}, "b": {3: math.inf}})


def test_claims_are_wrong_as_often_as_they_may_be():
    # Equal agents with a shared seed effect. Bounds are passed once in a million tests if the level is held.
    rng, repetitions, agents = np.random.default_rng(0), 400, 10
    drawn = rng.normal(size=(repetitions, agents, 10)) + 3 * rng.normal(size=(repetitions, 1, 10))
    tables = [{str(i): by_seed(*values) for i, values in enumerate(table)} for table in drawn]
    claimed = sum(paired_difference(table["0"], table["1"]).verdict != "not enough" for table in tables)
    fewest, most = stats.binom.ppf([1e-6, 1 - 1e-6], repetitions, 0.05)
    assert fewest <= claimed <= most
    assert sum(bool(best_and_alike(table).worse) for table in tables) <= most


def test_aggregates_worked_by_hand():
    # 2 runs of 3 problems. Sorted 0, 1, 2, 4, 8, 16: one of six is left out at either end, floor(6 / 4); 15 / 4.
    scores = [[0, 4, 16], [8, 1, 2]]
    assert iqm(scores) == 15 / 4 and isinstance(iqm(scores), float)
    # Against one run (4, 4, 2): problem 1 wins 1 of 2; problem 2 ties once, 1/4; problem 3 wins one, ties one: 3/4.
    assert probability_of_improvement(scores, [[4, 4, 2]]) == pytest.approx((1 / 2 + 1 / 4 + 3 / 4) / 3)
    assert performance_profile(scores, [-1, 1, 16]) == pytest.approx([1, 4 / 6, 0])  # strictly above


@given(st.data())
def test_aggregates_are_those_of_slow_loops(data):
    x = data.draw(matrices())
    y = data.draw(matrices(len(x[0])))
    ordered = sorted(itertools.chain(*x))
    cut = len(ordered) // 4
    assert iqm(x) == pytest.approx(np.mean(ordered[cut : len(ordered) - cut]))
    won = []
    for problem in range(len(x[0])):
        points = 0.0
        for ours in x:
            for theirs in y:
                points += (ours[problem] > theirs[problem]) + 0.5 * (ours[problem] == theirs[problem])
        won.append(points / (len(x) * len(y)))
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(won))
    assert probability_of_improvement(y, x) == pytest.approx(1 - np.mean(won))
    for threshold, share in zip([-0.5, 0.3], performance_profile(x, [-0.5, 0.3]), strict=True):
        assert share == pytest.approx(np.mean([score > threshold for score in ordered]))


def test_the_probability_of_improvement_is_scipys_mann_whitney():
    x, y = np.random.default_rng(0).integers(0, 5, size=(2, 7, 3))
    u = stats.mannwhitneyu(x, y[:4]).statistic
    assert probability_of_improvement(x, y[:4]) == pytest.approx(np.mean(u / 28))


def test_the_bootstrap_is_that_of_all_resamples():
    scores = np.array([[0.0, 10.0], [1.0, 14.0], [5.0, 11.0]])
    draws = list(itertools.product(range(3), repeat=3))  # of each problem by itself: 27 * 27 equally likely resamples
    drawn = [sorted([*scores[list(a), 0], *scores[list(b), 1]]) for a in draws for b in draws]
    means = np.mean(np.array(drawn)[:, 1:-1], axis=1)
    low, high = iqm_interval(scores)
    # 2.5 % of resamples are below the lower end: the binomial allows 2000 draws of them 4 standard errors, 1.4 %.
    assert np.mean(means < low - 1e-9) <= 0.039 and np.mean(means <= low + 1e-9) >= 0.011
    assert np.mean(means > high + 1e-9) <= 0.039 and np.mean(means >= high - 1e-9) >= 0.011
    assert (low, high) == iqm_interval(scores)


def test_the_bootstrap_keeps_problems_apart():
    # Equal runs within a problem: were problems mixed or drawn, this would not be a point.
    assert iqm_interval(np.tile([0.0, 1.0, 5.0], (4, 1))) == (1.5, 1.5)  # 0, 1, 1, 1, 1, 5


def test_scores_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"scores\[1, 0\]: expected a finite number, got nan"):
        iqm([[0.0], [math.nan]])
    with pytest.raises(ValueError, match=r"expected shape \(runs, problems\), at least 1 of each, got \(2,\)"):
        iqm([0.0, 1.0])


def test_the_best_is_compared_with_each_other_on_common_seeds():
    levels = {"a": 0.9, "b": 0.8, "c": 0.7}
    records = [made_up_run(agent, seed, level=level) for agent, level in levels.items() for seed in range(4)]
    for record in records:
        record["test_accuracy"] += 0.001 * (record["seed"] * (record["agent"] == "b"))
    table = differences_table(records)
    columns = [list(column.cells) for column in table.columns]
    assert [column.header for column in table.columns] == ["a less", "points", "95 % interval", "p", "common seeds"]
    assert columns[0] == ["c", "b"] and columns[1] == ["+20.00", "+9.85"]  # those not told apart come first
    ahead = [10 - 0.1 * seed for seed in range(4)]
    low, high = (np.mean(ahead) + sign * half_interval(ahead) for sign in (-1, 1))
    assert columns[2] == ["[-inf, +inf]", f"[{low:+.2f}, {high:+.2f}]"]  # one difference on four seeds bounds nothing
    assert columns[4] == ["4", "4"] and "seeds" not in [
        column.header for column in comparison_table(records, "").columns
    ]
    more = [made_up_run("b", seed, level=0.95) for seed in range(4, 9)]  # so that b's mean is above that of the best
    shown = comparison_table([*records, *more], "")
    assert shown.columns[-1].header == "seeds" and [*shown.columns[-1].cells] == ["4", "9", "4"]
    assert [" *" in cell for cell in shown.columns[1].cells] == [True, False, True]
    assert differences_table(records[:4]) is None and differences_table([r for r in records if r["seed"] < 2]) is None
