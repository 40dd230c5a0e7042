"""Runs in processes beside this one: the same results, and what happens to a process costs one run at most."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver

import pytest
from commands import run
from records import strict, untimed
from rich.console import Console

from routing_gym.experiments.cli import parsed
from routing_gym.experiments.engine.callbacks import PROGRESS
from routing_gym.experiments.engine.command import Stopped, heeding_signals
from routing_gym.experiments.engine.console import Display, Output
from routing_gym.experiments.engine.jobs import Job, jobs_of
from routing_gym.experiments.engine.launchers import Launcher, Local, Print, perform, try_out
from routing_gym.experiments.engine.records import read_progress
from routing_gym.experiments.engine.run import Run, finite
from routing_gym.experiments.engine.settings import TrainingSettings, config_text
from routing_gym.experiments.engine.workers import FORKED

pytestmark = [pytest.mark.usefixtures("no_pictures"), pytest.mark.long]

SMALL = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "2", "--batch-size", "256"]

CODE = """
import os, signal, time
from pathlib import Path
from routing_gym.agents import AGENTS, register_agent

BESIDE = Path(__file__).parent

class Struck(AGENTS["reinforce"]):
    '''Is struck in the second epoch of seed 0, so many times as there are files beside it.'''

    def update(self, trajectory):
        if self.config.seed == 0 and self.passes > 1.3 and (strokes := sorted(BESIDE.glob("stroke-*"))):
            strokes[0].unlink()
            self.strike()
        return super().update(trajectory)

class Killed(Struck):
    def strike(self):
        os.kill(os.getpid(), signal.SIGKILL)

class Hung(Struck):
    def strike(self):
        time.sleep(600)

class Slow(AGENTS["reinforce"]):
    def update(self, trajectory):
        time.sleep(0.02)
        return super().update(trajectory)

register_agent("slow", Slow)
register_agent("killed", Killed)
register_agent("hung", Hung)
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "agents.py"
    path.write_text(CODE)
    return path


def test_results_do_not_depend_on_the_number_of_workers(tmp_path, capsys):
    arguments = ["compare", *SMALL, "--agents", "wpl", "top-k", "--seeds", 2]
    assert run(*arguments, "--out", tmp_path / "one") == 0
    assert run(*arguments, "--out", tmp_path / "two", "--workers", 2) == 0
    one, two = (strict(tmp_path / name / "results.json") for name in ("one", "two"))
    assert [untimed(record) for record in one] == [untimed(record) for record in two]
    assert capsys.readouterr().out.count("epoch 2/2") >= 4
    assert not list(tmp_path.rglob(PROGRESS))


@pytest.mark.parametrize(("agent", "strokes"), [("killed", 1), ("killed", 2), ("hung", 1)])
def test_a_worker_that_dies_or_hangs_costs_one_run_at_most(agent, strokes, plugin, tmp_path, capsys):
    arguments = ["compare", *SMALL, "--plugin", plugin, "--agents", agent, "--seeds", 2]
    assert run(*arguments, "--out", tmp_path / "whole") == 0  # nothing strikes yet
    for number in range(strokes):
        (tmp_path / f"stroke-{number}").touch()
    out = tmp_path / "out"
    assert run(*arguments, "--out", out, "--workers", 2, "--silence", 20) == (strokes > 1)
    said = capsys.readouterr().out
    assert {"killed": "was killed (out of memory?); it is tried", "hung": "no sign of life for 20 s; it"}[agent] in said
    whole, records = strict(tmp_path / "whole" / "results.json"), strict(out / "results.json")
    if strokes > 1:
        assert "2 times; the last good checkpoint, of epoch 1, is in" in said
        whole = whole[1:]
    assert [untimed(record) for record in records] == [untimed(record) for record in whole]


def waits(tmp_path):
    """A comparison that never ends, in a process of its own, and the numbers of its two workers."""
    arguments = ["compare", *SMALL, "--plugin", tmp_path / "agents.py", "--agents", "slow", "--out", tmp_path / "out"]
    more = ["--epochs", 1_000_000, "--seeds", 2, "--workers", 2]
    code = "import sys; from routing_gym.experiments.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *map(str, [*arguments, *more])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    files = [tmp_path / "out" / "slow" / f"seed-{seed}" / PROGRESS for seed in (0, 1)]
    while not all(read_progress(file).get("epoch", 0) >= 1 for file in files):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    return process, [read_progress(file)["pid"] for file in files]


def alive(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def ends(pids):
    while any(map(alive, pids)):
        time.sleep(0.1)
    return True


def test_workers_end_with_the_command(plugin, tmp_path):
    process, pids = waits(tmp_path)
    process.kill()
    process.communicate()
    assert ends(pids)


def test_a_signal_ends_all_workers_and_says_what_is_kept(plugin, tmp_path):
    process, pids = waits(tmp_path)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 143 and ends(pids)
    assert "0 of 2 runs are finished" in said and said.count("the last good checkpoint, of epoch") == 2
    assert said.count("\n") == 1 and "--resume" in said


def test_printed_commands_perform_the_runs(tmp_path, capfd):
    arguments = [
        "compare",
        *SMALL,
        "--agents",
        "wpl",
        "top-k",
        "--agent-options",
        "top-k.k=1",
        "--seeds",
        1,
        "--device",
        "cpu",
    ]
    assert run(*arguments, "--out", tmp_path / "here") == 0
    capfd.readouterr()
    out = tmp_path / "a folder"
    assert run(*arguments, "--out", out, "--launcher", "print") == 0
    assert 'device = "cpu"' in (out / "wpl" / "seed-0" / "config.toml").read_text()
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2 and not list(out.rglob("results.json"))
    for line in lines:
        argv = json.loads(subprocess.check_output(["sh", "-c", f"{sys.executable} -c "
            f"'import json, sys; print(json.dumps(sys.argv[2:]))' {line}"]))  # fmt: skip
        assert argv[0] == "train" and run(*argv) == 0
    assert run(*arguments, "--out", out, "--launcher", "print", "--resume") == 0
    assert run(*arguments, "--out", out, "--resume") == 0
    here, there = (strict(folder / "results.json") for folder in (tmp_path / "here", out))
    assert [untimed(record) for record in here] == [untimed(record) for record in there]


def test_a_configuration_says_where_data_lies_as_it_is_seen_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = Run(TrainingSettings("routing_gym/MnistMTL-v0", data_dir="data"), "wpl", 0, tmp_path / "run")
    written = tmp_path / "config.toml"
    written.write_text(config_text(asked.configuration))
    command = parsed(["train", "--config", str(written)])
    assert command.training.data_dir == str(tmp_path / "data")
    again = Run(command.training, command.agent, command.seed, tmp_path / "run", command.agent_options)
    assert finite(again.asked) == finite(asked.asked)  # lists are tuples


def test_a_worker_that_dies_while_it_waits_costs_nothing(tmp_path):
    """Processes stay from one launch to the next; one that is gone by then is replaced."""
    launcher = Local(1)

    def launched(seed):
        asked = Run(TrainingSettings("routing_gym/SyntheticMTL-v0", 1, 256), "shared", seed, tmp_path / str(seed))
        display = Display(Console(file=io.StringIO()), 1)
        (outcome,) = launcher.launch([Job((asked,))], display)
        assert outcome.record is not None, outcome.failure
        return launcher.workers[0].process.pid

    try:
        first = launched(0)
        assert launched(1) == first and alive(first)
        os.kill(first, signal.SIGKILL)
        assert ends([first]) and (second := launched(2)) != first
        if FORKED:  # the server may be killed, too
            server = forkserver._forkserver._forkserver_pid
            os.kill(server, signal.SIGKILL)
            assert ends([server]) and launched(3) != second and ends([second])
    finally:
        launcher.end()


def test_where_nothing_is_left_to_run_no_launcher_is_asked():
    class Never(Launcher):
        def launch(self, runs, display):
            raise AssertionError("asked to run nothing")

    assert perform([], Never(), lambda *_: None, Output(), debug=True) == []


@pytest.mark.parametrize("error", [RuntimeError("something else"), None])
def test_an_interrupt_that_a_library_catches_still_stops_a_trial(error):
    class Swallowing:
        agent, facts = "swallowing", {}

        def try_out(self, **options):
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                if error:
                    raise error from None

    with pytest.raises(Stopped), heeding_signals():
        try_out([Swallowing()], Console(quiet=True), debug=False)


def test_commands_that_nobody_reads_are_no_error(tmp_path, monkeypatch):
    """As with `--launcher print | head -1`, once head has its line."""
    reader, writer = os.pipe()
    os.close(reader)
    runs = [Run(TrainingSettings(SMALL[1], 1, 256), "shared", seed, tmp_path / f"seed-{seed}") for seed in range(3)]
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert [*Print().launch(jobs_of(runs, 1), None)] == []
    assert len([*tmp_path.glob("seed-*/config.toml")]) == 3


def test_commands_that_would_name_another_folder_are_not_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    out = tmp_path / "rés ultats"
    assert run("compare", *SMALL, "--agents", "shared", "--launcher", "print", "--out", out) == 2
    said = capsys.readouterr().err
    assert "as ascii: set PYTHONIOENCODING=utf-8, or take another folder" in said and not out.exists()
