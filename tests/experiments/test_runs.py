"""Runs and folders: nothing that is finished is lost, what fails belongs to a run, signals end at safe points."""

import dataclasses
import io
import json
import os
import shutil
import signal
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from commands import run
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from records import strict, untimed

from routing_gym.agents import AGENTS, Agent, AgentConfig, register_agent
from routing_gym.experiments import compare
from routing_gym.experiments.cli import COMMANDS, command_class, main, parsed
from routing_gym.experiments.engine.arguments import gathered
from routing_gym.experiments.engine.run import Run, finite
from routing_gym.experiments.engine.settings import TrainingSettings

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "2", "--batch-size", "256"]


@contextmanager
def registered(**classes):
    for name, cls in classes.items():
        register_agent(name, cls)
    try:
        yield
    finally:
        for name in classes:
            del AGENTS[name]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# ------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("command", [["compare", "--agents", "shared", "--seeds", 1], ["train", "--agent", "shared"]])
def test_an_occupied_folder_is_refused_untouched(command, tmp_path, capsys):
    arguments = [*command, *SMALL, "--out", tmp_path]
    assert run(*arguments) == 0
    before = contents(tmp_path)
    other = [argument if argument != "shared" else "wpl" for argument in arguments]
    for again in (arguments, other):
        assert run(*again) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and all(word in said for word in (str(tmp_path), "--resume", "--overwrite"))
        assert contents(tmp_path) == before
    assert run(*arguments, "--resume", "--overwrite") == 2
    assert run(*arguments, "--overwrite", "--epochs", 1) == 0 and not list(tmp_path.glob(".old*"))
    assert strict(tmp_path / "results.json")[0]["epochs"] == 1


def test_a_refused_overwrite_changes_nothing(tmp_path):
    assert run("compare", *SMALL, "--agents", "shared", "--seeds", 1, "--out", tmp_path) == 0
    before = contents(tmp_path)
    wrong = ["--env-options", "num_blocks=0"]
    assert run("compare", *SMALL, "--agents", "wpl", "--seeds", 1, "--out", tmp_path, "--overwrite", *wrong) == 2
    assert contents(tmp_path) == before


def test_agents_and_seeds_join_a_comparison(tmp_path, capsys):
    out = ["--out", tmp_path]
    assert run("compare", *SMALL, "--agents", "wpl", "--seeds", 1, *out) == 0
    (first,) = strict(tmp_path / "results.json")
    assert run("compare", *SMALL, "--agents", "shared", "--seeds", 2, *out, "--resume") == 0
    printed = capsys.readouterr().out
    assert printed.rindex("wpl") < printed.rindex("shared") and "2 seeds" in printed
    records = strict(tmp_path / "results.json")
    assert [(r["agent"], r["seed"]) for r in records] == [("wpl", 0), ("shared", 0), ("shared", 1)]
    assert records[0] == first
    (tmp_path / "results.json").unlink()  # as if killed before it was written: the runs' own folders say it as well
    assert run("compare", *SMALL, "--agents", "wpl", "--seeds", 2, *out, "--resume") == 0
    assert sorted((r["agent"], r["seed"]) for r in strict(tmp_path / "results.json")) == [
        ("shared", 0),
        ("shared", 1),
        ("wpl", 0),
        ("wpl", 1),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--agents", "shared", "--epochs", 3], "its epochs is 2, asked for is 3"),
        (["--agents", "shared", "--env-options", "width=8"], "its env_options width is 48, asked for is 8"),
        (["--agents", "wpl", "--seeds", 2, "--agent-options", "wpl.gamma=0.5"], "its agent_options gamma is 1.0"),
    ],
)
def test_what_does_not_compare_does_not_join(changed, message, tmp_path, capsys):
    arguments = ["compare", *SMALL, "--seeds", 1, "--out", tmp_path]
    assert run(*arguments, "--agents", "wpl") == 0
    before = contents(tmp_path)
    assert run(*arguments, "--resume", *changed) == 2
    assert message in capsys.readouterr().err and contents(tmp_path) == before


def test_commands_keep_out_of_each_others_folders(tmp_path, capsys):
    assert run("train", *SMALL, "--out", tmp_path / "one") == 0
    assert run("compare", *SMALL, "--agents", "wpl", "--seeds", 1, "--out", tmp_path / "many") == 0
    before = contents(tmp_path)
    assert run("compare", *SMALL, "--agents", "wpl", "--out", tmp_path / "one", "--resume") == 2
    assert run("train", *SMALL, "--out", tmp_path / "many", "--resume") == 2
    for folder in ("one", "many"):
        assert run("sweep", *SMALL, "--grid", "gamma=1.0", "--out", tmp_path / folder) == 2
        assert run("reproduce", "codinet", "--out", tmp_path / folder) == 2
    said = capsys.readouterr().err
    assert "single run" in said and "several runs, such as wpl" in said and said.count("of another command") == 4
    assert {path: text for path, text in contents(tmp_path).items() if path in before} == before


def test_two_commands_at_once_are_refused(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = {
        "compare": [*SMALL, "--agents", "shared", "--seeds", 1, "--resume"],
        "train": [*SMALL, "--agent", "shared", "--resume"],
        "sweep": [*SMALL, "--agent", "shared", "--grid", "env.width=8", "--seeds", 1],
        "reproduce": ["codinet", "--seeds", 1],
    }
    out.mkdir()
    with FileLock(out / ".lock"):
        for command, options in arguments.items():
            assert run(command, *options, "--out", out) == 2
            said = capsys.readouterr().err
            assert f"another command is at work in {out}" in said and said.count("\n") == 1
    run_of_it = out / "shared" / "seed-0"
    run_of_it.mkdir(parents=True)
    with FileLock(run_of_it / ".lock"):  # a run may belong to another process, its comparison to nobody
        assert run("compare", *arguments["compare"], "--out", out) == 1
    assert "another command is at work" in capsys.readouterr().out
    assert run("compare", *arguments["compare"], "--out", out) == 0


@pytest.mark.parametrize("command", ["compare", "train", "sweep", "reproduce"])
def test_a_file_is_no_output_folder(command, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    more = {"sweep": ["--grid", "gamma=1.0"], "reproduce": []}.get(command, [])
    first = ["codinet"] if command == "reproduce" else SMALL
    assert run(command, *first, *more, "--out", tmp_path / "file") == 2
    assert f"the output folder {tmp_path / 'file'} cannot be written to: it is a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


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


PER_EPOCH = 3
"""Batches of 256 in an epoch of SyntheticMTL."""


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
        and f"its folder {out / 'deleting' / 'seed-0'} is no longer" in last
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


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_after_the_batch_and_the_run_goes_on_from_there(number, status, tmp_path, capsys):
    seen, batches = [], [PER_EPOCH + 3]

    class Interrupted(AGENTS["wpl"]):
        def update(self, trajectory):
            seen.append(self.episodes // self.env.num_envs + 1)
            if seen[1:] == list(range(1, batches[0])):  # the first is the trial's
                os.kill(os.getpid(), number)
            learned = super().update(trajectory)
            seen[-1] = "whole" if batches[0] == 0 else seen[-1]
            return learned

    handlers = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    with registered(interrupted=Interrupted):
        arguments = ["compare", *SMALL, "--agents", "shared", "interrupted", "--seeds", 1]
        assert run(*arguments, "--out", tmp_path / "halves") == status
        folder = tmp_path / "halves" / "interrupted" / "seed-0"
        said = capsys.readouterr().err
        assert said == (
            f"routing-gym: stopped by {number.name}; 1 of 2 runs are finished; interrupted, seed 0: the last good "
            f"checkpoint, of epoch 1, is in {folder}; go on by the same command with --resume\n"
        )
        batches[0] = 0
        assert run(*arguments, "--out", tmp_path / "halves", "--resume") == 0
        assert run(*arguments, "--out", tmp_path / "whole") == 0
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == handlers
    halves, whole = (list(map(untimed, strict(tmp_path / part / "results.json"))) for part in ("halves", "whole"))
    assert halves == whole and len(whole) == 2


def test_a_signal_within_a_write_waits_for_its_end_and_a_second_does_not(tmp_path, monkeypatch, capsys):
    save, signals = Agent.save, [1]

    def interrupted(self, *arguments, **options):
        for _ in range(signals[0]):
            os.kill(os.getpid(), signal.SIGINT)
        save(self, *arguments, **options)

    monkeypatch.setattr(Agent, "save", interrupted)
    assert run("train", *SMALL, "--out", tmp_path / "once") == 130
    assert "the last good checkpoint, of epoch 1, is in" in capsys.readouterr().err
    signals[0] = 2
    assert run("train", *SMALL, "--out", tmp_path / "twice") == 130
    assert "nothing of it is kept in" in capsys.readouterr().err
    monkeypatch.undo()
    assert run("train", *SMALL, "--out", tmp_path / "once", "--resume") == 0


def test_a_sweep_is_stopped_and_called_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Agent, "save", lambda *arguments, **options: os.kill(os.getpid(), signal.SIGTERM))
    arguments = ["sweep", *SMALL, "--grid", "policy_rate=0.1", "--seeds", 1, "--out", tmp_path]
    assert run(*arguments) == 143
    assert capsys.readouterr().err.endswith("; call it again, and it goes on\n")
    monkeypatch.undo()
    assert run(*arguments) == 0


# -------------------------------------------------------------------------------------------------------------- output


def test_without_a_terminal_every_epoch_is_a_line(tmp_path, capsys):
    assert run("compare", *SMALL, "--agents", "shared", "--seeds", 2, "--out", tmp_path) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "epoch " in line]
    first = strict(tmp_path / "results.json")[0]["curve"]
    assert lines[0] == (
        f"shared, seed 0: epoch 1/2, train loss {first['train_loss'][0]:.4f}, validation accuracy "
        f"{100 * first['validation_accuracy'][0]:.2f} %, {first['seconds'][0]:.1f} s"
    )
    assert [line[:25] for line in lines] == [f"shared, seed {seed}: epoch {e}/2" for seed in (0, 1) for e in (1, 2)]


def test_with_a_terminal_there_are_bars(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert run("train", *SMALL, "--agent", "shared", "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "━" in printed and "train loss" not in printed


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_output_never_fails_on_an_encoding_or_on_brackets(encoding, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert run("list") == 0 and run("list", "wpl") == 0
    assert run("list", "[/red]ρ\udcff") == 2
    assert run("train", *SMALL, "--agent", "shared", "--out", "x[/]ρ[red]") == 0
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    printed = sys.stdout.buffer.getvalue().decode(encoding)
    assert f"Written to x[/]{'ρ' if encoding == 'utf-8' else chr(92) + 'u03c1'}[red]: checkpoint.pt" in printed
    assert "unknown name '[/red]" in sys.stderr.buffer.getvalue().decode(encoding)


# --------------------------------------------------------------------------------------------------------------- flags


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_flags_of_several_values_add_up(data):
    values = {
        "--env-options": [f"a{number}={number}" for number in range(data.draw(st.integers(1, 4)))],
        "--agents": list(AGENTS)[: data.draw(st.integers(1, 4))],
    }
    pieces = []
    for flag, given_values in values.items():
        cuts = sorted(data.draw(st.lists(st.integers(0, len(given_values)), max_size=2)))
        for start, end in zip([0, *cuts], [*cuts, len(given_values)], strict=True):
            pieces.append((flag, given_values[start:end]))
    pieces.append(("--seeds", ["3"]))
    order = data.draw(st.permutations(range(len(pieces))))
    split, wanted = ["compare"], {flag: [] for flag in values}
    for flag, given_values in (pieces[number] for number in order):
        wanted.setdefault(flag, []).extend(given_values)
        glued = data.draw(st.booleans()) and given_values
        spelt = flag.replace("-options", data.draw(st.sampled_from(["-options", "_options"])))
        split += [f"{spelt}={given_values[0]}", *given_values[1:]] if glued else [spelt, *given_values]
    command = parsed(split)
    assert command.training.env_options == tuple(wanted["--env-options"])
    assert command.agents == tuple(wanted["--agents"]) and command.seeds == 3
    plain = [argument for flag, found in wanted.items() for argument in (flag, *found)]
    assert parsed(["compare", *plain]) == command and sum(gathered(plain, compare.Compare).values(), []) == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--env-options", "layers=2", "--env-options", "layers=3"], "--env-options names 'layers' twice"),
        (["train", "--agent-options", "gamma=1.0", "gamma=0.5"], "--agent-options names 'gamma' twice"),
        (["compare", "--agent-options", "wpl.gamma=1", "wpl.gamma=1"], "--agent-options names 'wpl.gamma' twice"),
        (["compare", "--agents", "wpl", "--agents", "wpl"], "--agents names 'wpl' twice"),
        (["sweep", "--grid", "gamma=1", "gamma=0.5"], "--grid names 'gamma' twice"),
        (["sweep", "--grid", "gamma=1", "--agent-options", "gamma=0.5"], "--agent-options names 'gamma' twice"),
        (["sweep", "--grid", "env.rho=1", "--env-options", "rho=0.5"], "--env-options names 'rho' twice"),
        (["reproduce", "codinet", "--groups", "cost", "cost"], "--groups names 'cost' twice"),
        (["evaluate", "c.pt", "--env-options", "rho=1", "rho=2"], "--env-options names 'rho' twice"),
    ],
)
def test_a_name_given_twice_is_refused(arguments, message, tmp_path, capsys):
    out = [] if arguments[0] == "evaluate" else ["--out", tmp_path / "out"]
    assert run(*arguments, *out) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_plug_ins_add_up_and_a_folder_is_none(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(f"from routing_gym.agents import *\nregister_agent('{name}', WPL)")
    try:
        plugged = ["--plugin", tmp_path / "one.py", "--plugin", tmp_path / "two.py"]
        assert run("list", *plugged) == 0
        assert {"one", "two"} <= AGENTS.keys()
    finally:
        for name in ("one", "two"):
            AGENTS.pop(name, None)
            sys.modules.pop(f"routing_gym_plugin_{name}", None)
    assert run("list", "--plugin", tmp_path) == 2
    assert f"a plug-in is a Python file, {tmp_path} is a folder" in capsys.readouterr().err
    (tmp_path / "exit.py").write_text("import sys\nsys.exit()")
    assert run("list", "--plugin", tmp_path / "exit.py") == 2


# ---------------------------------------------------------------------------------------------- sequences of all of it


class Killed(BaseException):
    """What kill -9 does, as far as a process can do it to itself."""


class Clock:
    """Counts batches of all runs, and does something to the process when the last is reached."""

    left, act = -1, staticmethod(lambda: None)

    def tick(self):
        self.left -= 1
        if self.left == 0:
            self.act()


CLOCK = Clock()


def ticking(base):
    class Ticking(AGENTS[base]):
        def update(self, trajectory):
            CLOCK.tick()
            return super().update(trajectory)

    return Ticking


def fails():
    raise RuntimeError("as it happens")


def kills():
    raise Killed


ACTS = {"nothing": lambda: None, "fails": fails, "kills": kills, "stops": lambda: signal.raise_signal(signal.SIGTERM)}
HEEDED = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "2", "--batch-size", "512"]


@pytest.mark.long
def test_sequences_of_commands_lose_nothing(tmp_path):
    names = {"ticking-wpl": ticking("wpl"), "ticking-reinforce": ticking("reinforce")}

    class Sequences(RuleBasedStateMachine):
        count = 0

        @initialize()
        def anew(self):
            Sequences.count += 1
            self.out = tmp_path / str(Sequences.count)

        def records(self, folder):
            found = [*folder.glob("[!.]*/seed-*/results.json"), *folder.glob("seed-*/results.json")]
            return {(r["agent"], r["seed"]): untimed(r) for path in found for r in strict(path)}

        @rule(
            agents=st.lists(st.sampled_from(sorted(names)), min_size=1, unique=True),
            seeds=st.integers(1, 2),
            mode=st.sampled_from([(), ("--resume",), ("--resume",), ("--overwrite",)]),
            act=st.sampled_from(sorted(ACTS)),
            batch=st.integers(1, 14),
        )
        def compare(self, agents, seeds, mode, act, batch):
            before = self.records(self.out)
            occupied = bool(list(self.out.glob("*/seed-*")))
            CLOCK.left, CLOCK.act = batch, ACTS[act]
            try:
                status = run("compare", *HEEDED, "--agents", *agents, "--seeds", seeds, "--out", self.out, *mode)
            except Killed:
                status = "killed"
            CLOCK.left = -1
            assert (status == 2) == (occupied and not mode)
            now = self.records(self.out)
            assert all(record == whole[key] for key, record in now.items())  # bit for bit, however it came about
            aside = {key for folder in self.out.glob(".old-*") for key in self.records(folder)}
            if status != 0 or mode != ("--overwrite",):
                assert before.keys() <= now.keys() | aside
            if status == 0:
                asked = {(agent, seed) for agent in agents for seed in range(seeds)}
                assert now.keys() == asked | (before.keys() if mode == ("--resume",) else set()) and not aside
                assert {(r["agent"], r["seed"]) for r in strict(self.out / "results.json")} == now.keys()

    with registered(**names):
        assert run("compare", *HEEDED, "--agents", *names, "--seeds", 2, "--out", tmp_path / "whole") == 0
        whole = {(r["agent"], r["seed"]): untimed(r) for r in strict(tmp_path / "whole" / "results.json")}
        quick = settings(max_examples=6, stateful_step_count=5, deadline=None, suppress_health_check=list(HealthCheck))
        run_state_machine_as_test(Sequences, settings=quick)


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
