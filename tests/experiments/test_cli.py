"""The command line, run as a user runs it (in this process, on a small budget)."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from commands import run
from damage import reseal
from pictures import height_and_colours

SMALL = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "2", "--batch-size", "64"]


@pytest.mark.long
def test_compare_writes_all_it_promises(tmp_path, capsys):
    assert run("compare", *SMALL, "--agents", "wpl", "shared", "--seeds", 2, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "wpl" in printed and "shared" in printed and "accuracy" in printed
    records = json.loads((tmp_path / "results.json").read_text())
    assert [(r["agent"], r["seed"]) for r in records] == [("wpl", 0), ("wpl", 1), ("shared", 0), ("shared", 1)]
    for record in records:
        assert record["env"] == "routing_gym/SyntheticMTL-v0"
        assert 0 <= record["test_accuracy"] <= 1
        assert record["test_accuracy"] == pytest.approx(np.mean(record["task_accuracy"]))
        assert record["macs"] == 16 * 48 + 48 * 48 + 48 * 3 and record["parameters"] == 4 * (record["macs"] + 99)
        assert record["samples_per_second"] > 0 and record["seconds"] > 0
        assert record["curve"]["epoch"] == [1, 2]
        assert np.array(record["routes"]).shape == (4, 3, 4) and "live_paths" not in record
    assert [r["blocks_used"] for r in records[2:]] == [3, 3]
    for picture in ("learning_curves.png", "routing_maps.png"):
        height, colours = height_and_colours(tmp_path / picture)
        assert height > 200 and colours > 20
    for cell in ("wpl/seed-0", "shared/seed-1"):
        assert list((tmp_path / cell).glob("events.out.tfevents*")) and (tmp_path / cell / "checkpoint.pt").exists()


@pytest.mark.usefixtures("no_pictures")
def test_records_of_several_tensors_say_how_many_paths_live(tmp_path):
    assert run("compare", *SMALL, "--agents", "cross-stitch", "--seeds", 1, "--out", tmp_path) == 0
    (record,) = json.loads((tmp_path / "results.json").read_text())
    assert record["live_paths"] == [4, 4, 4]  # every column of the four has a part in every other


def test_train_evaluate_and_resume(tmp_path, capsys):
    assert run("train", *SMALL, "--agent", "wpl", "--out", tmp_path / "whole", "--env-options", "width=8") == 0
    arguments = ["train", *SMALL, "--agent", "wpl", "--out", tmp_path / "halves", "--env-options", "width=8"]
    assert run(*arguments, "--epochs", 1) == 0
    assert run(*arguments, "--resume") == 0
    whole, halves = (json.loads((tmp_path / folder / "results.json").read_text())[0] for folder in ("whole", "halves"))
    assert whole["test_accuracy"] == halves["test_accuracy"]
    assert whole["curve"]["train_loss"] == halves["curve"]["train_loss"]
    capsys.readouterr()
    assert run("evaluate", tmp_path / "whole" / "checkpoint.pt", "--json") == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["accuracy"] == whole["test_accuracy"] and judged["split"] == "test"
    assert run("evaluate", tmp_path / "whole" / "checkpoint.pt", "--split", "train") == 0
    assert "MACs per instance" in capsys.readouterr().out
    assert run("evaluate", tmp_path / "whole" / "checkpoint.pt", "--env-options", "num_envs=5") == 2
    assert "--env-options cannot set num_envs" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.usefixtures("no_pictures")
def test_compare_skips_what_is_finished(tmp_path):
    arguments = ["compare", *SMALL, "--agents", "wpl", "shared", "--out", tmp_path]
    assert run(*arguments, "--seeds", 1) == 0
    finished = tmp_path / "wpl" / "seed-0" / "results.json"
    written = finished.stat().st_mtime_ns
    first = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "shared" / "seed-0" / "results.json").unlink()  # as if it had been interrupted after the last epoch
    assert run(*arguments, "--seeds", 2, "--resume") == 0
    assert finished.stat().st_mtime_ns == written
    second = json.loads((tmp_path / "results.json").read_text())
    assert [(r["agent"], r["seed"]) for r in second] == [("wpl", 0), ("wpl", 1), ("shared", 0), ("shared", 1)]
    assert second[0] == first[0] and second[2]["curve"] == first[1]["curve"]
    assert run(*arguments, "--resume", "--epochs", 3) == 2  # other runs are not taken for these


@pytest.mark.long
def test_sweep_ranks_by_validation_and_goes_on(tmp_path, capsys):
    arguments = ["sweep", *SMALL, "--agent", "wpl", "--seeds", 2, "--out", tmp_path]
    grid = ["--grid", "policy_rate=0.001,0.1", "env.learning_rate=0.003"]
    assert run(*arguments, *grid) == 0
    records = json.loads((tmp_path / "results.json").read_text())
    assert [(r["config"]["policy_rate"], r["seed"]) for r in records] == [
        (0.001, 100),
        (0.001, 101),
        (0.1, 100),
        (0.1, 101),
    ]
    assert all(r["env_config"]["learning_rate"] == 0.003 and "test_accuracy" not in r for r in records)
    printed = capsys.readouterr().out
    means = {
        rate: np.mean([r["validation_accuracy"] for r in records if r["config"]["policy_rate"] == rate])
        for rate in (0.001, 0.1)
    }
    best = max(means, key=means.get)
    lines = [line.strip() for line in printed.splitlines() if "policy_rate=" in line and "epoch" not in line]
    assert lines[0].startswith(f"policy_rate={best} ") and f"{100 * means[best]:.2f}" in lines[0]
    assert run(*arguments, "--grid", "policy_rate=0.001,0.1,0.2", "env.learning_rate=0.003") == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again[:4] == records and len(again) == 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("trained")
    assert run("train", *SMALL, "--out", out) == 0
    return out


@pytest.mark.long
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--seed", "7"], "was trained with seed=0, now it is 7"),
        (["--agent-options", "policy_rate=0.3"], "policy_rate=None, now it is 0.3"),
        (["--env-options", "learning_rate=0.5"], "learning_rate=0.001, now it is 0.5"),
        (["--env-options", "precision=bfloat16"], "precision='float32', now it is 'bfloat16'"),
        (["--batch-size", "32"], "batch_size=64, now it is 32"),
        (["--threads", "2"], "threads=1, now it is 2"),
        (["--agent", "shared"], "agent='wpl', now it is 'shared'"),
        (["--epochs", "1"], "was trained for 2 epochs already, asked for are 1"),
    ],
)
def test_resuming_with_other_options_is_refused(changed, message, trained, capsys):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    assert run("train", *SMALL, "--epochs", 4, "--out", trained, "--resume", *changed) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_options_of_agent_and_environment_of_one_name_are_told_apart(tmp_path, capsys):
    arguments = ["train", *SMALL, "--agent", "reinforce", "--out", tmp_path, "--env-options", "learning_rate=0.002"]
    assert run(*arguments, "--agent-options", "learning_rate=0.1") == 0
    assert run(*arguments, "--epochs", 3, "--resume", "--agent-options", "learning_rate=0.2") == 2
    assert "was trained with learning_rate=0.1, now it is 0.2" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.usefixtures("no_pictures")
def test_what_is_overwritten_is_kept_until_the_new_is_whole(tmp_path, monkeypatch):
    arguments = ["compare", *SMALL, "--agents", "wpl", "--seeds", 1, "--out", tmp_path]
    assert run(*arguments) == 0

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("routing_gym.experiments.engine.training.train", killed)
    assert run(*arguments, "--epochs", 3, "--overwrite") == 130
    monkeypatch.undo()
    assert not (tmp_path / "wpl" / "seed-0" / "results.json").exists()
    assert (tmp_path / ".old-1" / "wpl" / "seed-0" / "results.json").exists()
    assert run(*arguments, "--epochs", 3, "--resume") == 0
    assert json.loads((tmp_path / "results.json").read_text())[0]["curve"]["epoch"] == [1, 2, 3]
    assert not (tmp_path / ".old-1").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["compare", "--env", "routing_gym/Digits"],
            r"unknown environment 'routing_gym/Digits' \(did you mean 'routing_gym/",
        ),
        (
            ["compare", "--agents", "wlp"],
            r"unknown agent 'wlp' \(did you mean 'wpl'\?\); known are actor, actor-critic, annealed-em, best-random, c",
        ),
        (["compare", "--agents", "wpl", "wpl"], "--agents names 'wpl' twice"),
        (["compare", "--agents"], "--agents needs at least one of"),
        (["compare", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["compare", "--seeds", "99999999999999999999"], "--seeds must be at most 10000, got 99999999999999999999"),
        (["compare", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["compare", "--batch-size", "-3"], "--batch-size must be at least 1, got -3"),
        (["compare", "--env-options", "num_blocks=0"], "num_blocks must be an integer of at least 1, got 0"),
        (
            ["compare", "--env-options", "blocks=3"],
            r"got an unexpected keyword argument 'blocks' \(did you mean 'num_blocks'\?\); it takes",
        ),
        (["compare", "--env-options", "rho"], "--env-options takes NAME=VALUE, got 'rho'"),
        (["compare", "--agent-options", "policy_rate=1"], "AGENT.NAME=VALUE"),
        (["compare", "--agent-options", "wpl.rate=1"], "agent 'wpl' has no option 'rate'; it takes"),
        (["compare", "--agent-options", "wpl.gamma=2"], r"gamma must lie in \[0, 1\], got 2"),
        (["compare", "--env-options", "num_blocks=[3,3,3]"], "needs a block for each of the 10 tasks"),
        (["train", "--agent", "none"], "unknown agent 'none'"),
        (["evaluate", "/nonexistent/checkpoint.pt"], "no such checkpoint: /nonexistent/checkpoint.pt"),
        (["compare", "--env-options", "seed=3"], "'seed' of an environment cannot be set"),
        (["compare", "--env-options", "split=test"], "'split' of an environment cannot be set"),
        (["compare", "--env-options", "num_envs=3"], "'num_envs' of an environment cannot be set"),
        (["compare", "--env-options", "k_cpt=abc"], r"k_cpt must be of type float or tuple\[float, ...\], got 'abc'"),
        (["compare", "--env-options", "rho=[1]"], r"rho must be of type float, got \[1\]"),
        (["compare", "--env-options", "width=2.5"], "width must be of type int, got 2.5"),
        (["compare", "--agent-options", "wpl.seed=3"], "'seed' of an agent cannot be set"),
        (["compare", "--agent-options", "wpl.policy_rate=abc"], "policy_rate must be of type float"),
        (["compare", "--device", "gpu"], "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        (["sweep"], "--grid needs at least one NAME=VALUE,VALUE"),
        (["sweep", "--grid", "policy_rate"], "--grid takes NAME=VALUE,VALUE,... or NAME=LOW..HIGH, got 'policy_rate'"),
        (["sweep", "--grid", "seed=1,2"], "'seed' of an agent cannot be set"),
        (["sweep", "--grid", "rate=1"], "agent 'wpl' has no option 'rate'"),
        (["sweep", "--grid", "gamma=1", "--env", "routing_gym/Cifar100MTL-v0"], "CIFAR-MTL has no validation split"),
    ],
)
def test_wrong_options_are_refused_with_the_right_ones(arguments, message, capsys, tmp_path):
    out = ["--out", str(tmp_path / "out")] if arguments[0] in ("compare", "train") else []
    assert run(*arguments, *out) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("arguments", [["compare", "--sedes", "3"], ["comprae"], ["compare", "--seeds", "many"], []])
def test_what_the_parser_does_not_know_is_refused(arguments, capsys):
    try:
        status = run(*arguments)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    printed = capsys.readouterr()
    assert any(word in printed.err + printed.out for word in ("--seeds", "compare", "INT"))


@pytest.mark.parametrize(
    ("command", "variables", "message"),
    [
        ("list", {"WORLD_SIZE": "abc"}, "WORLD_SIZE must be an integer of at least 1, got 'abc': start several"),
        ("list", {"WORLD_SIZE": "0"}, "WORLD_SIZE must be an integer of at least 1, got '0'"),
        ("list", {"WORLD_SIZE": "2"}, "only train runs in several processes (WORLD_SIZE), got list"),
        ("list", {"WORLD_SIZE": ""}, ""),
        ("train", {"WORLD_SIZE": "2"}, "RANK must be an integer of at least 0, but is not set: start several"),
        ("train", {"WORLD_SIZE": "2", "RANK": "2"}, "RANK must be below WORLD_SIZE, 2, got '2'"),
        ("train", {"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_PORT must be an integer"),
        ("train", {"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "1"}, "MASTER_ADDR must be the name of a machine"),
    ],
)
def test_what_torchrun_would_not_set_is_refused(command, variables, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(command) == (2 if message else 0)
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == bool(message) and not list(tmp_path.iterdir())


def test_divergence_keeps_the_last_good_checkpoint(tmp_path, capsys):
    arguments = ["--agents", "shared", "--seeds", 1, "--out", tmp_path, "--env-options", "optimizer=sgd"]
    assert run("compare", *SMALL, *arguments, "learning_rate=1e30") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "agent 'shared', batch 2: training of the blocks stopped after" in printed
        and "nothing of it is kept in" in printed
    )
    assert run("train", *SMALL, "--agent", "shared", "--out", tmp_path / "train") == 0
    checkpoint = tmp_path / "train" / "checkpoint.pt"
    reseal(checkpoint, lambda content: content["env"]["blocks"]["network"]["banks.2.bias"][0].fill_(float("inf")))
    kept = checkpoint.read_bytes()
    capsys.readouterr()
    assert run("train", *SMALL, "--agent", "shared", "--out", tmp_path / "train", "--epochs", 4, "--resume") == 1
    assert "agent 'shared', batch 25: training of the blocks stopped after" in capsys.readouterr().err
    assert checkpoint.read_bytes() == kept


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"], ["list"]])
def test_nothing_is_said_of_output_that_nobody_reads(arguments):
    """As with `routing-gym list | head -1`, once head has its line."""
    reader, writer = os.pipe()
    os.close(reader)
    code = f"import sys; from routing_gym.experiments.cli import main; sys.argv[1:] = {arguments}; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
