"""Sweeps: what is tried, what goes on, and the settings they leave for `--tuned`."""

import dataclasses
import json
import shlex
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import strict, untimed

from routing_gym.agents import AGENTS
from routing_gym.experiments.cli import main, parsed
from routing_gym.experiments.engine.arguments import SHIPPED
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.run import Run
from routing_gym.experiments.engine.settings import TrainingSettings, folder_name
from routing_gym.experiments.sweep import Sweep, axis_of
from routing_gym.experiments.train import Train

pytestmark = pytest.mark.usefixtures("no_pictures")

ENV = "routing_gym/SyntheticMTL-v0"
SMALL = ["--env", ENV, "--epochs", "1", "--batch-size", "256"]


def run(*arguments):
    return main([str(argument) for argument in arguments])


@given(st.floats(0, 1, exclude_max=True))
def test_values_of_a_range_lie_in_it(share):
    def value(item):
        name, _, text = axis_of(item).text(share).partition("=")
        assert name == "a"
        return text

    assert 1 <= int(value("a=1..4")) <= 4
    assert 1 <= int(value("a=1..4:log")) <= 4
    assert 0.5 <= float(value("a=0.5..2")) <= 2
    assert 1e-4 * 0.999 <= float(value("a=1e-4..1e-1:log")) <= 1e-1
    assert value("a=x,y,z") == "xyz"[int(3 * share)]


def test_a_logarithmic_range_is_even_in_powers():
    axis = axis_of("rate=0.001..1.0:log")
    assert [axis.text(share) for share in (0, 1 / 3, 2 / 3)] == ["rate=0.001", "rate=0.01", "rate=0.1"]
    whole = axis_of("width=3..5")
    assert [whole.text(share) for share in (0, 0.34, 0.99)] == ["width=3", "width=4", "width=5"]
    signed = axis_of("k=-3..3")
    assert [signed.text((place + 0.5) / 7) for place in range(7)] == [f"k={number}" for number in range(-3, 4)]
    powers = axis_of("k=1..511:log")
    assert [powers.text(share) for share in (0, 1 / 3, 2 / 3, 0.9999)] == ["k=1", "k=8", "k=64", "k=511"]


@pytest.mark.parametrize(
    "item",
    ["a", "a=", "=1", "a=1,2,1", "a=0.01,1e-2", "a=1..1", "a=2..1", "a=0..1:log", "a=1..2:lin", "a=x..y", "a=1..2..3"],
)
def test_what_is_no_axis_is_refused(item):
    with pytest.raises(UsageError, match="--grid takes"):
        axis_of(item)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "policy_rate=0.1..0.2"], "--search grid tries every value, policy_rate has a range"),
        (["--grid", "policy_rate=0.1..0.2", "--search", "tpe", "--launcher", "print"], "waits for what came of"),
        (["--grid", "gamma=1.0", "--search", "random", "--trials", 0], "--trials must be at least 1"),
    ],
)
def test_searches_that_cannot_be_are_refused(options, message, tmp_path, capsys):
    assert run("sweep", *SMALL, *options, "--out", tmp_path) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("trials", "drawn"), [(1, 1), (5, 5), (99, 6)])
def test_settings_drawn_at_random_are_as_many_as_are_asked_for_and_all_different(trials, drawn):
    sweep = Sweep(grid=("gamma=0.8,0.9,1.0", "env.width=8,16"), search="random", trials=trials)
    (settings,) = sweep._proposed(sweep._axes(), lambda setting: 0.0)
    assert len(set(settings)) == len(settings) == drawn


@pytest.mark.parametrize(
    ("grid", "trials", "different"),
    [(("entropy=0.0,0.1,0.2",), 4, 3), (("a=1..4", "b=x,y"), 8, 8), (("a=0.0..1.0",), 9, 9), (("a=1,2,3,4",), 2, 2)],
)
def test_tpe_asks_again_while_proposals_repeat_and_settings_are_left(grid, trials, different):
    pytest.importorskip("optuna", reason="needs the extra optuna")
    sweep = Sweep(grid=grid, search="tpe", trials=trials)
    # One is far better than the others, so that it is proposed over and over.
    settings = [each for some in sweep._proposed(sweep._axes(), lambda s: float("2" in s[0])) for each in some]
    assert len(set(settings)) == len(settings) == different


@pytest.mark.long
@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_search_is_the_same_again_and_goes_on(search, tmp_path, capsys):
    if search == "tpe":
        pytest.importorskip("optuna", reason="needs the extra optuna")
    grid = ["--grid", "policy_rate=0.001..0.3:log", "env.width=8..16", "gamma=0.9,1.0"]
    arguments = ["sweep", *SMALL, *grid, "--search", search, "--trials", 6, "--seeds", 1]
    assert run(*arguments, "--out", tmp_path / "whole") == 0
    whole = strict(tmp_path / "whole" / "results.json")
    assert len({record["setting"] for record in whole}) == len(whole) == 6
    assert all(0.001 <= record["config"]["policy_rate"] <= 0.3 for record in whole)
    assert run(*arguments, "--out", tmp_path / "part", "--trials", 4) == 0
    capsys.readouterr()
    assert run(*arguments, "--out", tmp_path / "part") == 0
    assert capsys.readouterr().out.count("epoch 1/1") == 2
    part = strict(tmp_path / "part" / "results.json")
    assert [untimed(record) for record in part] == [untimed(record) for record in whole]


def test_a_sweep_grows_and_another_one_is_refused(tmp_path, capsys):
    arguments = ["sweep", *SMALL, "--seeds", 1, "--out", tmp_path, "--agent"]
    assert run(*arguments, "wpl", "--grid", "policy_rate=0.01,0.02") == 0
    assert run(*arguments, "wpl", "--grid", "policy_rate=0.01,0.02,0.03") == 0
    assert len(before := strict(tmp_path / "results.json")) == 3
    capsys.readouterr()
    assert run(*arguments, "wpl", "--grid", "policy_rate=0.03,0.04") == 2
    assert "holds policy_rate=0.01, which is not to be tried now" in capsys.readouterr().err
    assert run(*arguments, "reinforce", "--grid", "learning_rate=0.03") == 2
    assert "holds a sweep of wpl" in capsys.readouterr().err and strict(tmp_path / "results.json") == before


@pytest.mark.long
def test_a_setting_that_is_proposed_again_counts_once(tmp_path, capsys):
    pytest.importorskip("optuna", reason="needs the extra optuna")
    arguments = ["sweep", *SMALL, "--grid", "policy_rate=0.01,0.1", "--search", "tpe", "--trials", 8, "--seeds", 1]
    assert run(*arguments, "--out", tmp_path) == 0
    records = strict(tmp_path / "results.json")
    assert len({record["setting"] for record in records}) == len(records) == 2
    assert "--trials 8 asks for more than there are: no more than 2 settings found" in capsys.readouterr().out
    assert (tmp_path / "tuned" / "SyntheticMTL-v0" / "wpl.toml").exists()


@pytest.mark.long
def test_halving_drops_the_worse_half_after_every_seed(tmp_path):
    grid = ["--grid", "env.learning_rate=1e-6,3e-6,3e-3,1e-2"]
    arguments = ["sweep", *SMALL, "--epochs", 3, *grid, "--agent", "task-specific-all", "--seeds", 3, "--halving"]
    assert run(*arguments, "--out", tmp_path) == 0
    by_setting: dict = {}
    for record in strict(tmp_path / "results.json"):
        by_setting.setdefault(record["setting"], []).append(record)
    assert sorted(len(runs) for runs in by_setting.values()) == [1, 1, 2, 3]
    first = {setting: runs[0]["validation_accuracy"] for setting, runs in by_setting.items()}
    kept = {setting for setting, runs in by_setting.items() if len(runs) > 1}
    assert min(first[setting] for setting in kept) >= max(first[setting] for setting in first.keys() - kept)


@pytest.mark.long
def test_the_best_setting_is_used_when_it_is_asked_for(tmp_path, capsys):
    grid = ["--grid", "policy_rate=0.05", "env.width=8"]
    assert run("sweep", *SMALL, *grid, "--seeds", 1, "--out", tmp_path / "sweep") == 0
    file = tmp_path / "sweep" / "tuned" / "SyntheticMTL-v0" / "wpl.toml"
    assert tomllib.loads(file.read_text()) == {"env_options": {"width": 8}, "agent_options": {"policy_rate": 0.05}}
    command = f"# routing-gym sweep --agent wpl --search grid --seeds 1 --env {ENV} --epochs 1 --batch-size 256 --grid"
    assert file.read_text().startswith(command)
    tuned = ["--tuned", "--tuned-dir", tmp_path / "sweep" / "tuned"]
    arguments = ["compare", *SMALL, "--agents", "wpl", "shared", "--seeds", 1]
    assert run(*arguments, *tuned, "--agent-options", "wpl.policy_rate=0.2", "--out", tmp_path / "out") == 0
    assert "by their defaults, as nothing was tuned: shared\n" in capsys.readouterr().out
    wpl, shared = json.loads((tmp_path / "out" / "results.json").read_text())
    assert wpl["config"]["policy_rate"] == 0.2  # what is given counts more
    assert (wpl["asked"]["env_options"]["width"], shared["asked"]["env_options"]["width"]) == (8, 48)
    again = ["--agent-options", "wpl.policy_rate=0.2", "--out", tmp_path / "out", "--resume"]
    assert run(*arguments, *tuned, *again) == 0  # agents differ in options of the environment
    assert run(*arguments, "--tuned", "--tuned-dir", tmp_path / "none", "--out", tmp_path / "other") == 2
    file.write_text("env_options = 3")
    assert run(*arguments, *tuned, "--out", tmp_path / "other") == 2
    said = capsys.readouterr().err
    assert "is no folder" in said and "wpl.toml cannot be read" in said


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*/*.toml")), ids=lambda path: path.stem)
def test_settings_that_come_along_are_taken(path, tmp_path):
    env = f"routing_gym/{path.parent.name}"
    if path.parent.name == "suite":
        env = "routing_gym/Clusters-v0"  # which all agents can run
    (agent,) = [name for name in AGENTS if folder_name(name) == path.stem]
    training, options = Train(tuned=True).settings_of(TrainingSettings(env, 1, 64), agent, (), of=path.parent.name)
    assert training.env_options or options or agent == "cross-stitch"  # of which the defaults are best
    assert Run(training, agent, 0, tmp_path, options).make().name == agent


def test_settings_that_are_not_there_are_missed(tmp_path, capsys):
    arguments = ["compare", *SMALL, "--agents", "wpl", "--out", tmp_path / "out"]
    assert run(*arguments, "--tuned") == 2 and run(*arguments, "--tuned-dir", tmp_path) == 2
    said = capsys.readouterr().err
    assert "nothing was tuned for routing_gym/SyntheticMTL-v0" in said and "only for: DigitsMTL-v0, suite" in said
    assert "is for --tuned: give both" in said


def test_a_long_setting_has_a_folder_all_the_same(tmp_path):
    options = [f"{name}=0.{'1' * 60}" for name in ("policy_rate", "gamma", "env.momentum", "env.label_smoothing")]
    given = ["--epochs", "1", "--batch-size", "512", "--seeds", "1", "--env-options", "optimizer=sgd"]
    assert run("sweep", *given, "--grid", *options, "--out", tmp_path) == 0
    (path,) = tmp_path.glob("*/seed-*/results.json")
    assert len(path.parents[1].name.encode()) < 255
    tuned = next(tmp_path.glob("tuned/*/*.toml")).read_text()
    assert "--batch-size 512 --env-options optimizer=sgd --grid" in tuned.splitlines()[0]


def test_the_command_that_found_a_setting_is_written_so_that_it_runs(tmp_path):
    given = {"env": ENV, "epoch_passes": 3, "env_options": ("class_weights=[1, 2]", "schedule=step"), "callbacks": ()}
    training = TrainingSettings(**given, data_dir="my data", patience=2, threads=2)
    grid, options = ("text=a b,$c\n#d", "gamma=0.9"), ("noise=(1, 2)",)
    sweep = Sweep(training=training, agent_options=options, grid=grid, halving=True, out=tmp_path / "my out")
    first, *_ = sweep._write_tuned(("gamma=0.9",)).read_text().splitlines()
    assert first.endswith(" --grid 'text=a b,$c\\n#d' gamma=0.9")  # a comment has one line
    words = shlex.split(first.removeprefix("# "))
    assert words[0] == "routing-gym" and "--trials" not in words and "--workers" not in words
    again = parsed([word.replace("\\n", "\n") for word in words[1:]])
    assert again == dataclasses.replace(sweep, out=Sweep.out)  # not the folder, which is of one machine
    drawn = Sweep(search="random", grid=("gamma=0.1..0.9",), out=tmp_path)
    assert " --search random --trials 20 " in drawn._write_tuned(("gamma=0.9",)).read_text()
