"""Runs: nothing that is finished is lost, what fails belongs to a run, signals end at safe points."""

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from commands import PER_EPOCH, SMALL, registered, run
from records import strict, untimed

from routing_gym.agents import AGENTS, Agent, AgentConfig
from routing_gym.experiments.cli import COMMANDS, command_class, main
from routing_gym.experiments.engine.callbacks import Callback
from routing_gym.experiments.engine.run import Run, finite
from routing_gym.experiments.engine.settings import TrainingSettings

pytestmark = pytest.mark.usefixtures("no_pictures")


# ------------------------------------------------------------------------------------------------------------ failures


class Steady(AGENTS["wpl"]):
    """WPL, to be told apart from what fails."""


def failing(where, batch, error):
    """An agent that raises in one of its methods, in the batch of this number (the first is 1)."""

    def method(self, *arguments):
        if self.episodes // self.env.num_envs + 1 == batch:
            raise error
        return getattr(super(cls, self), where)(*arguments)

    cls = type("Failing", (AGENTS["reinforce"],), {where: method})
    return cls


@pytest.mark.long
@pytest.mark.parametrize(
    ("where", "batch", "error"),
    [
        ("plan", PER_EPOCH + 2, ValueError("two\nlines [/] of it")),
        ("update", PER_EPOCH + 1, RuntimeError()),
        ("update", 2, KeyError("entropy")),
        ("auxiliary_loss", PER_EPOCH + 1, SystemExit(3)),
        ("plan", 1, AttributeError("no attribute 'gate'")),
        ("update", 1, MemoryError("too much")),
        ("state_dict", PER_EPOCH + 1, OSError(28, "No space left on device", "checkpoint.pt")),
    ],
)
def test_a_failing_run_is_named_and_the_others_stand(where, batch, error, tmp_path, capsys):
    arguments = ["compare", *SMALL, "--agents", "failing", "steady", "--seeds", 2, "--out", tmp_path]
    with registered(failing=failing(where, batch, error), steady=Steady):
        assert run(*arguments) == 1
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        records = strict(tmp_path / "results.json")
        assert [(r["agent"], r["seed"]) for r in records] == [("steady", 0), ("steady", 1)]
        lines = printed.out.splitlines()
        last = lines[-1] if batch == 1 else lines[-2]
        assert last.startswith("failing") and type(error).__name__ in last and " ".join(str(error).split()) in last
        table = next(number for number, line in enumerate(lines) if "accuracy %" in line)
        if batch == 1:  # said before the first run, which it has none of
            assert "none of its runs starts" in lines[0] and not (tmp_path / "failing").exists()
        else:
            kept = (tmp_path / "failing" / "seed-0" / "checkpoint.pt").exists()
            assert kept == (batch > PER_EPOCH and where != "state_dict")
            assert ("of epoch 1, is in" if kept else "nothing of it is kept in") in last
            assert str(tmp_path / "failing" / "seed-0") in last and table < len(lines) - 2
        arguments = ["compare", *SMALL, "--agents", "failing", "--seeds", 1, "--out", tmp_path / "debug", "--debug"]
        assert run(*arguments) == 1
        assert f"{type(error).__name__}" in capsys.readouterr().err


def test_a_failing_single_run_is_one_line(tmp_path, capsys):
    with registered(failing=failing("update", PER_EPOCH + 2, RuntimeError("no"))):
        assert run("train", *SMALL, "--agent", "failing", "--out", tmp_path) == 1
    said = capsys.readouterr().err
    assert said == (
        f"routing-gym: failing, seed 0: RuntimeError: no; the last good checkpoint, of epoch 1, is in {tmp_path}\n"
    )


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_folder_deleted_while_it_runs_fails_that_run_alone(tmp_path, capsys):
    out = tmp_path / "out"

    class Deleting(AGENTS["shared"]):
        def update(self, trajectory):
            if self.episodes == self.env.num_envs:
                shutil.rmtree(out)

    with registered(deleting=Deleting, steady=Steady):
        assert run("compare", *SMALL, "--agents", "deleting", "steady", "--seeds", 1, "--out", out) == 1
    printed = capsys.readouterr()
    last = printed.out.splitlines()[-1]
    assert (
        not printed.err
        and last.startswith("deleting, seed 0: ")
        and f"there is no folder {out / 'deleting' / 'seed-0'}" in last
    )
    assert [r["agent"] for r in strict(out / "results.json")] == ["steady"]


def test_a_sweep_goes_on_after_a_failure(tmp_path, capsys):
    class Picky(AGENTS["wpl"]):
        def update(self, trajectory):
            if self.config.policy_rate == 0.1 and self.episodes:
                raise RuntimeError("not this one")
            return super().update(trajectory)

    with registered(picky=Picky):
        arguments = ["--agent", "picky", "--grid", "policy_rate=0.1,0.2", "--seeds", 1, "--out", tmp_path]
        assert run("sweep", *SMALL, *arguments) == 1
    assert "policy_rate=0.1, seed 100: RuntimeError: not this one" in capsys.readouterr().out.splitlines()[-1]
    assert [r["setting"] for r in strict(tmp_path / "results.json")] == ["policy_rate=0.2"]


@pytest.mark.long
def test_the_trial_changes_no_figure(tmp_path, monkeypatch):
    class Legacy(AGENTS["random"]):
        """Draws from everybody's random numbers, as code of others may."""

        def act(self, observation, context):
            first = int(np.random.randint(2)) if not context.deterministic else 0
            return torch.full_like(super().act(observation, context), first)

    agents = ["--agents", "legacy", "gumbel", "sb3:A2C", "--seeds", 1]
    with registered(legacy=Legacy):
        np.random.seed(3)
        assert run("compare", *SMALL, *agents, "--out", tmp_path / "with") == 0
        monkeypatch.setattr(Run, "try_out", lambda self, **options: None)
        np.random.seed(3)
        assert run("compare", *SMALL, *agents, "--out", tmp_path / "without") == 0
    with_it, without = (strict(tmp_path / folder / "results.json") for folder in ("with", "without"))
    assert list(map(untimed, with_it)) == list(map(untimed, without)) and len(without) == 3


def test_numbers_that_are_none_stay_out_of_records(tmp_path, capsys):
    class Endless(AGENTS["shared"]):
        @dataclasses.dataclass(frozen=True)
        class Config(AgentConfig):
            bound: float = float("inf")

    class Lost(AGENTS["shared"]):
        """Gives up its numbers between the last step and the first judgement."""

        def eval(self):
            with torch.no_grad():
                next(iter(self.env.network.parameters())).fill_(float("nan") if self.episodes > 256 else 0.0)
            return super().eval()

    with registered(endless=Endless, lost=Lost):
        assert run("compare", *SMALL, "--agents", "endless", "lost", "--seeds", 1, "--out", tmp_path) == 1
        (record,) = strict(tmp_path / "results.json")
        assert record["agent"] == "endless" and record["config"]["bound"] is None
        assert "lost, seed 0: TrainingDivergedError: " in capsys.readouterr().out
        assert run("evaluate", tmp_path / "endless" / "seed-0" / "checkpoint.pt", "--json") == 0
    assert finite({"a": (float("nan"), 1, ["x", float("-inf")]), "b": True}) == {"a": [None, 1, ["x", None]], "b": True}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_no_command_shows_a_traceback(command, monkeypatch, capsys):
    def broken(self, console):
        raise LookupError("what\nis this [/red]")

    given = {"evaluate": ["x"], "extract": ["x", "--task", 0, "--out", "y"], "prune": ["x", "--out", "y"]}
    given |= {"new-agent": ["x"], "download": ["x"], "reproduce": ["x"]}
    monkeypatch.setattr(command_class(command), "execute", broken)
    assert run(command, *given.get(command, [])) == 1
    printed = capsys.readouterr()
    assert printed.err == "routing-gym: LookupError: what is this [/red]; --debug shows where\n" and not printed.out
    assert run(command, *given.get(command, []), "--debug") == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr(command_class(command), "execute", lambda self, console: os.kill(os.getpid(), signal.SIGTERM))
    assert run(command, *given.get(command, [])) == 143
    said = capsys.readouterr().err
    assert said.startswith("routing-gym: stopped by SIGTERM") and said.count("\n") == 1


def test_several_passes_make_an_epoch_that_is_judged_once(tmp_path, capsys):
    """Two epochs of three passes train as six epochs do, and are known by another name."""
    runs = {}
    for name, epochs, passes in (("six", 6, 1), ("two", 2, 3)):
        training = TrainingSettings("routing_gym/SyntheticMTL-v0", epochs, 64, epoch_passes=passes, callbacks=())
        runs[name] = Run(training, "reinforce", 0, tmp_path / name)
        assert runs[name].perform()["epochs"] == epochs
    six, two = (Agent.load(run.folder / "checkpoint.pt", run.make().env) for run in runs.values())
    assert runs["two"].asked["epoch_passes"] == 3 and "epoch_passes" not in runs["six"].asked
    assert six.episodes == two.episodes
    for ours, theirs in zip(six.env.network.parameters(), two.env.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    again = main(["train", "--config", str(tmp_path / "two" / "config.toml"), "--out", str(tmp_path / "again")])
    records = [json.loads((tmp_path / name / "results.json").read_text())[0] for name in ("two", "again")]
    assert again == 0 and len({record["test_accuracy"] for record in records}) == 1
    resumed = ["--epochs", "3", "--epoch-passes", "2", "--resume", "--out", str(tmp_path / "again")]
    assert main(["train", "--config", str(tmp_path / "two" / "config.toml"), *resumed]) == 2
    assert "was trained with epoch_passes=3, now it is 2" in capsys.readouterr().err


def test_a_run_whose_routes_are_taken_away_is_finished_all_the_same(tmp_path):
    run_of = Run(TrainingSettings("routing_gym/SyntheticMTL-v0", 2, 64, callbacks=()), "shared", 0, tmp_path / "run")
    assert run_of.perform()["settled"] == 1
    for name in ("routes.npz", "results.json"):
        (tmp_path / "run" / name).unlink()
    assert run_of.perform()["settled"] is None


def test_not_every_batch_tells_of_everything(tmp_path):
    """What an agent reports now and then is a mean over the batches that report it."""

    class Sometimes(AGENTS["random"]):
        scratch = ("number",)

        def update(self, trajectory):
            self.number = getattr(self, "number", -1) + 1
            return {"td_error": torch.tensor(float(self.number))} if self.number % 2 else None

    told = []

    class Told(Callback):
        def on_epoch(self, session, means):
            told.append(means["td_error"])

    with registered(sometimes=Sometimes):
        Run(TrainingSettings("routing_gym/SyntheticMTL-v0", 2, 256), "sometimes", 0, tmp_path).perform([Told()])
    assert PER_EPOCH == 3 and told == [1.0, 4.0]  # of batches 0 to 2 and 3 to 5


@pytest.mark.parametrize("rate", ["1", "1.0"])
def test_a_whole_number_is_a_rate(rate, tmp_path):
    options = ["--env-options", f"learning_rate={rate}", "optimizer=sgd", "schedule=cosine"]
    train = ["train", *SMALL, "--agent", "shared", *options, "--out", tmp_path]
    assert run(*train, "--epochs", 1) == run(*train, "--epochs", 2, "--resume") == 0
    assert run("evaluate", tmp_path / "checkpoint.pt") == 0
    other = ["--env-options", "weight_decay=0", "momentum=0"]
    assert run("evaluate", tmp_path / "checkpoint.pt", *other) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--env", "routing_gym/Budget-v0", "--keep-logits"], "--keep-logits is for networks that all instances"),
        (["--env", "routing_gym/Budget-v0", "--compare-paths"], "--compare-paths is for networks of blocks that all"),
        (["--env", "routing_gym/SyntheticMTL-v0", "--compare-paths"], "--compare-paths is for networks of blocks that"),
        (["--judge-at", "0", "1e-6"], "--judge-at is for networks that see the price: give --env-options price=True"),
        (["--seed", "99999999999999999999"], "the seed must lie in"),
        (["--judge-at", "nan"], "--judge-at takes prices of at least 0, finite, got nan"),
    ],
)
def test_what_cannot_be_said_of_a_network_is_refused_before_it_is_trained(given, message, tmp_path, capsys):
    assert run("train", "--agent", "random", "--epochs", 1, "--out", tmp_path / "out", *given) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
