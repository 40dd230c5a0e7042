"""Options from a file: `config.toml` performs the very same run, and what is wrong with a file is a line."""

import dataclasses
import shlex

import pytest
from commands import run
from hypothesis import given, settings
from hypothesis import strategies as st
from records import strict, untimed

from routing_gym.agents import AGENTS, AgentConfig, register_agent
from routing_gym.experiments.cli import parsed
from routing_gym.experiments.engine.arguments import read_config
from routing_gym.experiments.engine.report import Contents
from routing_gym.experiments.engine.settings import (
    TrainingSettings,
    config_text,
    filled_up,
    parse_options,
    resolved_agent_options,
)

pytestmark = pytest.mark.usefixtures("no_pictures")

ENV = "routing_gym/SyntheticMTL-v0"
SMALL = ["--env", ENV, "--epochs", "1", "--batch-size", "256"]
EXITS = ["network=pyramid-chain", "image_size=8", "images_per_class=9"]
STRANGE = "it's [red]\"none\"[/]\\ {x: '1'}\n"


class Odd(AGENTS["shared"]):
    """Takes options of every kind."""

    @dataclasses.dataclass(frozen=True)
    class Config(AgentConfig):
        nothing: int | None = 3
        several: tuple[float, ...] = (1.0, 2.5)
        endless: float = float("inf")
        tiny: float = 1e-300
        text: str = STRANGE
        number: str = "3"
        none: str = "none"
        quoted: str = "'none'"
        flag: bool = False


# ------------------------------------------------------------------------------------------------------- the very same


@pytest.mark.long
@pytest.mark.parametrize(
    ("agent", "options"),
    [
        ("wpl", ["--agent-options", "gamma=0.9", "--env-options", "width=8"]),
        ("sb3:PPO", []),
        ("sb3:DQN", ["--env-options", "replay_batch=32"]),
        ("gumbel", ["--seed", 3, "--patience", 1]),
        ("codinet", ["--env-options", "network=resnet32-skip", "shift=1", "images_per_class=9", "--compare-paths"]),
        ("actor", ["--split", "validation", "--env-options", *EXITS, "class_weights=[1,2,1]", "schedule=step"]),
        ("cross-stitch", []),
        ("shared-with-task", ["--keep-logits", "--callbacks", "csv"]),
        ("odd", []),
        ("odd", ["--agent-options", "nothing=none", "several=(1,1e999)", "endless=-inf", "text=[1]'", "flag=true"]),
    ],
)
def test_a_written_configuration_performs_the_very_same_run(agent, options, tmp_path, capsys):
    register_agent("odd", Odd)
    assert run("train", *SMALL, "--agent", agent, *options, "--out", tmp_path / "one") == 0
    assert run("train", "--config", tmp_path / "one" / "config.toml", "--out", tmp_path / "two") == 0
    one, two = (strict(tmp_path / name / "results.json") for name in ("one", "two"))
    assert [untimed(record) for record in one] == [untimed(record) for record in two]
    texts = [(tmp_path / name / "config.toml").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1]


@pytest.mark.long
def test_the_report_says_how_to_go_on_with_a_run_of_a_comparison(tmp_path, capsys):
    for out in ("whole", "part"):
        arguments = ["compare", *SMALL, "--agents", "actor", "--env-options", *EXITS, "--seeds", 1]
        assert run(*arguments, "--out", tmp_path / out) == 0
    folder = tmp_path / "part" / "actor" / "seed-0"
    (folder / "results.json").unlink()
    (tmp_path / "part" / "results.json").unlink()
    contents = Contents()
    contents.take(tmp_path / "part")
    (unfinished,) = contents.unfinished
    assert run(*shlex.split(unfinished["command"])[1:]) == 0, capsys.readouterr().err
    (one,), (two,) = strict(folder / "results.json"), strict(tmp_path / "whole" / "results.json")
    assert untimed(one) == untimed(two)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.sampled_from(
    ["none", "'none'", "''none", "none'", "None", "true", "inf", "-inf", "3", "[1]", "1e5", "'a'", ""]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts | names,
    lambda part: st.lists(part, max_size=3),
    max_leaves=6,
)


@given(values)
@settings(max_examples=150)
def test_values_of_options_come_back_as_they_were(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "options.toml"
    path.write_bytes(config_text({"env": ENV, "agent_options": {"a": value}}).encode())
    options = read_config(path)
    found = parse_options("agent_options", filled_up((), options["agent_options"]))["a"]
    assert found == value and repr(found) == repr(value)  # repr tells 1 from True and 1.0
    assert options["env"] == ENV


def test_tuples_become_lists_and_defaults_come_back(tmp_path):
    register_agent("odd", Odd)
    options = resolved_agent_options("odd", ())
    (tmp_path / "odd.toml").write_text(config_text({"agent_options": options}))
    made = parsed(["train", f"--config={tmp_path / 'odd.toml'}", "--seed", "3"])
    found = parse_options("agent_options", made.agent_options)
    assert made.seed == 3 and made.training == TrainingSettings()
    assert found == {**options, "several": list(options["several"])} and found["text"] == STRANGE


# ------------------------------------------------------------------------------------------------------------- by hand


COMPARE = f"""
env = "{ENV}"
epochs = 1
batch_size = 256
agents = ["wpl", "shared"]
seeds = 1
callbacks = []

[env_options]
width = 8
rewards = []
class_weights = "none"

[agent_options]
"wpl.gamma" = 0.9
"wpl.policy_rate" = 0.01
"""
SWEEP = COMPARE.replace('agents = ["wpl", "shared"]', 'grid = ["gamma=0.5,0.9"]').replace("wpl.p", "p").replace(
    '"wpl.gamma" = 0.9\n', ""
)  # fmt: skip


def test_compare_takes_a_file(tmp_path):
    file = tmp_path / "compare.toml"
    file.write_text(COMPARE)
    assert run("compare", "--config", file, "--out", tmp_path / "one") == 0
    wpl, shared = strict(tmp_path / "one" / "results.json")
    assert (wpl["config"]["gamma"], wpl["config"]["policy_rate"], wpl["batch_size"]) == (0.9, 0.01, 256)
    assert wpl["asked"]["env_options"]["width"] == shared["asked"]["env_options"]["width"] == 8
    assert not list(tmp_path.rglob("events*"))
    # What is on the command line counts more, of options NAME=VALUE each by its name.
    given = ["--agents", "wpl", "--agent-options", "wpl.gamma=0.3", "--env-options", "layers=2", "--epochs", 2]
    assert run("compare", *given, "--config", file, "--out", tmp_path / "two") == 0
    (record,) = strict(tmp_path / "two" / "results.json")
    assert (record["config"]["gamma"], record["config"]["policy_rate"], record["epochs"]) == (0.3, 0.01, 2)
    options = record["asked"]["env_options"]
    assert (options["width"], options["layers"]) == (8, 2)


@pytest.mark.long
def test_sweep_takes_a_file_and_what_it_finds_is_read_back(tmp_path):
    (tmp_path / "sweep.toml").write_text(SWEEP)
    assert run("sweep", "--config", tmp_path / "sweep.toml", "--out", tmp_path / "out") == 0
    records = strict(tmp_path / "out" / "results.json")
    assert [(r["config"]["gamma"], r["config"]["policy_rate"]) for r in records] == [(0.5, 0.01), (0.9, 0.01)]
    tuned = ["--tuned", "--tuned-dir", tmp_path / "out" / "tuned", "--out", tmp_path / "again"]
    assert run("train", *SMALL, *tuned) == 0
    (record,) = strict(tmp_path / "again" / "results.json")
    assert record["config"]["policy_rate"] == 0.01


def test_tuned_values_of_every_kind_are_read_back(tmp_path):
    register_agent("odd", Odd)
    file = tmp_path / "tuned" / "SyntheticMTL-v0" / "odd.toml"
    file.parent.mkdir(parents=True)
    file.write_text(config_text({"env_options": {}, "agent_options": resolved_agent_options("odd", ("nothing=none",))}))
    tuned = ["--tuned", "--tuned-dir", tmp_path / "tuned"]
    assert run("train", *SMALL, "--agent", "odd", *tuned, "--out", tmp_path / "out") == 0
    (record,) = strict(tmp_path / "out" / "results.json")
    assert record["config"]["text"] == STRANGE and record["config"]["none"] == "none"
    assert record["config"]["nothing"] is None and record["config"]["number"] == "3"


def test_settings_that_look_like_anything_are_swept_and_shown_as_they_are(tmp_path, capsys):
    register_agent("odd", Odd)
    grid = ["--agent", "odd", "--grid", "text=/a b,[red]x[/],<b>", "--seeds", 1]
    assert run("sweep", *SMALL, *grid, "--out", tmp_path / "out") == 0
    texts, records = ["/a b", "[red]x[/]", "<b>"], strict(tmp_path / "out" / "results.json")
    assert [record["config"]["text"] for record in records] == texts
    assert [record["setting"] for record in records] == [f"text={text}" for text in texts]
    assert len(list((tmp_path / "out").glob("[!.]*/seed-100/results.json"))) == 3
    printed = capsys.readouterr().out
    assert "text=[red]x[/], seed 100: epoch 1/1" in printed and "text=<b>  " in printed


# --------------------------------------------------------------------------------------------------------------- wrong


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [
        ("train", "epoch = 3", "this command has no option 'epoch'; it has agent, agent_options, "),
        ("train", "seeds = 3", "this command has no option 'seeds'"),
        ("train", "[training]\nepochs = 1", "this command has no option 'training'"),
        ("train", "epochs = 'many'", "epochs must be of type int, got 'many'"),
        ("train", "epochs = 1.5", "epochs must be of type int, got 1.5"),
        ("train", "seed = true", "seed must be of type int, got True"),
        ("train", "epochs = 'none'", "epochs must be of type int, got None"),
        ("train", "[epochs]\na = 1", "epochs must be of type int, got {'a': 1}"),
        ("train", "\ufeffplugin = 'x.py'", "plugin must be of type tuple[pathlib.Path, ...], got 'x.py'"),
        ("train", "callbacks = 'csv'", "callbacks must be of type tuple[str, ...], got 'csv'"),
        ("train", "callbacks = [3]", "callbacks must be of type str, got 3"),
        ("train", "judge_at = ['x']", "judge_at must be of type float, got 'x'"),
        ("train", "split = 'all'", "split must be 'train' or 'validation' or 'test', got 'all'"),
        ("train", "out = 3", "out must be of type Path, got 3"),
        ("train", "out = ''", "out is empty: name a folder or a file"),
        ("train", "plugin = [1]", "plugin must be of type Path, got 1"),
        ("train", "[env_options]\nwidht = 3", "unexpected keyword argument 'widht'"),
        ("train", "[env_options]\nwidth = '3'", "width must be of type int, got '3'"),
        ("train", "[agent_options]\ngamma = [1]", "gamma must be of type float, got [1]"),
        ("compare", "[agent_options.wlp]\ngamma = 1.0", "AGENT.NAME=VALUE"),
        ("compare", "launcher = 'cloud'", "launcher must be 'local' or 'print' or"),
        ("compare", "equal = 'parameter'", "equal must be 'parameters' or 'macs' or None, got 'parameter'"),
        ("compare", "equal = ['macs']", "equal must be 'parameters' or 'macs' or None, got ['macs']"),
        ("compare", "patience = 'x'", "patience must be of type int or None, got 'x'"),
        ("sweep", "agents = ['wpl']", "this command has no option 'agents'"),
        ("train", "epochs = ", "cannot be read: Invalid value"),
        ("train", "epochs = 1\nepochs = 2", "cannot be read: Cannot overwrite a value"),
        ("train", b"\xff", "cannot be read: 'utf-8' codec can't decode"),
        ("train", None, "cannot be read: No such file or directory"),
    ],
)
def test_what_is_wrong_with_a_file_is_a_line(command, content, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / "c.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    given = ["--grid", "gamma=1.0"] if command == "sweep" else []
    before = sorted(tmp_path.rglob("*"))
    env = [] if content is not None and b"env" in (tmp_path / "c.toml").read_bytes() else ["--env", ENV]
    assert run(command, "--config", "c.toml", *given, *env) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "folder"], "--config folder cannot be read: Is a directory"),
        (["--config", "c.toml", "--config", "c.toml"], "--config takes one file"),
        (["--config", "c.toml", "--config=c.toml"], "--config takes one file"),
        (["--config"], "--config takes one file"),
        (["--config="], "--config takes one file"),
    ],
)
def test_one_file_is_taken(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "c.toml").write_text(f'env = "{ENV}"')
    assert run("train", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "results").exists()


def test_what_a_command_needs_may_stand_beside_a_file_or_in_it(tmp_path, capsys):
    (tmp_path / "c.toml").write_text('split = "train"')
    (tmp_path / "d.toml").write_text('checkpoint = "x.pt"')
    beside = parsed(["evaluate", "y.pt", "--config", str(tmp_path / "c.toml")])
    assert (str(beside.checkpoint), beside.split) == ("y.pt", "train")
    assert str(parsed(["evaluate", "--config", str(tmp_path / "d.toml")]).checkpoint) == "x.pt"
    with pytest.raises(SystemExit):
        parsed(["evaluate", "--config", str(tmp_path / "c.toml")])
    assert "Missing from routing-gym evaluate" in "".join(capsys.readouterr())


def test_the_home_of_a_user_is_found_wherever_a_path_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.toml").write_text('out = "~/zz"\nplugin = ["~/p.py"]\ndata_dir = "~/a"\n')
    command = parsed(["train", "--config", str(tmp_path / "c.toml"), "--data-dir=~/d", "--tuned-dir=~"])
    assert (command.out, command.plugin, command.tuned_dir) == (tmp_path / "zz", (tmp_path / "p.py",), tmp_path)
    assert command.training.data_dir == f"{tmp_path}/d" and parsed(["suite", "--data-dir", "a~b/"]).data_dir == "a~b/"
    assert parsed(["list", "--plugin=~/p.py", "~/q.py"]).plugin == (tmp_path / "p.py", tmp_path / "q.py")
    assert run("train", "--out=~nobody-here/x") == 2
    assert "--out ~nobody-here/x: there is no such user" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--out", "o\udce9"], ["--plugin=pl\udce9.py"], ["--config", "c\udce9.toml"]])
def test_names_that_are_no_text_are_refused(arguments, tmp_path, monkeypatch, capsys):
    """As the bytes of a name come to Python that are not UTF-8."""
    monkeypatch.chdir(tmp_path)
    assert run("train", *SMALL, *arguments) == 2
    said = capsys.readouterr().err
    assert "arguments must be UTF-8, got '" in said and "udce9" in said and not list(tmp_path.iterdir())


def test_options_of_an_agent_may_be_a_table(tmp_path):
    file = tmp_path / "compare.toml"
    file.write_text(
        'agents = ["wpl"]\nepochs = 1\nseeds = 1\n[agent_options]\nwpl.gamma = 0.9\n"wpl.policy_rate" = 0.02\n'
    )
    assert run("compare", "--config", file, "--out", tmp_path / "out") == 0
    (record,) = strict(tmp_path / "out" / "results.json")
    assert (record["config"]["gamma"], record["config"]["policy_rate"]) == (0.9, 0.02)


PLUGIN = """
import dataclasses
from routing_gym.agents import AGENTS, AgentConfig, register_agent

class Mine(AGENTS["shared"]):
    @dataclasses.dataclass(frozen=True)
    class Config(AgentConfig):
        rate: float = 0.1
        table: dict = dataclasses.field(default_factory=dict)

register_agent("mine", Mine)
"""


def test_options_of_an_agent_that_a_plug_in_registers_may_be_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plug.py").write_text(PLUGIN)
    tables = 'plugin = ["plug.py"]\n[agent_options]\n"mine.table" = {a = 1}\nmine.rate = 0.3\n'
    (tmp_path / "c.toml").write_text(f'agents = ["mine"]\nequal = "none"\n{tables}')
    command = parsed(["compare", "--config", "c.toml"])
    assert command.agent_options == ("mine.table={'a': 1}", "mine.rate=0.3") and command.equal is None
    (tmp_path / "t.toml").write_text('agent = "mine"\n[agent_options]\nshared = {a = 1}\n')
    assert parsed(["train", "--config", "t.toml"]).agent_options == ("shared={'a': 1}",)  # the table is the value
