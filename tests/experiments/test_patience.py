"""Patience: a run stops when validation accuracy no longer rises, and is judged by its best epoch."""

import dataclasses
import json

import pytest
from commands import PER_EPOCH, run
from made_up_runs import made_up_run
from pictures import height_and_colours
from records import strict, untimed

from routing_gym.agents import Agent, read
from routing_gym.experiments.engine import training
from routing_gym.experiments.engine.figures import learning_curves
from routing_gym.experiments.sweep import ranking

SMALL = ["--env", "routing_gym/SyntheticMTL-v0", "--batch-size", "256", "--agent", "wpl"]
ACCURACIES = (0.5, 0.6, 0.6, 0.4, 0.7, 0.1)
"""Of the validation split, after every epoch: as the tests have it."""


class Killed(BaseException):
    """What kill -9 does, as far as a process can do it to itself."""


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    judge = training.judge

    def as_scripted(agent, split, seconds, epochs, *trained):
        judged = judge(agent, split, seconds, epochs, *trained)
        if split != "validation":
            return judged
        evaluation = dataclasses.replace(judged.evaluation, accuracy=ACCURACIES[epochs - 1])
        return dataclasses.replace(judged, evaluation=evaluation)

    monkeypatch.setattr(training, "judge", as_scripted)


def epoch_of(checkpoint):
    return read(checkpoint)["extra"]["curve"]["epoch"][-1]


def judged(checkpoint, capsys):
    capsys.readouterr()
    assert run("evaluate", checkpoint, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("patience", "epochs", "best"), [(1, 3, 2), (2, 4, 2), (3, 6, 5), (None, 6, 5)])
def test_a_run_stops_when_nothing_is_gained_and_its_best_epoch_counts(patience, epochs, best, tmp_path, capsys):
    given = [] if patience is None else ["--patience", patience]
    assert run("train", *SMALL, "--epochs", 6, *given, "--out", tmp_path) == 0
    (record,) = strict(tmp_path / "results.json")
    assert (record["epochs"], record["best_epoch"]) == (epochs, best)  # the first of equals
    assert record["curve"]["validation_accuracy"] == list(ACCURACIES[:epochs])
    assert record["samples_per_second"] * record["seconds"] == pytest.approx(epochs * PER_EPOCH * 256)
    assert (epoch_of(tmp_path / "checkpoint.pt"), epoch_of(tmp_path / "best.pt")) == (epochs, best)
    of_best, of_last = (judged(tmp_path / name, capsys) for name in ("best.pt", "checkpoint.pt"))
    counts, other = (of_last, of_best) if patience is None else (of_best, of_last)
    assert (record["test_accuracy"], record["test_loss"]) == (counts["accuracy"], counts["loss"])
    assert record["routes"] == counts["routes"] and record["test_loss"] != other["loss"]


def test_a_run_is_not_gone_on_with_that_would_have_stopped_before(tmp_path, capsys):
    arguments = ["train", *SMALL, "--out", tmp_path, "--epochs"]
    assert run(*arguments, 4) == 0
    assert run(*arguments, 6, "--patience", 1, "--resume") == 2
    assert "was trained for 4 epochs, --patience 1 stops after 3" in capsys.readouterr().err
    assert run(*arguments, 6, "--patience", 2, "--resume") == 0
    assert strict(tmp_path / "results.json")[0]["epochs"] == 4


@pytest.mark.long
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_killed_run_stops_where_a_whole_one_does(epoch, tmp_path, monkeypatch):
    arguments = ["train", *SMALL, "--epochs", 6, "--patience", 1, "--out"]
    assert run(*arguments, tmp_path / "whole") == 0
    (whole,) = strict(tmp_path / "whole" / "results.json")
    assert whole["epochs"] == 3
    places = {
        "before the policies and the routes": (training.EpochLog, "write"),
        "before the checkpoint": (Agent, "save"),
        "before the best": (training, "_keep_best"),
        "after the epoch": (training, "give_back_freed_memory"),
        "before the best is loaded": (Agent, "load"),
    }
    for number, (holder, name) in enumerate(places.values()):
        calls, out, real = [], tmp_path / str(number), getattr(holder, name)

        def killed(*arguments, calls=calls, real=real, name=name, **options):
            calls.append(name)
            if len(calls) == (min(epoch, 2) if name == "_keep_best" else epoch):
                raise Killed
            return real(*arguments, **options)

        monkeypatch.setattr(holder, name, killed)
        try:
            run(*arguments, out)
        except Killed:
            assert not (out / "results.json").exists()
        monkeypatch.setattr(holder, name, real)
        assert run(*arguments, out, "--resume") == 0
        (record,) = strict(out / "results.json")
        assert untimed(record) == untimed(whole) and epoch_of(out / "best.pt") == 2


def test_patience_without_a_validation_split_is_refused(tmp_path, capsys):
    arguments = ["--env", "routing_gym/Cifar100MTL-v0", "--patience", 2, "--out", tmp_path / "out"]
    for command in (["train"], ["compare", "--agents", "shared", "--seeds", 1]):
        assert run(*command, *arguments) == 2
        said = capsys.readouterr().err
        assert "--patience goes by the validation accuracy" in said and "has only train, test" in said
        assert said.count("\n") == 1 and not (tmp_path / "out" / "results.json").exists()
    assert run("train", *SMALL, "--patience", 0, "--out", tmp_path / "out") == 2
    assert "--patience must be at least 1, got 0" in capsys.readouterr().err


def test_runs_of_several_lengths_are_shown_together(tmp_path):
    records = [made_up_run("wpl", seed, epochs=3 + seed, setting="gamma=1") for seed in range(3)]
    learning_curves(records, tmp_path / "curves.png", "title")
    assert height_and_colours(tmp_path / "curves.png")[1] > 20
    table = ranking(records, "title")
    assert list(table.columns[4].cells) == ["5"]  # where the mean of those that came so far is highest
