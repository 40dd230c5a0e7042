"""Commands and who calls them: signals end at safe points, output fits where it goes, flags add up."""

import io
import os
import signal
import sys

import pytest
from commands import PER_EPOCH, SMALL, forget_plugins, registered, run
from hypothesis import given, settings
from hypothesis import strategies as st
from records import strict, untimed

from routing_gym.agents import AGENTS, Agent
from routing_gym.experiments import compare
from routing_gym.experiments.cli import parsed
from routing_gym.experiments.engine.arguments import gathered

pytestmark = pytest.mark.usefixtures("no_pictures")


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
    assert run("list", "[/red]ρ") == 2
    assert run("list", "[red]ρ\udcff") == 2
    assert run("train", *SMALL, "--agent", "shared", "--out", "x[/]ρ[red]") == 0
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    printed = sys.stdout.buffer.getvalue().decode(encoding)
    assert f"Written to x[/]{'ρ' if encoding == 'utf-8' else chr(92) + 'u03c1'}[red]: checkpoint.pt" in printed
    said = sys.stderr.buffer.getvalue().decode(encoding)
    assert "unknown name '[/red]" in said and "arguments must be UTF-8, got '[red]" in said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_run_is_worth_more_than_its_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))
    assert run("compare", *SMALL, "--agents", "shared", "wpl", "--seeds", 1, "--out", tmp_path) == 0
    assert len(strict(tmp_path / "results.json")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "what is printed cannot be written (No space left on device)" in said


def test_a_process_without_output_trains(tmp_path, monkeypatch):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)
    assert run("train", *SMALL, "--agent", "shared", "--out", tmp_path) == 0
    assert run("train", *SMALL, "--agent", "shared", "--out", tmp_path) == 2
    assert strict(tmp_path / "results.json")


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
            forget_plugins(name)
    assert run("list", "--plugin", tmp_path) == 2
    assert f"a plug-in is a Python file, {tmp_path} is a folder" in capsys.readouterr().err
    (tmp_path / "exit.py").write_text("import sys\nsys.exit()")
    assert run("list", "--plugin", tmp_path / "exit.py") == 2
