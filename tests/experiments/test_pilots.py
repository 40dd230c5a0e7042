"""What the first runs of a protocol tell of it: flat curves, errors to expect, runs that two protocols share."""

import dataclasses
from types import SimpleNamespace

import pytest

from routing_gym.experiments import reproduce
from routing_gym.experiments.engine.settings import TrainingSettings
from routing_gym.experiments.papers.judging import Judge, judged
from routing_gym.experiments.papers.pilots import late_gain, outlook
from routing_gym.experiments.papers.reproduction import Plan
from routing_gym.experiments.papers.rows import Change, Protocol, Row

DECIDES = "good errs less than bad"
PROTOCOL = Protocol(
    "s", "s", 20, rows=("good", "bad"), keeps="all", shrinks="nothing", decides=DECIDES, effect="a point"
)


def run(label, seed, accuracies, images=1000):
    right = round(accuracies[-1] * images)
    return {"label": label, "seed": seed, "test_accuracy": accuracies[-1], "seconds": 90.0,
            "exits": [[[[images - right, right]]]],
            "curve": {"epoch": list(range(len(accuracies))), "validation_accuracy": accuracies, "judged_on": "test"},
            }  # fmt: skip


def shown(records, searched=()):
    return outlook(PROTOCOL, records, judged({DECIDES: [Judge(records).less("good", "bad")]}), searched)


def test_gain_in_the_last_fifth():
    rising = run("a", 0, [0.1 * epoch for epoch in range(1, 11)])  # 0.8 to 1.0
    assert late_gain([rising]) == pytest.approx(20)
    flat = run("a", 1, [0.5] * 10)
    assert late_gain([rising, flat]) == pytest.approx(10) and late_gain([run("a", 0, [0.3])]) == 0


def test_one_seed_is_known_by_counting_its_images():
    lines = shown([run("good", 0, [0.7, 0.9]), run("bad", 0, [0.7, 0.8])])
    assert lines[2] == "| good | 1 | 1.5 | +20.00 |"
    # Of 1000 images: 100 √((0.1 · 0.9 + 0.2 · 0.8) / 1000) = 1.581 points; by √3 0.913, times 4.303 3.93; by √5 0.707.
    (line,) = [line for line in lines if line.startswith("| error")]
    assert line.startswith("| error, bad less good: +10 points (1 seed, of 3 at least) |")
    assert line.endswith("| 0.91 points (± 3.9) | 0.71 points (± 2) | test images |")
    assert "lower bound" in lines[-1]


def test_more_seeds_are_known_by_their_spread():
    lines = shown([run(label, seed, [accuracy]) for label, by_seed in (("good", (0.9, 0.91)), ("bad", (0.8, 0.79)))
                   for seed, accuracy in enumerate(by_seed)])  # fmt: skip
    # Differences 10 and 12 points: √2 between seeds, by √3 0.816.
    assert "| 0.82 points (± 3.5) | 0.63 points (± 1.8) | 2 seeds |" in lines[-1]


def test_nothing_is_said_of_rows_that_are_missing():
    assert shown([run("good", 0, [0.9])])[-1] == "Of what it decides no seed has all rows yet."
    assert shown([]) == []


def test_rows_without_a_run_take_as_long_as_their_search_says():
    def tried(label, seconds):
        record = seconds and {"seconds": seconds, "epochs": 4}
        return Row(label, (), "", ""), Change(), SimpleNamespace(finished=lambda: record)

    lines = shown([run("good", 0, [0.9])], [tried("good", 40), tried("bad", 40), tried("bad", 80), tried("bad", None)])
    assert lines[2:4] == ["| good | 1 | 1.5 | +0.00 |", "| bad | 0 | 5.0 |  |"]  # 15 s an epoch, 20 epochs


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
