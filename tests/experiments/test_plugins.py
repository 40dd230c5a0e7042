"""Plug-ins, and the template for agents."""

import ast
import json
import re
import shlex
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from commands import forget_plugins

from routing_gym.agents import AGENTS, agent_class
from routing_gym.agents.base import registry
from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.metrics import METRICS

SMALL = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "1", "--seeds", "1"]


@pytest.mark.long
@pytest.mark.usefixtures("no_pictures")
def test_the_template_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-agent", "my-bandit"]) == 0
    command = " ".join(capsys.readouterr().out.split()).partition("Run it: routing-gym ")[2].split()
    assert command[:3] == ["compare", "--plugin", "my_bandit.py"]
    options = ["--epochs", "6", "--seeds", "1", "--agent-options", "my-bandit.rate=0.2", "--out", "out"]
    assert main([*command, *options, "--env-options", "learning_rate=0.005"]) == 0
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert records[0]["agent"] == "my-bandit" and records[0]["config"]["rate"] == 0.2
    assert records[0]["test_accuracy"] > 0.96
    assert main(["new-agent", "my-bandit", "--out", "other.py"]) == 2  # the name is known by now
    assert main(["list", "my-bandit", "--plugin", "my_bandit.py"]) == 0
    assert "noise" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such plug-in: .*plug.py"),
        ("x = 1", "plug.py registers nothing: call register_agent"),
        ("import torch\nraise KeyError('no')", r"plug.py failed: KeyError: 'no' \(.*plug.py, line 2\)"),
        ("import torch\ndef f(:", r"plug.py failed: SyntaxError: .*\(.*plug.py, line 2\)"),
        ("import torch\ntorch.zeros(2).view(3)", r"plug.py failed: RuntimeError: .*\(.*plug.py, line 2\)"),
        (
            "from routing_gym.agents import *\nclass A(Agent):\n    def act(self, o, c): ...\nregister_agent('wpl', A)",
            "the name 'wpl' belongs to routing_gym.agents.wpl.WPL already",
        ),
    ],
)
def test_what_a_plug_in_does_wrong_is_said(content, message, tmp_path, capsys):
    path = tmp_path / "plug.py"
    if content is not None:
        path.write_text(content)
    assert main(["compare", "--plugin", str(path), *SMALL, "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_pictures")
def test_another_name_for_what_is_known_is_enough(tmp_path):
    (tmp_path / "alias.py").write_text("from routing_gym.agents import *\nregister_agent('learner', WPL)")
    out = ["--agents", "learner", "--plugin", str(tmp_path / "alias.py"), "--out", str(tmp_path / "out")]
    assert main(["compare", *SMALL, *out]) == 0
    checkpoint = str(tmp_path / "out" / "learner" / "seed-0" / "checkpoint.pt")
    assert main(["evaluate", checkpoint]) == 0
    del AGENTS["learner"]
    assert main(["evaluate", checkpoint]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["My Agent"], "a name has lower-case letters, digits and single dashes, got 'My Agent'"),
        (["wpl"], "the name 'wpl' belongs to an agent already"),
        (["new", "--out", "there.py"], "there.py exists already"),
        (["new", "--out", "folder/foo.txt"], "--out must name a Python file, which ends with .py, got folder/foo.txt"),
        (["new", "--out", "foo"], "--out must name a Python file, which ends with .py, got foo"),
    ],
)
def test_names_of_templates_are_checked(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.py").write_text("mine")
    assert main(["new-agent", *arguments]) == 2
    assert message in capsys.readouterr().err and (tmp_path / "there.py").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there.py"]


@pytest.mark.parametrize("name", ["a\\Users.py", "my agents/x y.py", 'it"""s.py', "plain.py"])
def test_a_template_says_how_its_file_is_run_whatever_its_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-agent", "winpath", "--out", name]) == 0
    said = " ".join(capsys.readouterr().out.split()).partition("Run it: ")[2]
    doc = ast.get_docstring(ast.parse((tmp_path / name).read_text()))
    for command in (said, doc.partition("beside others: ")[2]):
        assert shlex.split(command)[:4] == ["routing-gym", "compare", "--plugin", name]


def test_installed_packages_offer_agents(monkeypatch):
    entry = EntryPoint("elsewhere", "routing_gym.agents:RandomAgent", "routing_gym.agents")
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([entry]) if "agents" in group else ())
    assert "elsewhere" not in AGENTS
    assert agent_class("elsewhere") is AGENTS["random"]
    assert AGENTS["elsewhere"] is AGENTS["random"]


def test_a_broken_package_is_told_of_and_others_go_on(monkeypatch, capsys):
    where = {"ours": "routing_gym.agents:RandomAgent", "gone": "no_such_module:Agent", "mere": "pathlib:Path"}
    entries = EntryPoints([EntryPoint(name, value, "routing_gym.agents") for name, value in where.items()][::-1])
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    monkeypatch.setattr(registry, "_BROKEN", {})
    with pytest.warns(UserWarning, match="agent .* cannot be loaded") as told, pytest.raises(ValueError, match="'wpl'"):
        agent_class("wlp")
    assert len(told) == 2 and "agent 'gone' of a package (no_such_module:Agent)" in str(told[1].message)
    assert agent_class("ours") is AGENTS["random"]  # and nothing more is said
    with pytest.raises(ValueError, match=r"'gone' .* cannot be loaded: ModuleNotFoundError: No module") as refused:
        agent_class("gone")
    assert isinstance(refused.value.__cause__, ModuleNotFoundError)
    assert main(["compare", *SMALL, "--agents", "gone"]) == 2
    assert "agent 'gone' of a package (no_such_module:Agent) cannot be loaded" in capsys.readouterr().err


def test_a_metric_alone_makes_a_plug_in_and_is_in_the_report(tmp_path):
    (tmp_path / "halves.py").write_text(
        "from routing_gym.experiments.engine.metrics import Metric, register_metric\n"
        'register_metric(Metric("half", "half", lambda judged: 0.5, digits=1, curve=True))\n'
    )
    arguments = ["compare", "--plugin", str(tmp_path / "halves.py"), *SMALL, "--agents", "shared"]
    try:
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    finally:
        METRICS.pop("half", None)
        forget_plugins("halves")
    (record,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["half"] == 0.5 and record["curve"]["half"] == [0.5] * record["epochs"]
    assert '"name":"half"' in (tmp_path / "out" / "report.html").read_text()


PLUGIN = """
from routing_gym.agents import register_agent
from routing_gym.agents.fixed import Shared

class Mine(Shared):
    number = {}

register_agent("mine", Mine)
"""


@pytest.mark.usefixtures("no_pictures")
def test_runs_of_two_versions_of_a_plug_in_are_not_mixed(tmp_path, capsys):
    path, out, one = tmp_path / "plug.py", str(tmp_path / "out"), str(tmp_path / "one")
    env = SMALL[:2]
    compare = ["compare", "--agents", "mine", "shared", *env, "--epochs", "1", "--out", out, "--plugin", str(path)]
    train = ["train", "--agent", "mine", *env, "--out", one, "--plugin", str(path)]

    def of_version(number):
        path.write_text(PLUGIN.format(number))
        forget_plugins("plug")
        AGENTS.pop("mine", None)

    of_version(1)
    assert main([*compare, "--seeds", "1"]) == main([*train, "--epochs", "1"]) == 0
    (record,) = json.loads((tmp_path / "out/mine/seed-0/results.json").read_text())
    assert list(record["asked"]["plugins"]) == ["plug.py"]
    assert "plugins" not in json.loads((tmp_path / "out/shared/seed-0/results.json").read_text())[0]["asked"]
    of_version(2)
    capsys.readouterr()
    (tmp_path / "one/results.json").unlink()  # as if it had been interrupted
    for command in ([*compare, "--seeds", "2", "--resume"], [*train, "--epochs", "2", "--resume"]):
        assert main(command) == 2
        assert "another version of a plug-in (plugins plug.py)" in " ".join(capsys.readouterr().err.split())
    of_version(1)
    assert main([*compare, "--seeds", "2", "--resume"]) == main([*train, "--epochs", "2", "--resume"]) == 0
    of_version(2)  # others do not mind
    assert main([*compare[:2], "shared", *compare[4:], "--seeds", "3", "--resume"]) == 0


def test_what_follows_a_plug_in_is_taken_for_one(tmp_path, capsys):
    assert main(["list", "--plugin", "plug.py", "routing_gym/DigitsMTL-v0"]) == 2
    assert "no such plug-in: plug.py" in capsys.readouterr().err
    (tmp_path / "plug.py").write_text(PLUGIN.format(1))
    assert main(["list", "--plugin", str(tmp_path / "plug.py"), "mine/Vectors-v0"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no such plug-in: mine/Vectors-v0: --plugin takes all that follows it" in said


DATA = """
import numpy as np
from routing_gym import MultiTaskDataset, register_env, register_dataset

def questions():
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8)
    answers = images.reshape(60, -1).mean(1) > {}
    split = MultiTaskDataset.from_arrays(images, answers.astype(int))
    return dict.fromkeys(("train", "validation", "test"), split)

register_dataset("questions", questions)
register_env("example/Questions-v0", dataset="questions", network="mlp")
"""


@pytest.mark.usefixtures("no_pictures")
def test_two_versions_of_data_are_not_joined(tmp_path, capsys):
    path = tmp_path / "data.py"
    compare = ["compare", "--env", "example/Questions-v0", "--seeds", "1", "--epochs", "1", "--batch-size", "20"]
    compare += ["--plugin", str(path), "--out", str(tmp_path / "out"), "--agents"]

    def of_version(limit):
        path.write_text(DATA.format(limit))
        forget_plugins("data")

    of_version(127)
    assert main([*compare, "shared"]) == 0
    of_version(0)
    assert main([*compare, "random-fixed", "--resume"]) == 2
    assert "another version of a plug-in (plugins data.py)" in " ".join(capsys.readouterr().err.split())
    of_version(127)
    assert main([*compare, "random-fixed", "--resume"]) == 0


@pytest.mark.usefixtures("no_pictures")
def test_files_of_one_name_are_two_plug_ins(tmp_path, capsys):
    paths = [tmp_path / folder / "agent.py" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(PLUGIN.format(1).replace('"mine"', f'"mine-{path.parent.name}"'))
    compare = ["compare", *SMALL[:2], "--agents", "mine-a", "mine-b", "--epochs", "1", "--out", str(tmp_path / "out")]
    compare += ["--plugin", *map(str, paths)]
    assert main([*compare, "--seeds", "1"]) == 0
    paths[0].write_text(PLUGIN.format(2).replace('"mine"', '"mine-a"'))
    forget_plugins("agent")
    for name in ("mine-a", "mine-b"):
        del AGENTS[name]
    assert main([*compare, "--seeds", "2", "--resume"]) == 2
    assert "mine-a/seed-0/results.json holds a run of another version of a plug-in" in capsys.readouterr().err
