"""What the first runs of a protocol tell of it: flat curves, errors to expect, runs that two protocols share."""

import dataclasses

import pytest

from routing_gym.experiments import reproduce
from routing_gym.experiments.engine.settings import TrainingSettings
from routing_gym.experiments.papers.judging import Judge
from routing_gym.experiments.papers.pilots import flatness, late_gain, outlook
from routing_gym.experiments.papers.reproduction import Plan


def run(label, seed, accuracies, images=1000):
    right = round(accuracies[-1] * images)
    return {"label": label, "seed": seed, "test_accuracy": accuracies[-1], "seconds": 90.0,
            "exits": [[[[images - right, right]]]],
            "curve": {"epoch": list(range(len(accuracies))), "validation_accuracy": accuracies, "judged_on": "test"},
            }  # fmt: skip


def part_of(*records):
    return Judge(records).less("good", "bad")


def test_gain_in_the_last_fifth():
    rising = run("a", 0, [0.1 * epoch for epoch in range(1, 11)])  # 0.8 to 1.0
    assert late_gain([rising]) == pytest.approx(20)
    flat = run("a", 1, [0.5] * 10)
    assert late_gain([rising, flat]) == pytest.approx(10) and late_gain([run("a", 0, [0.3])]) == 0


def test_the_flattest_and_the_steepest_row_are_named():
    told = flatness([run("good", 0, [0.7, 0.9]), run("bad", 0, [0.7, 0.8]), run("bad", 1, [0.7, 0.6])])
    assert told == (
        "Points of accuracy gained in the last fifth of the epochs, test split: from +0.00 (bad) to +20.00 (good)."
    )


def test_one_seed_is_known_by_counting_its_images():
    told = outlook(part_of(run("good", 0, [0.7, 0.9]), run("bad", 0, [0.7, 0.8])))
    # Of 1000 images: 100 √((0.1 · 0.9 + 0.2 · 0.8) / 1000) = 1.581 points; by √3 0.913, times 4.303 3.93; by √5 0.707.
    assert (
        "±3.9 points (standard error 0.91) with 3 seeds and ±2 points (standard error 0.71) with 5 seeds, if seeds "
        "differ as the choice of test images alone would make them, a guess."
    ) in told


def test_more_seeds_are_known_by_their_spread():
    of_rows = {"good": (0.9, 0.91), "bad": (0.8, 0.79)}
    told = outlook(part_of(*(run(label, seed, [one]) for label, of in of_rows.items() for seed, one in enumerate(of))))
    # Differences 10 and 12 points: √2 between seeds, by √3 0.816.
    assert (
        "±3.5 points (standard error 0.82) with 3 seeds and ±1.8 points (standard error 0.63) with 5 seeds, if seeds "
        "differ as these do."
    ) in told


def test_nothing_is_said_of_rows_that_are_missing():
    assert outlook(part_of(run("good", 0, [0.9]))) == ""


def test_settings_that_train_alike_share_runs(tmp_path):
    paper, base = reproduce.REPRODUCTIONS["codinet"], TrainingSettings(device="cpu")
    settings = {setting.name: setting for setting in paper.settings}
    margins, main = settings["two-cores-margins"], settings["two-cores"]

    def runs(setting):
        return {run.facts["label"]: run for run in Plan(paper, setting, base, tmp_path).runs(1)}

    both = runs(margins).keys() & runs(main).keys()
    assert both == {"with both (CoDiNet)"}
    for label in both:
        own, of_main = runs(margins)[label], runs(main)[label]
        assert own.folder == of_main.folder and own.asked == of_main.asked
        assert dataclasses.replace(own, facts={}, title="") == dataclasses.replace(of_main, facts={}, title="")
    assert len(reproduce._once([*runs(margins).values(), *runs(main).values()])) == 4 + 7 - 1
