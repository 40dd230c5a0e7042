"""The report: what it says of made-up runs and of a real comparison, and that it works in a browser without network."""

import csv
import json
import re
import shutil
import signal

import numpy as np
import pytest
from commands import run
from made_up_runs import ENV, block, made_up_run, write_runs

from routing_gym.agents import AGENTS, agent_class, register_agent
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.metrics import METRICS
from routing_gym.experiments.engine.records import read_arrays, with_delta_m, write_arrays, write_csv
from routing_gym.experiments.engine.report import Contents, cells, report_data, write_report
from routing_gym.experiments.engine.training import EpochLog

SMALL = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "2", "--batch-size", "256"]


def data_of(*folders):
    contents = Contents()
    for folder in folders:
        contents.take(folder)
    return report_data(contents)


def of(data, name):
    (found,) = [agent for agent in data["agents"] if agent["name"] == name]
    return found


def levels(**by_agent):
    return [made_up_run(agent, seed, level=level) for agent, level in by_agent.items() for seed in range(5)]


# -------------------------------------------------------------------------------------------------------- what it says


def test_every_metric_is_there_as_it_is_declared(tmp_path):
    records = levels(wpl=0.95, shared=0.85, wild=0.9)
    wild = [0.7, 0.95, 0.8, 0.99, 0.85]
    for record in records:
        record["cost"] = None
        record["test_accuracy"] += 1e-4 * record["seed"] * (record["agent"] == "wpl")
        if record["agent"] == "wild":
            record["test_accuracy"] = wild[record["seed"]]
    data = data_of(write_runs(tmp_path, records))
    assert [metric["name"] for metric in data["metrics"]] == list(METRICS)
    wpl = of(data, "wpl")
    for metric in METRICS.values():
        runs = [record for record in records if record["agent"] == "wpl"]
        assert wpl["values"][metric.name][0] == metric.text([metric.value(record) for record in runs])
    assert wpl["values"]["cost"] == ["–", None, None] and wpl["values"]["accuracy"][0].count("±") == 1
    assert [agent["mark"] for agent in data["agents"]] == ["best", "", "alike"]
    assert "corrected for 3 agents" in data["mark"] and "(5)" in data["mark"]
    mean, low, high, seeds = wpl["curves"]["accuracy"]
    accuracies = np.array([r["curve"]["validation_accuracy"] for r in records if r["agent"] == "wpl"])
    assert mean == pytest.approx(100 * accuracies.mean(0), abs=0.006) and seeds == [5] * 5
    assert low == pytest.approx(100 * accuracies.min(0), abs=0.006) and high[0] >= mean[0]
    (wpl_shared, wpl_wild), (shared_wild,), _ = data["pairs"]["accuracy"]
    assert wpl_shared[:1] + wpl_shared[-1:] == [5, 1] and wpl_shared[1] == pytest.approx(10.02, abs=0.01)
    assert shared_wild[-1] == 0 and shared_wild[2] < 0 < shared_wild[3] and wpl_wild[0] == 5
    assert data["warnings"] == data["failures"] == data["unfinished"] == []


def test_less_of_a_cost_is_better(tmp_path):
    records = levels(wpl=0.9, shared=0.9)
    for record in records:
        record["macs"] = 1000.0 * (1 + (record["agent"] == "wpl")) + record["seed"] ** 2
    ((pair,), _) = data_of(write_runs(tmp_path, records))["pairs"]["macs"]
    assert pair[1] == 1000 and pair[-1] == 0  # differences that are all equal bound nothing with 5 seeds
    records[0]["macs"] += 3
    shutil.rmtree(tmp_path / "wpl")
    shutil.rmtree(tmp_path / "shared")
    ((pair,), _) = data_of(write_runs(tmp_path, records))["pairs"]["macs"]
    assert pair[-1] == -1


def test_no_common_seeds_are_said(tmp_path):
    records = [made_up_run("wpl", 0), made_up_run("wpl", 1), made_up_run("shared", 2)]
    data = data_of(write_runs(tmp_path, records))
    assert data["pairs"]["accuracy"][0] == [[0]]
    assert "no seed that all agents" in data["mark"] and not any(agent["mark"] for agent in data["agents"])
    assert of(data, "shared")["values"]["accuracy"][2] is None  # one seed has no interval


def test_what_makes_a_comparison_unfair_is_named(tmp_path):
    records = [made_up_run("wpl", seed) for seed in range(3)] + [made_up_run("shared", seed) for seed in range(3)]
    records[0] |= {"commit": "def", "processor": "another"}
    data = data_of(write_runs(tmp_path / "one", records))
    assert data["warnings"] == [
        "Runs are of different commits: def (wpl, seeds 0); abc (wpl, seeds 1 2, shared).",
        "Runs are of different processors: another (wpl, seeds 0); a processor (wpl, seeds 1 2, shared).",
    ]
    assert data["varying"] == ["processor", "commit"] and data["runs"][0]["facts"] == ["another", "def"]
    other = made_up_run("wpl", 0, epochs=3, env="other/Env-v0", batch_size=64)
    other["asked"] |= {"env": "other/Env-v0", "batch_size": 64}
    write_runs(tmp_path / "two", [other])
    data = data_of(tmp_path / "one", tmp_path / "two")
    assert [agent["name"] for agent in data["agents"]] == ["wpl (one)", "shared", "wpl (two)"]
    for what in ("environments", "numbers of epochs", "batch sizes"):
        assert any(f"different {what}: " in warning and "(wpl (two))" in warning for warning in data["warnings"])
    assert data["pairs"]["accuracy"][0][1] is None and "different environments" in data["mark"]
    assert data["title"] == f"{ENV} and other/Env-v0"


def test_folders_of_all_commands_come_together(tmp_path):
    """Runs of one agent come together by seed; a sweep's are called by their settings; what is twice counts once."""
    for seed in (0, 1):
        (tmp_path / f"train-{seed}").mkdir()
        text = json.dumps([made_up_run("wpl", seed)])
        (tmp_path / f"train-{seed}" / "results.json").write_text(text)
        (tmp_path / f"train-{seed}" / "config.toml").write_text("epochs = 5")
    shutil.copytree(tmp_path / "train-0", tmp_path / "copy")
    sweep = [made_up_run("wpl", 100, options={"rate": rate}) for rate in (0.1, 0.2)]
    for record, folder in zip(sweep, ("rate=0.1", "rate=0.2"), strict=True):
        (tmp_path / "sweep" / folder / "seed-100").mkdir(parents=True)
        (tmp_path / "sweep" / folder / "seed-100" / "results.json").write_text(json.dumps([record]))
    (tmp_path / "sweep" / "results.json").write_text(json.dumps([{**sweep[0], "setting": "rate is 0.1"}]))
    data = data_of(*(tmp_path / name for name in ("train-0", "train-1", "copy", "sweep")))
    assert [(a["name"], a["seeds"]) for a in data["agents"]] == [
        ("wpl", [0, 1]),
        ("rate is 0.1", [100]),
        ("rate=0.2", [100]),
    ]
    assert data["warnings"] == ["Runs that are there twice count once: 1 were left out."]
    assert (
        data["differing"] == ["agent_options.rate"] and of(data, "rate=0.2")["options"]["agent_options.rate"] == "0.2"
    )
    command = data["runs"][0]["command"]
    assert command.startswith("routing-gym train --config ") and command.endswith("again-train-0")
    assert data["runs"][2]["command"] is None


def test_the_same_runs_at_two_commits_stand_side_by_side(tmp_path):
    """What a change of the code has done to results is seen where both are kept; a copy of either counts once."""
    for folder, commit in (("old", "abc"), ("new", "def"), ("copy", "def")):
        write_runs(tmp_path / folder, [{**made_up_run("wpl", seed), "commit": commit} for seed in (0, 1)])
    data = data_of(*(tmp_path / folder for folder in ("old", "new", "copy")))
    assert [(a["name"], a["seeds"]) for a in data["agents"]] == [("wpl (old)", [0, 1]), ("wpl (new)", [0, 1])]
    twice, commits = data["warnings"]
    assert "2 were left out" in twice and commits == "Runs are of different commits: abc (wpl (old)); def (wpl (new))."


def test_routes_are_kept_after_every_epoch_as_far_as_they_are_there(tmp_path, monkeypatch):
    write_runs(tmp_path / "with", [made_up_run("wpl", 0)])
    write_runs(tmp_path / "without", [made_up_run("shared", 0)], with_routes=False)
    known = read_arrays(tmp_path / "with" / "wpl" / "seed-0" / "routes.npz", epoch=1, routes=4)
    first, second = data_of(tmp_path / "with", tmp_path / "without")["runs"]
    assert first["epochs_kept"] == [1, 2, 3, 4, 5] and "routes" not in second and len(second["final"]) == 10
    assert first["routes"][1] == cells(known["routes"][1]) and len(first["labels"]) == 2
    monkeypatch.setattr("routing_gym.experiments.engine.report.MOST_CELLS", 600)
    assert data_of(tmp_path / "with")["runs"][0]["epochs_kept"] == [2, 5]
    (tmp_path / "with" / "wpl" / "seed-0" / "routes.npz").write_bytes(b"no")
    data = data_of(tmp_path / "with")
    assert "routes.npz cannot be read back" in data["failures"][0] and "routes" not in data["runs"][0]


def test_a_run_that_is_being_lengthened_is_shown_as_its_record_says_and_unfinished(tmp_path):
    write_runs(tmp_path, [made_up_run("wpl", 0, epochs=5)])
    for path in (tmp_path / "results.json", tmp_path / "wpl" / "seed-0" / "results.json"):
        path.write_text(json.dumps([made_up_run("wpl", 0, epochs=3)]))
    data = data_of(tmp_path)
    assert data["runs"][0]["epochs_kept"] == [1, 2, 3] and len(data["runs"][0]["routes"]) == 3
    assert [(run["folder"], run["of"]) for run in data["unfinished"]] == [(str(tmp_path / "wpl" / "seed-0"), 5)]


def test_cells_say_who_takes_what():
    counts = np.array([[[0, 0, 0], [5, 0, 0], [2, 1, 1], [999, 1, 0]]])
    assert cells(counts) == [[None, 0, [0, 50, 1, 25, 2, 25], 0]]
    assert cells(np.ones((1, 1, 300), dtype=int))[0][0][:4] == [0, 0, 1, 0]


def test_a_half_finished_folder_is_reported(tmp_path, capsys):
    folder = tmp_path / "half"
    assert run("compare", *SMALL, "--agents", "shared", "--seeds", 2, "--out", folder) == 0
    (folder / "shared" / "seed-1" / "results.json").unlink()
    (folder / "results.json").unlink()
    shutil.copytree(folder / "shared" / "seed-1", folder / "shared" / "seed-2")
    (folder / "shared" / "seed-2" / "checkpoint.pt").write_bytes(b"no checkpoint")
    shutil.copytree(folder / "shared" / "seed-0", folder / "shared" / "seed-3")
    (folder / "shared" / "seed-3" / "results.json").write_text("[{")
    assert run("report", folder) == 0
    data = block(folder / "report.html")
    assert [agent["seeds"] for agent in data["agents"]] == [[0]]
    one, two = data["unfinished"]
    assert (one["epochs"], one["of"], two["epochs"]) == (2, 2, None) and "not a checkpoint" in two["damage"]
    assert one["command"].endswith("seed-1 --resume")
    assert len(data["failures"]) == 1 and "seed-3/results.json cannot be read back" in data["failures"][0]
    shutil.rmtree(folder / "shared" / "seed-0")
    assert run("report", folder, "--out", tmp_path / "other.html") == 0
    assert block(tmp_path / "other.html")["title"] == "Unfinished runs"


def test_nothing_to_report_is_refused(tmp_path, capsys):
    for arguments, said in [
        ((), "name at least one folder"),
        ((tmp_path,), f"there are no runs in {tmp_path}"),
        ((tmp_path / "none",), f"there is no folder {tmp_path / 'none'}"),
    ]:
        assert run("report", *arguments) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{}")
    assert run("report", tmp_path) == 2
    assert "it is not a list of records" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_ten_agents_over_ten_seeds_stay_below_5_mb(tmp_path):
    records = [made_up_run(f"agent-{i}", seed, epochs=20) for i in range(10) for seed in range(10)]
    write_report([write_runs(tmp_path, records)], tmp_path / "report.html")
    assert 1.5e6 < (tmp_path / "report.html").stat().st_size < 5e6
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', text.partition("<script")[0])


def test_records_as_csv(tmp_path):
    records = [made_up_run("wpl", 0, options={"rate": 0.1, "of": [1, 2]}), made_up_run("a,b", 1, options={"x": None})]
    records[1]["cost"] = None
    write_csv(records, tmp_path / "results.csv")
    with open(tmp_path / "results.csv", newline="") as file:
        one, two = csv.DictReader(file)
    assert list(one)[:5] == ["agent", "env", "seed", "epochs", "test_accuracy"]
    assert {metric.key("test") for metric in METRICS.values()} <= one.keys()
    assert float(one["test_accuracy"]) == records[0]["test_accuracy"] and two["cost"] == "" and two["agent"] == "a,b"
    assert (one["agent_options.rate"], one["agent_options.of"], one["agent_options.x"]) == ("0.1", "[1, 2]", "")
    assert (two["agent_options.x"], two["env_options.num_blocks"], two["split"]) == ("none", "10", "test")


# --------------------------------------------------------------------------------------------------- a real comparison


@pytest.fixture
def strange():
    """An agent that fails with HTML."""

    class Strange(agent_class("shared")):
        def update(self, trajectory):
            if self.episodes > 300:
                raise RuntimeError("<img src=x onerror=alert(1)>")

    register_agent("strange", Strange)
    yield "strange"
    del AGENTS["strange"]


@pytest.mark.long
def test_compare_ends_with_its_report(strange, tmp_path, capsys):
    arguments = ["compare", *SMALL, "--agents", "shared", "random-fixed", strange, "--seeds", 2, "--out", tmp_path]
    assert run(*arguments) == 1
    assert "report.html" in capsys.readouterr().out
    data = block(tmp_path / "report.html")
    assert [agent["name"] for agent in data["agents"]] == ["shared", "random-fixed"]
    assert len(data["failures"]) == 2 and "<img src=x" in data["failures"][0]
    assert "<img" not in (tmp_path / "report.html").read_text().partition('id="plotly"')[0]
    assert data["runs"][0]["epochs_kept"] == [1, 2] and [len(row) for row in data["runs"][0]["final"]] == [3] * 4
    with open(tmp_path / "results.csv", newline="") as file:
        assert [row["agent"] for row in csv.DictReader(file)] == ["shared"] * 2 + ["random-fixed"] * 2
    before = block(tmp_path / "report.html")
    assert run("report", tmp_path) == 0 and block(tmp_path / "report.html") == before
    shutil.rmtree(tmp_path / strange)
    assert run("compare", *SMALL, "--agents", "shared", "--seeds", 2, "--out", tmp_path, "--resume") == 0
    assert block(tmp_path / "report.html")["failures"] == []


@pytest.mark.usefixtures("no_pictures")
def test_routes_after_a_stop_are_those_of_a_whole_run(tmp_path, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    arguments = ["train", *SMALL, "--epochs", 3, "--agent", "wpl", "--out"]
    assert run(*arguments, whole) == 0
    write = EpochLog.write

    def stopped(self, epoch, *rows):
        write(self, epoch, *rows)
        if epoch == 2 and self.path.name == "routes.npz":
            signal.raise_signal(signal.SIGTERM)
            raise KeyboardInterrupt  # between the routes and the checkpoint

    monkeypatch.setattr(EpochLog, "write", stopped)
    assert run(*arguments, halves) > 128
    assert list(read_arrays(halves / "routes.npz", epoch=1, routes=4)["epoch"]) == [1, 2]
    monkeypatch.setattr(EpochLog, "write", write)
    assert run(*arguments, halves, "--resume") == 0
    found, expected = (read_arrays(folder / "routes.npz", epoch=1, routes=4) for folder in (halves, whole))
    assert expected["routes"].dtype == np.int32 and list(expected["epoch"]) == [1, 2, 3]
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    (record,) = json.loads((whole / "results.json").read_text())
    assert expected["routes"].shape[1:] == np.shape(record["routes"])
    write_arrays(whole / "routes.npz", epoch=np.array([1, 2]), routes=np.zeros((1, 2, 3, 4)))
    with pytest.raises(UsageError, match=r"routes\.npz cannot be read back"):
        EpochLog(whole / "routes.npz", 1, routes=4)


@pytest.mark.parametrize(
    ("agent", "options", "choice"),
    [
        ("wpl", [], r"\d"),
        ("top-k", ["--agent-options", "k=2"], r"\d/\d"),
        ("cross-stitch", [], r"\d(/\d)*(\+\d(/\d)*){3}"),
        ("random", ["--env-options", "form=columns"], r"\d?(\+\d?){3}"),
    ],
)
def test_routes_of_single_instances(agent, options, choice, tmp_path, capsys):
    arguments = [*SMALL, "--epochs", 1, "--agent", agent, *options]
    assert run("train", *arguments, "--out", tmp_path) == 0
    checkpoint, file = tmp_path / "checkpoint.pt", tmp_path / "routes.csv"
    capsys.readouterr()
    assert run("evaluate", checkpoint, "--json", "--routes", file) == 0
    judged = json.loads(capsys.readouterr().out)
    with open(file, newline="") as text:
        rows = list(csv.DictReader(text))
    assert list(rows[0])[:6] == ["index", "task", "label", "predicted", "right", "macs"]
    assert [int(row["index"]) for row in rows] == list(range(len(rows)))
    assert np.mean([float(row["right"]) for row in rows]) == pytest.approx(judged["accuracy"])
    assert np.mean([float(row["macs"]) for row in rows]) == pytest.approx(judged["macs"])
    assert all(row["predicted"] == row["label"] for row in rows if row["right"] == "1")
    assert sum(row["predicted"] != row["label"] for row in rows if row["right"] == "0") > 0
    names = list(rows[0])[6:]
    assert all(re.fullmatch(choice, row[name]) for row in rows for name in names)
    taken = np.zeros(np.shape(judged["routes"]), dtype=int)
    for row in rows:
        for number, name in enumerate(names):
            for took in set(re.split("[+/]", row[name])) - {""}:
                taken[int(row["task"]), number, int(took)] += 1
    assert taken.tolist() == judged["routes"]


def test_runs_on_other_data_of_one_name_are_not_compared(tmp_path):
    records = []
    for tasks, accuracies in ((5, (0.8, 0.6)), (8, (0.4, 0.5))):
        for agent, accuracy in zip(("single-task", "shared"), accuracies, strict=True):
            for seed in range(3):
                record = made_up_run(agent, seed, level=accuracy + 0.001 * seed)
                record["asked"]["env_options"] = {**record["asked"]["env_options"], "num_tasks": tasks}
                record["task_accuracy"] = [accuracy] * len(record["task_accuracy"])
                records.append(record)
    both = [write_runs(tmp_path / name, part) for name, part in (("one", records[:6]), ("two", records[6:]))]
    alone = with_delta_m(records[:6])
    assert [record["delta_m"] for record in with_delta_m(records)[:6]] == [record["delta_m"] for record in alone]
    data = data_of(*both)
    assert "different environments, data or splits" in data["mark"]
    assert any("different options of the data: num_tasks=5" in warning for warning in data["warnings"])
