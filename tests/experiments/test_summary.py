"""The table of what all papers claim: what is decided, and what it would take."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from records import of_row, over_seeds
from scipy import stats

from routing_gym.experiments import reproduce
from routing_gym.experiments.engine.statistics import Difference, paired_difference
from routing_gym.experiments.papers.codinet import CODINET
from routing_gym.experiments.papers.codinet.rows import CONSISTENT, VANILLA, WITH_BOTH
from routing_gym.experiments.papers.reproduction import Judged
from routing_gym.experiments.papers.summary import MOST_SEEDS, seeds_to_tell, summary


def record(label, accuracy, **more):
    return of_row(label, accuracy, paths=10.0, compared_paths={"kept_rotated": 0.5, "kl": 0.1}, **more)


@settings(max_examples=30, deadline=None)
@given(mean=st.floats(-2, 2), spread=st.floats(0.01, 3))
def test_so_many_seeds_tell_and_one_less_does_not(mean, spread):
    assume(abs(mean) > 1e-3)
    part = Judged("", Difference(mean, -1, 1, 0.5, 3), spread)
    wanted = seeds_to_tell(part)

    def told(seeds):
        drawn = stats.norm.ppf((np.arange(seeds) + 0.5) / seeds)
        values = mean + spread * (drawn - drawn.mean()) / drawn.std(ddof=1)  # just this mean and this spread
        return paired_difference(dict(enumerate(values)), dict.fromkeys(range(seeds), 0.0)).verdict != "not enough"

    if wanted <= MOST_SEEDS:
        assert told(wanted) and (wanted == 3 or not told(wanted - 1))
    else:
        assert not told(MOST_SEEDS)


@pytest.mark.parametrize(
    ("runs", "verdict", "missing"),
    [
        (over_seeds([record(VANILLA, 0.90), record(WITH_BOTH, 0.93)]), "**holds**", "decided"),
        (over_seeds([record(VANILLA, 0.93), record(WITH_BOTH, 0.90)]), "**does not hold**", "decided"),
        (over_seeds([record(VANILLA, 0.90), record(CONSISTENT, 0.93)]), "**not enough**", "its first seed"),
        (
            [
                record(label, accuracy, seed=seed, seconds=360.0)
                for label, accuracies in ((VANILLA, (0.90, 0.91)), (WITH_BOTH, (0.91, 0.93)))
                for seed, accuracy in enumerate(accuracies)
            ],
            "**not enough**",
            "4 seeds in all, 0.4 core-hours more, at the difference seen",
        ),
        (over_seeds([record(VANILLA, 0.90), record(WITH_BOTH, 0.90)], 2, 0), "**not enough**", "more than 100 seeds"),
    ],
)
def test_a_line_says_what_is_decided_or_what_it_would_take(runs, verdict, missing):
    paper = reproduce.REPRODUCTIONS[CODINET.name]
    protocol, margins = (one for one in paper.settings if one.name.startswith("two-cores"))
    runs = [{**run, "seconds": run.get("seconds", 3600.0), "folder": f"{run['label']} {run['seed']}"} for run in runs]
    text = summary([(paper, protocol, runs)])
    row, *_ = [line.split(" | ") for line in text.splitlines() if line.startswith("| [codinet](codinet.md)")]
    assert row[1] == protocol.decides and row[4] == verdict and row[6].startswith(missing)
    assert "No run of their own yet: [codinet](codinet.md) `two-cores-margins` (Table 8" in summary(
        [(paper, protocol, runs), (paper, margins, [])]
    )
    assert row[5] == f"{sum(run['seconds'] for run in runs) / 3600:.1f}"


def test_what_is_decided_besides_is_a_line_too_and_all_are_counted():
    paper = reproduce.REPRODUCTIONS[CODINET.name]
    (protocol,) = (one for one in paper.settings if one.name == "two-cores")
    runs = over_seeds([record(VANILLA, 0.90), record(CONSISTENT, 0.80), record(WITH_BOTH, 0.90)])
    text = summary([(paper, protocol, [{**run, "folder": f"{run['label']} {run['seed']}"} for run in runs])])
    (other,) = [line.split(" | ") for line in text.splitlines() if "more images are classified wrong" in line]
    assert other[2] == "" and other[4] == "**holds**" and other[5:] == ["", "decided |"]
    main, *_ = [line for line in text.splitlines() if line.startswith("| [codinet]")]
    assert protocol.decides in main and "**not enough**" in main
    assert "Of 6 claims that have runs 6 have them of all their rows: 1 hold, 0 do not, of 5 an interval" in text
    assert "at 5 % for all 6 together (Bonferroni) 1 would be decided" in text
    few = [run for run in runs if run["label"] != WITH_BOTH or run["seed"] < 2]
    text = summary([(paper, protocol, [{**run, "folder": f"{run['label']} {run['seed']}"} for run in few])])
    assert "Of 6 claims that have runs 3 have them of all their rows: 1 hold" in text

    both = summary([(paper, one, [{**run, "folder": f"{one.name} {run['label']} {run['seed']}"} for run in runs])
                    for one in (protocol, dataclasses.replace(protocol, name="other"))])  # fmt: skip
    assert "Of 6 claims that have runs 6 have" in both and both.count("more images are classified wrong") == 1


def test_nothing_is_decided_before_all_seeds_of_a_protocol_are_there():
    paper = reproduce.REPRODUCTIONS[CODINET.name]
    (protocol,) = (one for one in paper.settings if one.name == "two-cores")
    runs = [{**run, "folder": f"{run['label']} {run['seed']}", "seconds": 3600.0}
            for run in over_seeds([record(VANILLA, 0.90), record(WITH_BOTH, 0.93)])]  # fmt: skip
    for seeds, decided, missing in ((3, "**holds**", "decided"), (5, "**not enough**", "5 seeds in all, 4.0 core-h")):
        text = summary([(paper, dataclasses.replace(protocol, seeds=seeds), runs)])
        row, *_ = [line.split(" | ") for line in text.splitlines() if line.startswith("| [codinet](codinet.md)")]
        assert row[4] == decided and row[6].startswith(missing) and "(3 seeds" in row[3]
        assert ("claims that have runs 0 have them of all their rows" in text) == (seeds == 5)
