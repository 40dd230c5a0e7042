"""Verdicts on what papers say: the paired t-interval of a number per seed, and of several parts together."""

import pytest

from routing_gym.experiments.papers.judging import Judge, judged


def run(label, seed, accuracy, **facts):
    return {"label": label, "seed": seed, "test_accuracy": accuracy, **facts}


def rows(**accuracies):
    return [run(label, seed, value) for label, values in accuracies.items() for seed, value in enumerate(values)]


def verdict(*parts):
    ((claim,),) = [judged({"claim": parts})]
    return claim.verdict


STEADY = rows(good=(0.90, 0.92, 0.91), bad=(0.80, 0.81, 0.82), alike=(0.92, 0.90, 0.91))


def test_a_difference_is_judged_by_its_interval_over_common_seeds():
    judge = Judge(STEADY)
    assert verdict(judge.less("good", "bad")) == "holds"
    assert verdict(judge.less("bad", "good")) == "does not hold"
    assert verdict(judge.less("good", "alike")) == "not enough"
    # Differences 10, 11, 9 points: 10 ± 4.303 · 1 / √3.
    assert "+10 points [+7.52, +12.5] (3 seeds)" in judge.less("good", "bad").numbers


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ((0.95, 0.90), "; +5 in the paper, which is outside)."),
        ((0.95, 0.85), "; +10 in the paper)."),
        ((0.95, None), "(3 seeds)."),
    ],
)
def test_the_papers_own_difference_stands_beside_it(printed, said):
    of = dict(zip(("good", "bad"), printed, strict=True))
    judge = Judge([{**one, "paper": of.get(one["label"])} for one in STEADY])  # 7.52 to 12.5 points
    assert judge.less("good", "bad").numbers.endswith(said)
    several = Judge([{**one, "paper": of.get(one["label"]), "paper_by_epoch": {5: 0.5, 100: 0.9}} for one in STEADY])
    assert several.less("good", "bad").numbers.endswith(said.replace("in the paper", "in the paper after 100 epochs"))


def test_two_seeds_decide_nothing_and_seeds_must_be_common():
    few = Judge(rows(good=(0.9, 0.92), bad=(0.1, 0.11)))
    assert verdict(few.less("good", "bad")) == "not enough"
    assert "2 seeds, of 3 at least" in few.less("good", "bad").numbers
    apart = Judge([run("good", seed, 0.9) for seed in range(3)] + [run("bad", seed, 0.1) for seed in range(3, 6)])
    assert apart.less("good", "bad").numbers == "Needs runs of one seed: bad; good."
    assert verdict(apart.less("good", "bad")) == "not enough" and verdict() == "not enough"


def test_all_parts_must_hold_and_many_do_not_make_refuting_easier():
    judge = Judge(STEADY)
    holds, unclear = judge.less("good", "bad"), judge.less("good", "alike")
    assert verdict(holds, unclear) == "not enough"
    against = Judge(rows(a=(0.80, 0.81, 0.82), b=(0.84, 0.86, 0.91))).less("a", "b")
    assert against.found.verdict == "not enough"  # -6 points, p = 0.06
    against = Judge(rows(a=(0.80, 0.81, 0.82), b=(0.85, 0.875, 0.91))).less("a", "b")
    assert 0.05 / 3 < against.found.p < 0.05
    assert verdict(against) == "does not hold" and verdict(against, holds, holds) == "not enough"


def test_a_number_of_several_rows_and_of_rows_of_one_name():
    records = [run(f"{series} {price}", seed, 0.5 + 0.1 * price + 0.01 * seed * price, series=series)
               for series in ("one", "other") for price in (1, 2) for seed in range(3)]  # fmt: skip
    judge = Judge(records, by="series")
    peak = judge.positive("spread", lambda runs: runs[1]["test_accuracy"] - runs[0]["test_accuracy"], "one", unit=" s")
    assert peak.found.mean == pytest.approx(0.11) and peak.found.seeds == 3 and "+0.11 s [" in peak.numbers
    assert judge.positive("nothing", lambda runs: None, "one").found is None


def test_a_seed_that_lacks_a_row_of_a_curve_does_not_count():
    records = [run(f"{series} {n}", seed, 0.5 + 0.1 * n * (seed + 1), series=series)
               for series in ("one", "other") for n in (1, 2) for seed in range(3)]  # fmt: skip
    whole = Judge(records, by="series").positive("peak", lambda *of: len(of[0]), "one", "other")
    short = Judge(records[:-1], by="series").positive("peak", lambda *of: len(of[0]), "one", "other")
    assert whole.found.seeds == 3 and short.found.seeds == 2
