"""Files that commands read back: damage is named in one line, never a traceback, and nothing in a file is imported."""

import errno
import json
import os
import random
import sys

import numpy as np
import pytest
from commands import run
from damage import reseal
from hypothesis import given, settings
from hypothesis import strategies as st

from routing_gym.experiments.compare import joined
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.instances import accuracy_together
from routing_gym.experiments.engine.records import comparison_table, read_arrays, read_results, write_arrays, write_text
from routing_gym.experiments.engine.run import Run
from routing_gym.experiments.engine.settings import TrainingSettings
from routing_gym.experiments.engine.training import EpochLog
from routing_gym.files import PART

SYNTHETIC = "routing_gym/SyntheticMTL-v0"
SMALL = ["--env", SYNTHETIC, "--epochs", "2", "--batch-size", "64"]


EXIT_CURVES = [
    *(3, [], {"anytime": 3}, {"anytime": [3]}, {"anytime": [{"accuracy": 1}]}),
    *({"anytime": [{"accuracy": "1", "macs": 1}]}, {"entropy": [{"accuracy": 1, "macs": 1}]}),
]
"""Points without what is shown of them."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, its files as they should be."""
    cell = Run(TrainingSettings(SYNTHETIC, 2, 64), "wpl", 0, tmp_path_factory.mktemp("runs") / "wpl" / "seed-0")
    cell.perform()
    return cell, {path.name: path.read_bytes() for path in cell.folder.iterdir()}


@pytest.fixture
def folder(finished):
    """The folder of a finished run, which a test may damage."""
    cell, files = finished
    yield cell.folder
    for name, content in files.items():
        (cell.folder / name).write_bytes(content)


def named(path):
    """What is expected of a refusal: the file is named, in one line."""
    return pytest.raises(UsageError, match=rf"{path.name} cannot be read back \([^\n]*$")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda record: record["asked"].update(env_options=3),
        lambda record: record["asked"].update(agent_options=[]),
        lambda record: record["asked"].pop("agent"),
        lambda record: record["asked"].update(agent={}),
        lambda record: record["decisions"].append(3),
        lambda record: record["asked"].pop("seed"),
        lambda record: record["asked"].update(plugins=3),
        lambda record: record.update(label=["x"]),
        lambda record: record.update(best_epoch="last"),
        lambda record: record.update(task_names=5),
        lambda record: record.update(task_names=[5]),
        lambda record: record.update(test_accuracy=-3),
        lambda record: record.update(test_accuracy=95.0),
        lambda record: record["routes"][0][0].__setitem__(0, -1),
        lambda record: record["task_macs"].__setitem__(0, -1),
        lambda record: record.update(
            curve={name: of if name == "judged_on" else [] for name, of in record["curve"].items()}
        ),
        *[lambda record, of=of: record.update(exit_curves=of) for of in EXIT_CURVES],
    ],
)
def test_records_of_another_form_are_named(wrong, folder, capsys):
    (record,) = json.loads((folder / "results.json").read_text())
    wrong(record)
    (folder / "results.json").write_text(json.dumps([record]))
    assert run("report", folder.parents[1]) == 2
    said = capsys.readouterr().err
    assert "results.json cannot be read back" in said and said.count("\n") == 1


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_flipped_bytes_of_a_record_are_harmless_or_named(finished, place, flip):
    cell, files = finished
    path, content = cell.folder / "results.json", bytearray(files["results.json"])
    content[int(place * len(content))] ^= flip
    path.write_bytes(content)
    try:
        comparison_table([cell.finished()], "title")
        comparison_table(list(joined(cell.folder.parents[1], [cell], lambda agent, saved: saved).values()), "title")
    except UsageError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    finally:
        path.write_bytes(files["results.json"])


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"{", b"null", b"[]", b"{}", b"[1]", b'[{"asked": 3}]', b"[[]]", b"[" * 10**5, b"[{}, {}]"],
)
def test_what_is_no_record_is_named(finished, folder, content):
    path = folder / "results.json"
    path.write_bytes(content)
    with named(path):
        finished[0].finished()


def test_commands_name_a_damaged_record_and_go_on_when_it_is_gone(finished, folder, capsys):
    record = folder / "results.json"
    text = record.read_text()
    record.write_text(text.replace('"validation_accuracy"', '"validation"'))
    with pytest.raises(UsageError, match=r"validation_accuracy: expected 2 values, got NoneType\): put back a copy"):
        finished[0].finished()
    record.unlink()
    assert finished[0].perform()["test_accuracy"] == json.loads(text)[0]["test_accuracy"]
    damaged = folder / "checkpoint.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for command in (["train", *SMALL, "--resume", "--out", folder], ["evaluate", damaged]):
        assert run(*command) == 2
        said = capsys.readouterr().err
        assert f"{damaged} is not a checkpoint of routing_gym, or it is damaged" in said and said.count("\n") == 1


def test_flipped_bytes_of_arrays_are_harmless_or_named(finished, folder):
    path, whole = folder / "policies.npz", finished[1]["policies.npz"]
    expected = read_arrays(path, epoch=1, episodes=1, policies=4)
    draw, refused = random.Random(0), 0
    for _ in range(60):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
        path.write_bytes(content)
        try:
            found = read_arrays(path, epoch=1, episodes=1, policies=4)
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
        except UsageError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 30


def test_every_reader_of_arrays_names_the_damaged_file(folder, tmp_path):
    path = folder / "policies.npz"
    path.write_bytes(path.read_bytes()[:100])
    with named(path):
        EpochLog(path, 1, episodes=1, policies=4)
    write_arrays(path, epoch=np.array([1]), episodes=np.array([1, 2]), policies=np.zeros((1, 1, 1, 1)))
    with named(path):
        EpochLog(path, 1, episodes=1, policies=4)
    np.savez(tmp_path / "logits.npz", logits=np.array([print], dtype=object), label=np.array([0]))
    with named(tmp_path / "logits.npz"):
        accuracy_together([tmp_path / "logits.npz"])
    with named(tmp_path / "none.npz"):
        read_arrays(tmp_path / "none.npz", label=1)
    with named(tmp_path / "none.json"):
        read_results(tmp_path / "none.json")


@pytest.mark.parametrize("curve", [None, {}, {"epoch": [1]}, {"epoch": 3}])
def test_a_curve_of_another_form_is_refused(finished, folder, curve):
    reseal(folder / "checkpoint.pt", lambda content: content["extra"].update(curve=curve))
    with pytest.raises(UsageError, match=r"checkpoint\.pt: curve"):
        finished[0].perform()


@pytest.mark.parametrize("name", ["evilmod:routing_gym/DigitsMTL-v0", "CartPole-v1", "evilmod:x", "routing_gym/No-v0"])
def test_environments_are_made_by_ids_of_this_library_only(folder, tmp_path, name, monkeypatch, capsys):
    (tmp_path / "evilmod.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    reseal(folder / "checkpoint.pt", lambda content: content.update(env_id=name))
    assert run("evaluate", folder / "checkpoint.pt") == 2
    assert f"was trained in '{name}', which is not registered here" in capsys.readouterr().err
    assert "evilmod" not in sys.modules


@pytest.mark.parametrize("options", [{"rho": "x"}, {"wrapper": 3}, {"dataset": "x"}, {3: 4}])
def test_options_of_a_checkpoint_that_are_none_are_refused(folder, options, capsys):
    reseal(folder / "checkpoint.pt", lambda content: content["env_kwargs"].update(options))
    assert run("evaluate", folder / "checkpoint.pt") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(folder, monkeypatch, capsys):
    whole = (folder / "checkpoint.pt").read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("routing_gym.files.os.replace", full)
    assert run("train", *SMALL, "--epochs", 3, "--resume", "--out", folder) == 1
    said = capsys.readouterr().err
    assert "was not written: No space left on device; what was there before is whole" in said and said.count("\n") == 1
    assert (folder / "checkpoint.pt").read_bytes() == whole and not list(folder.glob(f".*{PART}"))


def test_orphans_of_killed_runs_go_when_a_run_begins(finished, folder):
    for name in ("checkpoint.pt", "policies.npz"):
        (folder / f".{name}.0123abcd{PART}").write_text("half")
    (folder / "results.json").unlink()
    finished[0].perform()
    assert not list(folder.glob(f".*{PART}"))


def test_texts_are_utf_8_whatever_the_locale_says(tmp_path):
    write_text(tmp_path / "a.md", "99.5 ± 0.1\n")
    assert (tmp_path / "a.md").read_bytes() == "99.5 ± 0.1\n".encode()


def test_commands_load_what_they_saved_without_a_word(tmp_path, recwarn):
    """Options given again, and those that nobody gave, are no difference."""
    options = ["--env-options", "learning_rate=0.002", "weight_decay=0.01", "schedule=step", "schedule_epochs=(1,2)"]
    arguments = ["train", *SMALL, "--agent", "shared", *options, "--out", tmp_path]
    assert run(*arguments) == 0 and run(*arguments, "--resume", "--epochs", 3) == 0
    assert run("evaluate", tmp_path / "checkpoint.pt") == 0
    assert not [warning for warning in recwarn if "go on with" in str(warning.message)]
