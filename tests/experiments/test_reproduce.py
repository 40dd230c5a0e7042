"""Reproducing a paper, on stand-in data and a small budget."""

import dataclasses
import json

import numpy as np
import pytest
from pictures import height_and_colours

from routing_gym.experiments import reproduce
from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.settings import TrainingSettings
from routing_gym.experiments.papers.reproduction import Plan
from routing_gym.experiments.papers.routing_networks import ROUTING_NETWORKS, cost
from routing_gym.experiments.papers.routing_networks.rows import CIFAR, MIN, MNIST
from routing_gym.experiments.papers.rows import Row, Settings
from routing_gym.tasks import files

SYNTHETIC = "routing_gym/SyntheticMTL-v0"
ROWS = (
    Row("WPL", ("cifar", "rl"), SYNTHETIC, "wpl", ("policy_rate=0.02",), paper={1: 31.0, 100: 60.0}),
    Row("frozen", ("cifar",), SYNTHETIC, "random-fixed"),
    *(Row(f"WPL, ρ = {rho}", ("rho",), SYNTHETIC, "wpl", env_options=(f"rho={rho}",), x=rho) for rho in (0.0, 0.5)),
    *(
        Row(f"{agent}, {n} tasks", ("first-tasks",), SYNTHETIC, agent, env_options=(f"num_tasks={n}",), x=n)
        for n in (2, 3)
        for agent in ("wpl", "task-specific-all")
    ),
)
SETTINGS = (Settings("quick", "as quick as can be", 2, ("schedule=cosine", "schedule_epochs={epochs}")),)


@pytest.fixture
def small_paper(monkeypatch):
    measured = {"cost": dataclasses.replace(ROUTING_NETWORKS.measured["cost"], env=SYNTHETIC)}
    paper = dataclasses.replace(ROUTING_NETWORKS, rows=ROWS, settings=SETTINGS, measured=measured)
    monkeypatch.setitem(reproduce.REPRODUCTIONS, "routing-networks", paper)
    monkeypatch.setattr(cost, "BLOCKS", (2, 4, 6))
    monkeypatch.setattr(cost, "ROUNDS", 2)
    return paper


def run(out, *arguments):
    return main(["reproduce", "routing-networks", "--out", str(out), *map(str, arguments)])


@pytest.mark.long
def test_ours_beside_the_papers(small_paper, tmp_path):
    assert run(tmp_path, "--seeds", 2, "--report", tmp_path / "docs" / "report.md") == 0
    records = json.loads((tmp_path / "results.json").read_text())
    assert len(records) == 2 * len(ROWS) and [r["seed"] for r in records] == [0] * 8 + [1] * 8
    wpl = records[0]
    assert wpl["label"] == "WPL" and wpl["paper"] == 0.6 and wpl["settings"] == "quick" and wpl["epochs"] == 2
    assert wpl["config"]["policy_rate"] == 0.02 and wpl["env_config"]["schedule_epochs"] == 2
    assert records[1]["paper"] is None
    report = (tmp_path / "docs" / "report.md").read_text()
    table = report[report.index("Fig. 6") : report.index("Fig. 12")]
    ours = [line for line in table.splitlines() if line.startswith("| WPL")][0]
    seeds = [r for r in records if r["label"] == "WPL"]
    assert f"**{100 * np.mean([r['test_accuracy'] for r in seeds]):.2f} ±" in ours and ours.endswith("| 2 |")
    first = 100 * np.mean([r["curve"]["validation_accuracy"][0] for r in seeds])
    assert f"| {first:.2f} ±" in ours
    assert "| *paper* | *31* |  |  |  |  |  |  | *60 at epoch 100* |" in table
    assert "as quick as can be" in report.lower() and "commit" in report
    cost_lines = [line for line in report.splitlines() if "s per epoch and task" in line]
    agents = ["| wpl", "| task-specific-all", "| cross-stitch"]
    assert [line.split(", ")[:2] for line in cost_lines] == [[agent, part] for part in cost.PARTS for agent in agents]
    assert "with a block for each of 4 tasks: the paper's network" in report
    assert "### What the paper says" in report and "Needs runs of one seed" in report
    for picture in ("cifar", "rl", "cifar-routing_maps", "cifar-policies", "cifar-block_7", "rho", "first-tasks"):
        height, colours = height_and_colours(tmp_path / f"quick-{picture}.png")
        assert height > 150 and colours > 20, picture
    assert height_and_colours(tmp_path / "cost.png")[0] > 150


def test_records_of_another_version_are_refused(small_paper, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(type(small_paper), "pictures", lambda *_: [])
    assert run(tmp_path, "--seeds", 1, "--groups", "rl") == 0
    (path,) = tmp_path.rglob("seed-0/results.json")
    path.write_text(json.dumps([{**record, "version": 1} for record in json.loads(path.read_text())]))
    capsys.readouterr()
    assert run(tmp_path, "--seeds", 1, "--groups", "rl") == 2
    said = capsys.readouterr().err
    assert f"{path} cannot be read back (it is of version 1 of the form of records" in said and said.count("\n") == 1


def test_finished_runs_are_skipped_and_interrupted_ones_go_on(small_paper, tmp_path, monkeypatch):
    monkeypatch.setattr(type(small_paper), "pictures", lambda *_: [])  # others look at them
    assert run(tmp_path / "whole", "--seeds", 1, "--groups", "cifar") == 0

    steps = 0

    def kill_in_the_second_run(*arguments, **options):
        nonlocal steps
        steps += 1
        if steps == 4:  # two epochs of the first run, one of the second
            raise KeyboardInterrupt
        return save(*arguments, **options)

    from routing_gym.agents import Agent

    save = Agent.save
    monkeypatch.setattr(Agent, "save", kill_in_the_second_run)
    assert run(tmp_path / "halves", "--seeds", 1, "--groups", "cifar") == 130
    monkeypatch.setattr(Agent, "save", save)
    first = tmp_path / "halves" / "quick" / "cifar" / "wpl" / "seed-0" / "results.json"
    written = first.stat().st_mtime_ns
    assert run(tmp_path / "halves", "--seeds", 1, "--groups", "cifar") == 0
    assert first.stat().st_mtime_ns == written
    whole, halves = (json.loads((tmp_path / part / "results.json").read_text()) for part in ("whole", "halves"))
    for ours, theirs in zip(whole, halves, strict=True):
        assert ours["test_accuracy"] == theirs["test_accuracy"]
        assert ours["curve"]["train_loss"] == theirs["curve"]["train_loss"]
    with np.load(tmp_path / "halves" / "quick" / "cifar" / "wpl" / "seed-0" / "policies.npz") as saved:
        assert saved["policies"].shape[1:] == (4, 3, 4) and bool((np.diff(saved["episodes"]) > 0).all())
        assert sorted(set(saved["epoch"].tolist())) == [1, 2]


def test_data_that_is_not_there_is_said_and_the_rest_is_run(small_paper, tmp_path, monkeypatch, capsys):
    rows = (Row("routing", ("min",), MIN, "wpl"), ROWS[1])
    paper = dataclasses.replace(small_paper, rows=rows, measured=ROUTING_NETWORKS.measured)
    monkeypatch.setitem(reproduce.REPRODUCTIONS, "routing-networks", paper)
    monkeypatch.setenv(files.DATA_VARIABLE, str(tmp_path / "nothing"))
    assert run(tmp_path / "out", "--seeds", 1, "--epochs", 1) == 1
    report = (tmp_path / "out" / "routing-networks.md").read_text()
    assert "Every run was asked for with `--epochs 1`, whatever is said of lengths below." in report
    assert "## Not there" in report and "mini-imagenet" in report and "| frozen |" in report
    assert "cifar-100" in report and not (tmp_path / "out" / "cost.png").exists()
    assert [r["label"] for r in json.loads((tmp_path / "out" / "results.json").read_text())] == ["frozen"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "figure-4"], "--groups: unknown name 'figure-4'; known are rl, architectures, .*, cost"),
        (["--settings", "best"], "--settings: unknown name 'best'; known are quick"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--epochs", "0"], "--epochs must be at least 1"),
    ],
)
def test_wrong_options_are_refused(small_paper, arguments, message, tmp_path, capsys):
    import re

    assert run(tmp_path, *arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_other_runs_in_the_folder_are_not_taken_for_these(small_paper, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(type(small_paper), "pictures", lambda *_: [])
    assert run(tmp_path, "--seeds", 1, "--groups", "rl") == 0
    assert run(tmp_path, "--seeds", 1, "--groups", "rl", "--epochs", 3) == 2
    assert "holds another run: its env_options schedule_epochs is 2, asked for is 3" in capsys.readouterr().err
    assert run(tmp_path, "--seeds", 1, "--groups", "cost", "rl", "--threads", 1) == 0
    kept = (tmp_path / "cost.json").read_text()
    for now, then, said in (
        ('"batch_size": 128', '"batch_size": 64', "was measured with batch_size=64, now it is 128"),
        ('"network"', '"of before"', 'was measured with network=None, now it is "the paper\'s network"'),
    ):
        (tmp_path / "cost.json").write_text(kept.replace(now, then))
        assert run(tmp_path, "--seeds", 1, "--groups", "cost") == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert main(["reproduce", "no-paper"]) == 2
    assert "unknown paper 'no-paper'; known are routing-networks" in capsys.readouterr().err


@pytest.mark.long
def test_every_row_can_be_made(tmp_path):
    for settings in ROUTING_NETWORKS.settings:
        plan = Plan(ROUTING_NETWORKS, settings, TrainingSettings(device="cpu"), tmp_path)
        cells = list(zip(plan.rows, plan.runs(1), strict=True))
        assert len(cells) == len(ROUTING_NETWORKS.rows)
        for row, cell in cells if settings.name == "tuned" else cells[::12]:
            agent = cell.make()
            assert agent.name == row.agent and agent.env.spec.id == row.env
    folders = [cell.folder for cell in plan.runs(2)]
    assert len(set(folders)) == len(folders)
    assert {row.env for row in ROUTING_NETWORKS.rows} == {CIFAR, MIN, MNIST}


def test_records_of_another_paper_are_not_replaced(tmp_path, monkeypatch, capsys):
    paper = reproduce.REPRODUCTIONS["routing-networks"]
    plan = Plan(paper, paper.settings[0], TrainingSettings(device="cpu"), tmp_path)
    path, kept = tmp_path / "results.json", json.dumps([{**next(plan.runs(1)).facts, "paper_by_epoch": None}])
    path.write_text(kept)
    monkeypatch.setenv(files.DATA_VARIABLE, str(tmp_path / "nothing"))
    assert main(["reproduce", "codinet", "--seeds", "1", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{path} holds runs of routing-networks, not of codinet: take another folder" in said
    assert path.read_text() == kept
    assert run(tmp_path, "--seeds", 1, "--epochs", 1, "--groups", "min", "--rows", "=random frozen paths") == 1
    assert path.read_text() == kept  # of the same paper, but none of these rows


def test_runs_that_may_be_under_way_at_once_have_titles_of_their_own(tmp_path):
    for paper in reproduce.REPRODUCTIONS.values():
        plans = [Plan(paper, settings, TrainingSettings(device="cpu"), tmp_path) for settings in paper.settings]
        runs = [*(run for plan in plans for run in plan.runs(2))]
        assert len({run.title for run in runs}) == len({(run.title, run.folder) for run in runs})
