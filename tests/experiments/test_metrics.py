"""Metrics: one entry is enough for it to be everywhere, and one that is wrong is named before anything is trained."""

import csv
import json
import re
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from commands import forget_plugins, run
from records import strict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from routing_gym.agents import make_agent
from routing_gym.envs import core_of
from routing_gym.experiments.engine.metrics import (
    METRICS,
    Judged,
    Metric,
    alignment,
    alignments,
    effective_blocks,
    register_metric,
)
from routing_gym.experiments.engine.training import judge, settled

SMALL = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "2", "--batch-size", "256", "--seeds", "1"]
DEPTH = """
from routing_gym.experiments.engine.metrics import Metric, register_metric

def exit_depth(judged):
    left = judged.evaluation.exits.sum((1, 2, 3)).double()
    return float((left * range_of(left)).sum() / left.sum())

def range_of(left):
    return 1 + left.new_tensor(range(len(left)))

register_metric(Metric("exit_depth", "exit depth", exit_depth, digits=1, curve=True, better="less"))
"""


def table(capsys):
    """Heads of the table that is printed, and its first row."""
    heads, _, line = capsys.readouterr().out.partition("\n agent ")[2].splitlines()[:3]
    return heads.strip(), line.strip()


@pytest.fixture(autouse=True)
def metrics():
    kept = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(kept)


@pytest.mark.long
def test_a_registered_metric_is_everywhere(tmp_path, capsys):
    (tmp_path / "depth.py").write_text(DEPTH)
    arguments = [*SMALL, "--plugin", tmp_path / "depth.py"]
    out = tmp_path / "out"
    assert run("compare", *arguments, "--agents", "wpl", "--out", out) == 0
    (record,) = strict(out / "results.json")
    assert record["exit_depth"] == 3.0 and record["curve"]["exit_depth"] == [3.0, 3.0]
    heads, line = table(capsys)
    assert heads.endswith(" exit depth") and line.endswith(" 3.0")
    with open(out / "results.csv", newline="") as file:
        assert [row["exit_depth"] for row in csv.DictReader(file)] == ["3.0"]
    events = EventAccumulator(str(out / "wpl" / "seed-0")).Reload()
    assert [event.value for event in events.Scalars("validation/exit_depth_by_epoch")] == [3.0, 3.0]
    assert [event.value for event in events.Scalars("test/exit_depth")] == [3.0]
    page = (out / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert data["agents"][0]["values"]["exit_depth"] == ["3.0", 3.0, None]
    assert data["agents"][0]["curves"]["exit_depth"][0] == [3.0, 3.0]
    assert [metric["heading"] for metric in data["metrics"]][-1] == "exit depth"
    assert run("sweep", *arguments, "--grid", "gamma=0.9", "--out", tmp_path / "sweep") == 0
    assert [record["exit_depth"] for record in strict(tmp_path / "sweep" / "results.json")] == [3.0]


def wrong(judged):
    raise ZeroDivisionError("by none of [/them]")


WRONG = {
    "nan": (lambda judged: float("nan"), "must give a number, or None where it means nothing, got nan"),
    "tensor": (lambda judged: torch.tensor(1.0), "must give a number, or None where it means nothing, got a Tensor"),
    "text": (lambda judged: "1.0", "must give a number, or None where it means nothing, got '1.0'"),
    "bool": (lambda judged: True, "must give a number, or None where it means nothing, got True"),
    "large": (
        lambda judged: 10**5000,
        "must give a number, or None where it means nothing, got an integer beyond all floats",
    ),
    "raises": (wrong, "failed: ZeroDivisionError: by none of [/them]"),
}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("curve", [False, True])
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_metric_is_named_in_the_trial(kind, curve, tmp_path, capsys):
    of, message = WRONG[kind]
    register_metric(Metric("mine", "mine", of, curve=curve))
    assert run("compare", *SMALL, "--agents", "wpl", "--out", tmp_path) == 1
    *_, last = capsys.readouterr().out.splitlines()
    assert last == (
        f"wpl fails in a trial on one batch, so that none of its runs starts: MetricError: metric 'mine' {message}"
    )
    assert not (tmp_path / "results.json").exists() and not (tmp_path / "wpl").exists()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", WRONG)
def test_a_metric_that_goes_wrong_later_damages_no_record(kind, tmp_path, capsys):
    of, message = WRONG[kind]
    calls: list = []

    def later(judged):
        calls.append(judged)
        return of(judged) if len(calls) == 3 else 1.0  # after a trial and an epoch

    register_metric(Metric("mine", "mine", later, curve=True))
    arguments = ["compare", *SMALL, "--agents", "wpl", "--out", tmp_path]
    assert run(*arguments) == 1
    assert f"wpl, seed 0: MetricError: metric 'mine' {message}; the last good checkpoint, of epoch 1" in (
        capsys.readouterr().out
    )
    assert not list(tmp_path.rglob("results.json"))
    assert run(*arguments, "--resume") == 0
    assert strict(tmp_path / "results.json")[0]["curve"]["mine"] == [1.0, 1.0]


@pytest.mark.usefixtures("no_pictures")
def test_none_is_a_dash_and_numpys_numbers_are_numbers(tmp_path, capsys):
    register_metric(Metric("nothing", "nothing", lambda judged: None, curve=True))
    register_metric(Metric("numpys", "numpys", lambda judged: np.float32(0.5), digits=2, curve=True))
    register_metric(Metric("endless", "endless", lambda judged: float("inf"), curve=True))
    assert run("compare", *SMALL, "--agents", "wpl", "--out", tmp_path) == 0
    (record,) = strict(tmp_path / "results.json")
    assert (record["nothing"], record["numpys"], record["endless"]) == (None, 0.5, None)
    assert record["curve"]["nothing"] == record["curve"]["endless"] == [None, None]
    assert table(capsys)[1].split()[-3:] == ["–", "0.50", "–"]
    assert run("compare", *SMALL, "--agents", "wpl", "--out", tmp_path, "--resume") == 0


@pytest.mark.usefixtures("no_pictures")
def test_a_metric_may_be_younger_than_a_run_or_gone(tmp_path, capsys):
    arguments = ["compare", *SMALL, "--agents", "wpl", "--resume", "--out"]
    old, out = tmp_path / "old", tmp_path / "out"
    for folder in (old, out):
        assert run(*arguments, folder, "--epochs", 1) == 0
    for path in out.rglob("results.json"):
        path.unlink()
    register_metric(Metric("young", "young", lambda judged: 7.0, curve=True))
    capsys.readouterr()
    assert run(*arguments, old, "--epochs", 1) == 0  # a record from before it
    heads, line = table(capsys)
    assert heads.endswith("young") and line.endswith("–")
    assert run(*arguments, out) == 0
    (record,) = strict(out / "results.json")
    assert record["young"] == 7.0 and record["curve"]["young"] == [None, 7.0]
    del METRICS["young"]
    for path in out.rglob("results.json"):
        path.unlink()
    assert run(*arguments, out, "--epochs", 3) == 0
    assert strict(out / "results.json")[0]["curve"]["young"] == [None, 7.0, None]


def test_a_name_belongs_to_one_metric():
    with pytest.raises(ValueError, match="there is a metric 'macs' already: take another name"):
        register_metric(Metric("macs", "mine", lambda judged: 1.0))
    register_metric(METRICS["macs"])


@pytest.mark.parametrize("name", ["seed", "agent", "test_accuracy", "train_loss", "epoch", "", "a b", 5])
def test_a_metric_takes_no_name_of_a_record(name):
    with pytest.raises(ValueError, match="a metric is named by a word that no field of a record has"):
        register_metric(Metric(name, "x", lambda judged: 1.0))
    assert name not in METRICS


def test_alignment_compares_routes_with_what_is_planted_whatever_blocks_are_called():
    """Four rows of each of two groups; by hand where two rows of one group go with the other."""
    planted = torch.tensor([[0]] * 4 + [[1]] * 4)

    def aligned(route, taken=((1, 0), (0, 1))):
        evaluation = SimpleNamespace(
            split="test", route=torch.tensor(route), taken=torch.tensor(taken, dtype=torch.bool).unsqueeze(1)
        )
        env = SimpleNamespace(datasets={"test": SimpleNamespace(planted=planted)})
        judged = Judged(SimpleNamespace(env=env), evaluation, 1.0, 1.0)
        return alignment(judged), alignments(judged)

    assert aligned([0] * 4 + [1] * 4) == aligned([1] * 4 + [0] * 4) == (1.0, [1.0])
    assert aligned([0] * 8)[0] == 0
    # Pairs together in both: 3 + 2 * 1 ... by the table [[4, 0], [2, 2]]: (6 + 1 + 1 - e) / (m - e).
    together, by_group, by_route, pairs = 6 + 1 + 1, 6 + 6, 15 + 1, 28
    expected = by_group * by_route / pairs
    assert aligned([0] * 6 + [1] * 2)[0] == pytest.approx(
        (together - expected) / ((by_group + by_route) / 2 - expected)
    )


def test_alignment_of_an_oracle_is_1_and_none_where_nothing_is_planted():
    env = core_of(gymnasium.make_vec("routing_gym/Compositions-v0", num_envs=64))
    judged = judge(make_agent("oracle", env), "validation", 1.0, 1)
    assert alignment(judged) == 1.0 and alignments(judged) == [1.0, 1.0]
    shared = judge(make_agent("shared", env), "validation", 1.0, 1)
    assert alignment(shared) == 0 and effective_blocks(shared.evaluation.use) == 1
    plain = core_of(gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=64))
    judged = judge(make_agent("shared", plain), "validation", 1.0, 1)
    assert alignment(judged) is None and alignments(judged) is None


def test_effective_blocks_are_the_exponential_of_the_entropy():
    assert effective_blocks([[0.5, 0.5, 0], [1, 0, 0]]) == pytest.approx(1.5)
    assert effective_blocks([[0.25] * 4]) == pytest.approx(4)


def test_routes_are_settled_after_the_last_epoch_that_differs_from_the_end():
    first, then, last = ([[[10, 0]]], [[[5, 5]]], [[[0, 10]]])
    assert settled(np.array([first, first, first])) == 1
    assert settled(np.array([first, then, last, last])) == 3
    assert settled(np.array([last, first, last])) == 3
    # 19 of 20 tasks and decisions stay: that is settled.
    routes = np.zeros((2, 20, 1, 2), dtype=int)
    routes[..., 0] = 7
    routes[0, 3] = [[0, 7]]
    assert settled(routes) == 1
    routes[0, 4] = [[0, 7]]
    assert settled(routes) == 2


METRIC = """
from routing_gym.experiments.engine.metrics import Metric, register_metric
register_metric(Metric("dearest", "dearest", lambda judged: {} * max(judged.evaluation.task_macs)))
"""


@pytest.mark.usefixtures("no_pictures")
def test_two_versions_of_a_metric_are_not_averaged(tmp_path, capsys):
    path = tmp_path / "met.py"
    compare = ["compare", *SMALL, "--agents", "shared", "--epochs", 1, "--out", tmp_path / "out"]

    def of_version(sign):
        path.write_text(METRIC.format(sign))
        METRICS.pop("dearest", None)
        forget_plugins("met")

    assert run(*compare, "--seeds", 1) == 0  # a metric may come later, and go
    of_version(1)
    assert run(*compare, "--seeds", 2, "--plugin", path, "--resume") == 0
    of_version(-1)
    assert run(*compare, "--seeds", 3, "--plugin", path, "--resume") == 2
    assert "another version of a plug-in (plugins met.py" in " ".join(capsys.readouterr().err.split())
    del METRICS["dearest"]
    assert run(*compare, "--seeds", 3, "--resume") == 0
