"""The commands for what comes after training, run as a user runs them (in this process, on a small budget)."""

import csv
import json
import re
from pathlib import Path

import gymnasium
import pytest
import torch
from commands import run

from routing_gym.agents import Agent, make_agent, read
from routing_gym.experiments.train import load_with_env
from routing_gym.networks import RoutedMLP


def row(printed, name):
    """The cells of a row of a printed table."""
    (line,) = [line for line in printed.splitlines() if re.match(rf"│ +{name} │", line)]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Where a trained agent lies: four tasks, three layers of four blocks."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--env-options", "width=8", "recurrent=true", "layers=4"]
    assert run("train", "--env", "routing_gym/SyntheticMTL-v0", "--epochs", 3, "--out", folder, *options) == 0
    return folder / "checkpoint.pt"


def judged(path, capsys):
    capsys.readouterr()
    assert run("evaluate", path, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_prune_writes_a_checkpoint_that_judges_as_before(checkpoint, tmp_path, capsys):
    before, kept = judged(checkpoint, capsys), checkpoint.read_bytes()
    out = tmp_path / "new" / "small.pt"
    assert run("prune", checkpoint, "--out", out) == 0
    printed = capsys.readouterr().out
    after = judged(out, capsys)
    for key in ("accuracy", "task_accuracy", "macs", "paths", "blocks_used"):
        assert after[key] == before[key]
    assert after["agent"] == "fixed-routes" and after["loss"] == pytest.approx(before["loss"])
    small = load_with_env(out)
    blocks, parameters, accuracy, macs = row(printed, "after")
    assert blocks == " + ".join(map(str, small.env.network.block_counts))
    assert parameters == f"{sum(p.numel() for p in small.env.network.parameters()):,}"
    assert (accuracy, macs) == (f"{100 * before['accuracy']:.2f}", f"{before['macs']:,.0f}")
    assert row(printed, "before") == ["4 + 8 + 4", f"{4 * (16 * 8 + 8) + 8 * 72 + 4 * 27:,}", accuracy, macs]
    assert read(out)["env_kwargs"]["num_blocks"] == list(small.env.network.block_counts)
    assert checkpoint.read_bytes() == kept and [path.name for path in out.parent.iterdir()] == ["small.pt"]


@pytest.mark.long
def test_extract_writes_a_program_from_pixels_to_logits(checkpoint, tmp_path, capsys):
    small = tmp_path / "small.pt"
    assert run("prune", checkpoint, "--out", small) == 0
    before = judged(checkpoint, capsys)
    agent = load_with_env(checkpoint)
    test = agent.env.datasets["test"]
    for source in (checkpoint, small):
        for task in range(4):
            out = tmp_path / f"{source.stem}-{task}.pt2"
            assert run("extract", source, "--task", task, "--out", out) == 0
            printed = capsys.readouterr().out
            classify = torch.export.load(out).module()
            rows = (test.task == task).nonzero().flatten()
            right = [int(classify(test.images[test.image[one]][None]).argmax()) == int(test.label[one]) for one in rows]
            assert before["task_accuracy"][task] == pytest.approx(sum(right) / len(right))
            routed, extracted = row(printed, "routed"), row(printed, "extracted")
            assert (
                routed[1:]
                == extracted[1:]
                == [f"{100 * sum(right) / len(right):.2f}", f"{before['task_macs'][task]:,.0f}"]
            )
            assert int(extracted[0].replace(",", "")) < int(routed[0].replace(",", ""))
    assert out.stat().st_size < 60_000  # neither the other blocks nor the data set go along


def needs_onnxscript(*arguments, **options):
    raise ModuleNotFoundError("No module named 'onnxscript'")


@pytest.mark.long
def test_extract_writes_network_and_agent_together(tmp_path, capsys, monkeypatch):
    options = ["network=pyramid-chain", "columns=2", "width=2", "image_size=8", "price=true", "k_cpt=[0,1e-5]"]
    common = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", 1, "--agent", "actor", "--out", tmp_path]
    assert run("train", *common, "--env-options", *options) == 0
    checkpoint, out, onnx = tmp_path / "checkpoint.pt", tmp_path / "exits.pt2", tmp_path / "exits.onnx"
    agent = load_with_env(checkpoint)
    test = agent.env.datasets["test"]
    images, task = test.images[test.image[:9]], test.task[:9]
    expected = agent.classify(images, task, k_cpt=1e-6)
    capsys.readouterr()
    assert run("extract", checkpoint, "--out", out, "--k-cpt", 1e-6) == 0
    printed = capsys.readouterr().out
    routed, extracted = row(printed, "routed"), row(printed, "extracted")
    assert routed[:2] == extracted[:2] and "all tasks" in printed
    torch.testing.assert_close(torch.export.load(out).module()(images, task), expected)
    assert run("extract", checkpoint, "--out", out) == 2 and "decides by the price" in capsys.readouterr().err

    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", needs_onnxscript)  # PyTorch keeps it, once it is imported
        assert run("extract", checkpoint, "--out", onnx, "--k-cpt", 1e-6) == 2 and not onnx.exists()
        assert "pip install 'routing-gym[onnx]'" in capsys.readouterr().err
    for library in ("onnx", "onnxscript"):
        pytest.importorskip(library, reason="needs the extra onnx")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    assert run("extract", checkpoint, "--out", onnx, "--k-cpt", 1e-6) == 0
    session = runtime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    assert [(given.name, given.shape[0]) for given in session.get_inputs()] == [("images", "batch"), ("task", "batch")]
    (found,) = session.run(["logits"], {"images": images.numpy(), "task": task.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected)


@pytest.mark.long
def test_what_onnx_has_no_operator_for_is_refused(tmp_path, capsys):
    for library in ("onnx", "onnxscript"):
        pytest.importorskip(library, reason="needs the extra onnx")
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=12)
    make_agent("hash", env, by="instance").save(tmp_path / "hash.pt")
    assert run("extract", tmp_path / "hash.pt", "--out", tmp_path / "hash.onnx") == 2
    said = capsys.readouterr().err
    assert "cannot be written to .onnx, there is no aten.view in ONNX: write .pt2" in said and said.count("\n") == 1
    assert not (tmp_path / "hash.onnx").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("prune none.pt --out small.pt", "no such checkpoint: none.pt"),
        ("prune file --out small.pt", "file is not a checkpoint of routing_gym"),
        ("prune CHECKPOINT --out file/small.pt", "the output folder file cannot be written"),
        ("prune CHECKPOINT --out folder.pt2", "--out must name a file, folder.pt2 is a folder"),
        ("prune CHECKPOINT --out small.pt --env-options num_blocks=3", "does not fit this environment"),
        ("prune random.pt --out small.pt", r"task 0 has no single route: .* 'random' takes the choices \[0, 1"),
        ("prune own.pt --out small.pt", "an environment that no id and options describe"),
        ("extract none.pt --task 0 --out new/task.pt2", "no such checkpoint: none.pt"),
        (
            "extract CHECKPOINT --task 4 --out new/task.pt2",
            r"--task must be an integer in \[0, 4\), its tasks have no names, got '4'",
        ),
        ("extract CHECKPOINT --task -1 --out new/task.pt2", r"--task must be an integer in \[0, 4\), .* got '-1'"),
        ("extract CHECKPOINT --task 0 --out new/task.pt", r"--out must end in \.pt2 .* or \.onnx .*, got new/task\.pt"),
        ("extract CHECKPOINT --task 0 --out file/task.pt2", "the output folder file cannot be written"),
        ("extract CHECKPOINT --task 0 --out folder.pt2", "--out must name a file, folder.pt2 is a folder"),
        ("extract random.pt --task 2 --out task.pt2", "task 2 has no single route.*; without a task"),
        ("extract random.pt --out all.pt2", "agent 'random' with this RoutedMLP cannot be exported"),
        ("extract CHECKPOINT --out all.pt2 --k-cpt 1e-6", "agent 'wpl' was made for an environment without price"),
    ],
)
def test_what_cannot_be_done_is_refused_and_writes_nothing(command, message, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pt2").mkdir()
    if "random.pt" in command:
        small = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", 1, "--agent", "random", "--out", "trained"]
        assert run("train", *small) == 0
        (tmp_path / "trained" / "checkpoint.pt").rename("random.pt")
    if "own.pt" in command:
        agent = load_with_env(checkpoint)
        agent.env.spec = None
        agent.save("own.pt")
    there = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert run(*command.replace("CHECKPOINT", str(checkpoint)).split()) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert sorted(tmp_path.rglob("*")) == there


def test_a_write_that_fails_leaves_the_old_file(checkpoint, tmp_path, monkeypatch):
    for arguments, out in ((["prune", checkpoint], "small.pt"), (["extract", checkpoint, "--task", 1], "task.pt2")):
        (tmp_path / out).write_text("old")
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
            assert run(*arguments, "--out", tmp_path / out) == 130
        assert (tmp_path / out).read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.pt", "task.pt2"]


def test_a_pruned_checkpoint_loads_into_a_network_of_its_size(checkpoint, tmp_path):
    assert run("prune", checkpoint, "--out", tmp_path / "small.pt") == 0
    small = load_with_env(tmp_path / "small.pt")
    network = RoutedMLP((1, 4, 4), 3, small.env.network.block_counts, width=8, recurrent=True, layers=4)
    env = type(small.env)(network, small.env.datasets, 4)
    assert torch.equal(Agent.load(tmp_path / "small.pt", env).routes, small.routes)


def test_tasks_go_by_their_names(tmp_path, capsys):
    own = ["--plugin", Path(__file__).parents[2] / "docs/examples/own_data.py"]
    folder = tmp_path / "run"
    assert run("train", "--env", "example/DigitQuestions-v0", "--epochs", 1, "--out", folder, *own) == 0
    assert len(row(capsys.readouterr().out, "1 prime")) == 2
    assert not (folder / "best.pt").exists()  # the best by what? there is no validation split
    assert json.loads((folder / "results.json").read_text())[0]["task_names"] == ["even", "prime", "above 4"]
    assert run("evaluate", folder / "checkpoint.pt", "--routes", tmp_path / "routes.csv", *own) == 0
    assert len(row(capsys.readouterr().out, "2 above 4")) == 2
    routes = list(csv.DictReader((tmp_path / "routes.csv").open()))
    assert {(row["task"], row["task_name"]) for row in routes} == {("0", "even"), ("1", "prime"), ("2", "above 4")}
    for task in ("prime", "1"):
        out = tmp_path / f"{task}.pt2"
        assert run("extract", folder / "checkpoint.pt", "--task", task, "--out", out, *own) == 0 and out.exists()
    capsys.readouterr()
    assert run("extract", folder / "checkpoint.pt", "--task", "odd", "--out", out, *own) == 2
    told = "--task must be an integer in [0, 3) or one of ['even', 'prime', 'above 4'], got 'odd'"
    assert told in capsys.readouterr().err


FEATURES = """
import numpy as np
import torch
from routing_gym import MultiTaskDataset, register_dataset, register_env

def features():
    numbers = np.random.default_rng(0)
    task, label = np.arange(120) % 2, np.arange(120) // 2 % 3
    seen = (numbers.normal(size=(120, 1, 1, 7)) + label[:, None, None, None]).astype(np.float32)
    train = MultiTaskDataset.from_arrays(seen, label, task, name="features")
    other = MultiTaskDataset.from_arrays(seen, label, task, split="validation", like=train)
    return {"train": train, "validation": other}

register_dataset("features", features)
register_env("own/Features-v0", dataset="features", network="mlp")
"""


def test_data_of_floats_without_a_test_split_is_judged_on_what_there_is(tmp_path, capsys):
    (tmp_path / "own.py").write_text(FEATURES)
    plugin, checkpoint, out = ["--plugin", tmp_path / "own.py"], tmp_path / "run" / "checkpoint.pt", tmp_path / "y.pt2"
    agent = ["--agent", "task-specific-all", "--split", "validation"]
    assert run("train", "--env", "own/Features-v0", *agent, "--epochs", 2, "--out", checkpoint.parent, *plugin) == 0
    assert run("extract", checkpoint, "--task", 1, "--out", out, *plugin) == 0
    printed = capsys.readouterr().out
    assert "split validation" in printed and row(printed, "routed")[1] == row(printed, "extracted")[1]
    assert torch.export.load(out).module()(torch.randn(3, 1, 1, 7)).shape == (3, 3)
    assert run("prune", checkpoint, "--out", tmp_path / "small.pt", *plugin) == 0
    assert "split validation" in capsys.readouterr().out
