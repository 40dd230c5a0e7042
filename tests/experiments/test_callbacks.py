"""Callbacks: their hooks come in order, what they raise costs one run, and loggers say what the record says."""

import csv
import importlib.util
import json
import sys

import pytest
from commands import run
from records import strict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trackers import stand_in

from routing_gym.agents import AGENTS, read, register_agent
from routing_gym.experiments.engine.callbacks import CALLBACKS, Callback, register_callback
from routing_gym.experiments.engine.metrics import METRICS, Metric, register_metric

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "2", "--batch-size", "256"]
PER_EPOCH = 3
"""Batches of 256 in an epoch of SyntheticMTL."""

TOLD = """
import json, os
from pathlib import Path
from routing_gym.experiments.engine.callbacks import Callback, register_callback

class Mine(Callback):
    '''Writes down what it is told.'''

    def _note(self, hook, session, **more):
        files = sorted(path.name for path in session.folder.iterdir() if path.name[0] != ".")
        note = {"hook": hook, "title": session.title, "epochs": len(session.curve["epoch"]), "of": session.epochs}
        note |= {"files": files, "pid": os.getpid(), **more}
        with open(session.folder / "told.jsonl", "a") as out:
            out.write(json.dumps(note) + "\\n")

    def on_begin(self, session):
        self._note("begin", session, config=session.config)

    def on_batch(self, session, metrics):
        assert all(value.dim() == 0 for value in metrics.values())
        self._note("batch", session, metrics={name: value.item() for name, value in metrics.items()})

    def on_epoch(self, session, metrics):
        self._note("epoch", session, metrics=metrics, last=session.last)

    def on_end(self, session, record):
        self._note("end", session, record=record)

    def on_failure(self, session, error):
        self._note("failure", session, error=str(error))

register_callback("mine", Mine)
"""


class Killed(BaseException):
    """What kill -9 does, as far as a process can do it to itself."""


@pytest.fixture(autouse=True)
def registries():
    """Forget callbacks and metrics that a test registers."""
    kept = dict(CALLBACKS), dict(METRICS)
    yield
    for registry, before in zip((CALLBACKS, METRICS), kept, strict=True):
        registry.clear()
        registry.update(before)


def told(folder):
    return [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------------------------------------------------- hooks


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_hooks_come_in_order_with_what_they_promise(workers, tmp_path):
    (tmp_path / "mine.py").write_text(TOLD)
    arguments = ["compare", *SMALL, "--plugin", tmp_path / "mine.py", "--agents", "wpl", "--seeds", workers]
    assert run(*arguments, "--callbacks", "mine", "csv", "--workers", workers, "--out", tmp_path / "out") == 0
    for record in strict(tmp_path / "out" / "results.json"):
        folder = tmp_path / "out" / "wpl" / f"seed-{record['seed']}"
        begin, *between, end = notes = told(folder)
        epoch = ["batch"] * PER_EPOCH + ["epoch"]
        assert [note["hook"] for note in notes] == ["begin", *epoch, *epoch, "end"]
        assert {(note["title"], note["of"]) for note in notes} == {(f"wpl, seed {record['seed']}", 2)}
        assert begin["epochs"] == 0 and begin["config"] == record["asked"] and end["record"] == record
        assert [note["epochs"] for note in between] == [0] * PER_EPOCH + [1] + [1] * PER_EPOCH + [2]
        assert {"loss", "accuracy", "reward", "macs", "policy_entropy"} <= between[0]["metrics"].keys()
        for number in (0, 1):
            *batches, of_epoch = between[number * len(epoch) :][: len(epoch)]
            for name, value in of_epoch["metrics"].items():
                mean = sum(batch["metrics"][name] for batch in batches) / PER_EPOCH
                assert value == pytest.approx(mean, rel=1e-5)
            assert of_epoch["last"]["validation_accuracy"] == record["curve"]["validation_accuracy"][number]
            assert ("checkpoint.pt" in of_epoch["files"]) == (number == 1)  # before the epoch's own
        assert {"results.json", "checkpoint.pt", "best.pt", "curve.csv"} <= set(end["files"])
        assert not list(folder.glob("events*")) and not (folder / ".progress.json").exists()


def noting(name, said, raises_in=None):
    """A callback that notes when it is told of the end, and raises in one hook of one run."""

    def hook_called(hook):
        def called(self, session, *what):
            if hook in ("on_end", "on_failure"):
                said.append((name, hook, session.title))
            if hook == raises_in and session.title == "wpl, seed 0":
                raise RuntimeError("no\nmore [/]")

        return called

    hooks = ("on_begin", "on_batch", "on_epoch", "on_end", "on_failure")
    return type(name, (Callback,), {hook: hook_called(hook) for hook in hooks})


@pytest.mark.parametrize("hook", ["on_begin", "on_batch", "on_epoch", "on_end", "on_failure"])
def test_what_a_callback_raises_costs_that_run_alone(hook, tmp_path, capsys, monkeypatch):
    class Fails(AGENTS["wpl"]):
        def update(self, trajectory):
            if hook == "on_failure" and self.episodes and self.config.seed == 0:
                raise KeyError("first")
            return super().update(trajectory)

    names, said = ("before", "raising", "after"), []
    for name in names:
        register_callback(name, noting(name, said, hook if name == "raising" else None))
    monkeypatch.setitem(AGENTS, "wpl", Fails)
    arguments = ["compare", *SMALL, "--agents", "wpl", "--seeds", 2, "--out", tmp_path, "--callbacks", *names]
    assert run(*arguments) == 1
    printed = capsys.readouterr()
    *_, line = printed.out.splitlines()
    what = f"callback raising, {hook}: RuntimeError: no more [/]"
    first = "KeyError: 'first'; " if hook == "on_failure" else "CallbackError: "
    assert line.startswith(f"wpl, seed 0: {first}{what}; ") and not printed.err
    assert [record["seed"] for record in strict(tmp_path / "results.json")] == [1]
    assert [entry for entry in said if entry[2] == "wpl, seed 1"] == [(n, "on_end", "wpl, seed 1") for n in names]
    failed = {"on_begin": names[:2], "on_end": names[1:]}.get(hook, names)  # of those that had begun and not ended
    assert [name for name, at, title in said if (at, title) == ("on_failure", "wpl, seed 0")] == list(failed)
    assert run(*arguments, "--resume") == (hook != "on_end")  # where there is a record already


def test_our_own_callbacks_stand_a_failure_of_another_at_the_beginning(tmp_path, capsys):
    class Refuses(Callback):
        def on_begin(self, session):
            raise OSError("no server")

    register_callback("refuses", Refuses)
    assert run("train", *SMALL, "--callbacks", "refuses", "tensorboard", "csv", "--out", tmp_path) == 1
    said = capsys.readouterr().err
    assert "callback refuses, on_begin: OSError: no server; nothing of it is kept" in said and said.count(";") == 1


def test_a_resumed_run_is_told_of_an_epoch_again(tmp_path):
    (tmp_path / "mine.py").write_text(TOLD)

    class Kills(Callback):
        def on_epoch(self, session, metrics):
            if len(session.curve["epoch"]) == 2 and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                raise Killed

    register_callback("kills", Kills)
    out = tmp_path / "out"
    arguments = ["train", *SMALL, "--plugin", tmp_path / "mine.py", "--callbacks", "mine", "csv", "tensorboard"]
    with pytest.raises(Killed):
        run(*arguments, "kills", "--out", out)
    assert [row["epoch"] for row in rows(out / "curve.csv")] == ["1", "2"]  # of which the checkpoint knows one
    assert run(*arguments, "kills", "--out", out, "--resume") == 0
    notes = [(note["hook"], note["epochs"]) for note in told(out) if note["hook"] != "batch"]
    first = [("begin", 0), ("epoch", 1), ("epoch", 2), ("failure", 2)]
    assert notes == [*first, ("begin", 1), ("epoch", 2), ("end", 2)]
    (record,) = strict(out / "results.json")
    assert columns(out / "curve.csv") == numbers(record["curve"])
    events = EventAccumulator(str(out)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]


# ------------------------------------------------------------------------------------------------------------- loggers


def columns(path):
    found = rows(path)
    return {name: [float(row[name]) if row[name] else None for row in found] for name in found[0]}


def numbers(curve):
    """What a CSV can hold of a curve."""
    return {name: of for name, of in curve.items() if name not in ("judged_on", "exits", "use")}


def test_csv_and_events_hold_what_the_record_holds(tmp_path):
    counted = []

    def at_first(judged):
        counted.append(judged)
        return len(counted) / 2 if len(counted) < 3 else None

    register_metric(Metric("fading", "fading", at_first, curve=True))  # a trial, then two epochs
    arguments = ["train", *SMALL, "--callbacks", "csv", "tensorboard", "--out", tmp_path]
    assert run(*arguments) == 0
    (record,) = strict(tmp_path / "results.json")
    assert record["curve"]["fading"] == [1, None] and record["fading"] is None
    assert columns(tmp_path / "curve.csv") == numbers(record["curve"])
    events = EventAccumulator(str(tmp_path)).Reload()
    for metric in METRICS.values():
        if (value := metric.value(record)) is not None:
            (event,) = events.Scalars(f"test/{metric.name}")
            assert event.value == pytest.approx(value, rel=1e-6) and event.step == 2
        if metric.curve:
            found = {event.step: event.value for event in events.Scalars(f"validation/{metric.name}_by_epoch")}
            wanted = {step: of for step, of in enumerate(metric.curve_of(record), 1) if of is not None}
            assert found == pytest.approx(wanted, rel=1e-6)


TRACKERS = ("wandb", "trackio", "mlflow")


@pytest.fixture
def stopping():
    """An agent that raises in its second epoch, until it is told not to."""

    class Stopping(AGENTS["wpl"]):
        raises = True

        def update(self, trajectory):
            if self.raises and self.episodes >= (PER_EPOCH + 1) * self.env.num_envs:
                raise RuntimeError("no")
            return super().update(trajectory)

    register_agent("stopping", Stopping)
    return Stopping


@pytest.mark.parametrize("name", TRACKERS)
def test_trackers_are_told_of_a_run_that_fails_and_goes_on(name, stopping, tmp_path, monkeypatch):
    calls: list = []
    monkeypatch.setitem(sys.modules, name, stand_in(name, calls))
    monkeypatch.setenv("TRACKIO_PROJECT", "a project")
    out = tmp_path / "out"
    arguments = ["train", *SMALL, "--agent", "stopping", "--callbacks", name, "--out", out]
    assert run(*arguments) == 1
    failed = {"wandb": 1, "trackio": None, "mlflow": "FAILED"}[name]
    assert calls[-1] == ("finish", failed) and [call[1] for call in calls if call[0] == "log"] == [1]
    first, before = calls[0][1], len(calls)
    stopping.raises = False
    assert run(*arguments, "--resume") == 0
    again, *more = calls[before:]
    (record,) = strict(out / "results.json")
    values = {f"end/{metric.key('test')}": metric.value(record) for metric in METRICS.values()}
    logged = [call for call in more if call[0] == "log"]
    assert logged[0][1] == 2 and logged[0][2]["train_loss"] == record["curve"]["train_loss"][1]
    assert logged[0][2]["train/loss"] == logged[0][2]["train_loss"] and "validation_accuracy" in logged[0][2]
    assert more[-2][-1] == {key: value for key, value in values.items() if value is not None}
    assert more[-1] == ("finish", {"wandb": None, "trackio": None, "mlflow": "FINISHED"}[name])
    if name == "wandb":
        assert (first["name"], first["resume"], first["dir"]) == ("stopping, seed 0", "allow", str(out))
        assert again[1]["id"] == first["id"] and first["config"]["env_options"]["width"] == 48
    elif name == "trackio":
        assert first["project"] == "a project" and first["resume"] == "allow"
        assert again[1]["name"] == first["name"] and first["name"].startswith("stopping, seed 0 ")
        assert logged[-1][1] == 2
    else:
        assert first == {"run_name": "stopping, seed 0", "tags": {"folder": str(out)}, "nested": False}
        assert again[1] == {"run_id": "run-0", "nested": False} and "params" not in [call[0] for call in more]
        assert calls[1][1]["env_options.width"] == "48" and calls[1][1]["agent_options.policy_rate"] == "none"
        assert logged[-1][1] == 2
    # What replaces it is another run.
    before = len(calls)
    assert run(*arguments, "--overwrite", "--epochs", 1) == 0
    key = {"wandb": "id", "trackio": "name", "mlflow": "run_id"}[name]
    assert calls[before][0] == "init" and calls[before][1].get(key) != again[1][key]


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("command", [["train"], ["compare", "--agents", "wpl"], ["sweep", "--grid", "gamma=1.0"]])
def test_a_library_that_is_not_there_is_said_before_anything_is_trained(name, command, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else found(module))
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert run(*command, *SMALL, "--callbacks", "csv", name, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.endswith(f"is not installed: pip install {name}\n") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_names_of_callbacks_are_checked(tmp_path, capsys):
    for names, message in ((["min"], "unknown callback 'min'; known are tensorboard, csv"), (["csv", "csv"], "twice")):
        assert run("train", *SMALL, "--callbacks", *names, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="the name 'csv' belongs to .*callbacks.Csv already"):
        register_callback("csv", Callback)
    assert run("train", *SMALL, "--epochs", 1, "--callbacks", "csv", "--out", tmp_path / "out") == 0
    assert read(tmp_path / "out" / "checkpoint.pt")["agent"] == "wpl" and "Board" not in capsys.readouterr().out
