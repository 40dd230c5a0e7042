"""Folders of results: what is there is gone on with, joined or replaced as asked, and nothing else is touched."""

import json
import shutil
from pathlib import Path

import pytest
from commands import SMALL, registered, run
from filelock import FileLock
from records import strict

from routing_gym.agents import AGENTS

pytestmark = pytest.mark.usefixtures("no_pictures")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


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


def test_what_is_replaced_is_what_commands_have_written(tmp_path):
    """Files of one's own stay where they are, also in folders that look like those of runs."""
    compare = ["compare", *SMALL, "--epochs", 1, "--agents", "shared", "--seeds", 1, "--out", tmp_path]
    assert run(*compare) == 0
    own = [tmp_path / place for place in ("data/raw.csv", "data/seed-1/raw.csv", "embeddings.npz", "shared/notes.md")]
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    first = (tmp_path / "shared" / "seed-0" / "checkpoint.pt").stat().st_mtime_ns
    assert run(*compare, "--overwrite") == 0 and not [*tmp_path.glob(".old-*")]
    assert all(path.read_text() == "mine" for path in own)
    assert (tmp_path / "shared" / "seed-0" / "checkpoint.pt").stat().st_mtime_ns > first


def test_what_is_read_or_belongs_to_a_run_is_not_written_over(tmp_path, capsys):
    assert run("compare", *SMALL, "--epochs", 1, "--agents", "shared", "--seeds", 1, "--out", tmp_path) == 0
    checkpoint = tmp_path / "shared" / "seed-0" / "checkpoint.pt"
    shutil.copy(checkpoint, tmp_path / "mine.pt")
    before = contents(tmp_path)
    for command in (
        *(["evaluate", checkpoint, "--routes", checkpoint.with_name(name)] for name in ("best.pt", "routes.npz")),
        ["evaluate", tmp_path / "mine.pt", "--routes", tmp_path / "mine.pt"],
        ["prune", checkpoint, "--out", checkpoint],
        ["report", tmp_path, "--out", tmp_path / "results.json"],
    ):
        assert run(*command) == 2
        assert "must not replace" in capsys.readouterr().err and contents(tmp_path) == before


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


def test_what_is_replaced_stays_aside_while_others_are_to_train(tmp_path, capsys):
    """With `--launcher print` nothing has been trained when the command ends."""
    compare = ["compare", *SMALL, "--agents", "shared", "--seeds", 1, "--epochs", 1, "--out", tmp_path]
    assert run(*compare) == 0
    before = (tmp_path / "results.json").read_bytes()
    assert run(*compare, "--overwrite", "--launcher", "print") == 0
    (aside,) = tmp_path.glob(".old-*")
    assert (aside / "results.json").read_bytes() == before
    assert run(*compare, "--resume") == 0 and not [*tmp_path.glob(".old-*")]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("way", ["--tuned", "--equal"])
def test_agents_with_settings_of_their_own_join(way, tmp_path, capsys):
    digits = ["--env", "routing_gym/DigitsMTL-v0", "--epochs", 1, "--batch-size", 1024, "--seeds", 1, "--out", tmp_path]
    given = [way] if way == "--tuned" else [way, "parameters"]
    first, second = (["random-fixed"], ["shared-with-task"]) if way == "--tuned" else (["wpl", "shared"], ["wpl"])
    assert run("compare", *digits, *given, "--agents", *first) == 0
    assert run("compare", *digits, *given, "--agents", *second, "task-specific-last", "--resume") == 0
    records = strict(tmp_path / "results.json")
    assert {record["agent"] for record in records} == {*first, *second, "task-specific-last"}
    assert run("compare", *digits, *given, "--agents", "wpl", "--resume", "--env-options", "layers=2") == 2
    assert "its env_options layers" in capsys.readouterr().err
    if way == "--equal":  # rows of as many parameters are none of as many multiply-accumulates
        assert run("compare", *digits, "--equal", "macs", "--agents", "wpl", "--resume") == 2
        assert "its env_options width" in capsys.readouterr().err


def test_only_what_a_command_has_set_aside_goes(tmp_path):
    own = tmp_path / ".old-photos" / "raw.csv"
    own.parent.mkdir()
    own.write_text("mine")
    train = ["train", *SMALL, "--epochs", 1, "--agent", "shared", "--out", tmp_path]
    assert run(*train) == 0 and own.read_text() == "mine"
    assert run(*train, "--overwrite") == 0 and [*tmp_path.glob(".old-*")] == [own.parent]


class Failing(AGENTS["wpl"]):
    """Fails in the trial on one batch."""

    def update(self, trajectory):
        raise RuntimeError("as it happens")


def test_where_nothing_can_run_nothing_is_replaced(tmp_path, capsys):
    compare = ["compare", *SMALL, "--epochs", 1, "--seeds", 1, "--out", tmp_path]
    assert run(*compare, "--agents", "shared") == 0
    before = contents(tmp_path)
    with registered(failing=Failing):
        assert run(*compare, "--agents", "failing", "--overwrite") == 1
        assert contents(tmp_path) == before and "none of its runs starts" in capsys.readouterr().out
        assert run(*compare, "--agents", "failing", "--overwrite", "--out", tmp_path / "new") == 1
    assert not (tmp_path / "new").exists()


def test_what_nothing_has_replaced_stays_aside(tmp_path, capsys):
    compare = ["compare", *SMALL, "--epochs", 1, "--seeds", 1, "--out", tmp_path]
    assert run(*compare, "--agents", "shared", "random") == 0
    assert run(*compare, "--agents", "shared", "random", "--overwrite", "--launcher", "print") == 0
    capsys.readouterr()
    assert run(*compare, "--agents", "shared", "--resume") == 0
    assert f"what was there before is still in {tmp_path}: .old-1" in capsys.readouterr().out
    assert [path.parent for path in tmp_path.glob(".old-1/*/seed-0")] == [tmp_path / ".old-1" / "random"]
    assert run(*compare, "--agents", "random", "--resume") == 0 and not [*tmp_path.glob(".old-*")]


def test_a_copy_of_a_run_is_none(tmp_path, capsys):
    compare = ["compare", *SMALL, "--epochs", 1, "--agents", "shared", "--seeds", 1, "--out", tmp_path]
    assert run(*compare) == 0
    seed = tmp_path / "shared" / "seed-0"
    shutil.copytree(seed.parent, tmp_path / "shared.bak")
    seed.rename(seed.with_name("seed-0.bak"))
    (record,) = strict(tmp_path / "results.json")
    for copy in (tmp_path / "shared.bak" / "seed-0", seed.with_name("seed-0.bak")):  # as if of another time
        (copy / "results.json").write_text(json.dumps([{**record, "test_accuracy": 1.0}]))
    assert run(*compare, "--resume") == 0 and (seed / "results.json").exists()
    assert [found["test_accuracy"] for found in strict(tmp_path / "results.json")] == [record["test_accuracy"]]
    shutil.copytree(seed, seed.with_name("seed-1"))
    capsys.readouterr()
    assert run(*compare, "--seeds", 2, "--resume") == 2
    assert "its seed is 0, asked for is 1" in capsys.readouterr().err


def test_what_a_run_came_to_before_goes_with_it(tmp_path):
    train = ["train", *SMALL, "--epochs", 1, "--agent", "shared", "--out", tmp_path]
    for mode in ([], ["--overwrite"]):
        (tmp_path / "diverged.txt").write_text("the loss is not finite\n")
        assert run(*train, *mode) == 0 and not (tmp_path / "diverged.txt").exists()


def test_folders_are_told_apart_before_they_hold_records(tmp_path, capsys):
    """A suite's by its scores or the depth of its runs, a single run's by its checkpoint."""
    scores = Path(__file__).parents[2] / "docs/results/suite"
    shutil.copytree(scores, suite := tmp_path / "suite", ignore=shutil.ignore_patterns(".lock", "*.png"))
    begun = tmp_path / "begun"
    (begun / "credit" / "default" / "wpl" / "seed-0").mkdir(parents=True)
    (begun / "credit" / "default" / "wpl" / "seed-0" / "checkpoint.pt").touch()
    (many := tmp_path / "many" / "wpl" / "seed-0").mkdir(parents=True)
    (many / "config.toml").touch()
    (one := tmp_path / "one").mkdir()
    (one / "checkpoint.pt").touch()
    before = contents(tmp_path)
    for command in (
        *(["compare", *SMALL, "--out", folder] for folder in (suite, begun)),
        *(["train", *SMALL, "--out", folder, "--overwrite"] for folder in (suite, begun)),
        *(["sweep", *SMALL, "--grid", "gamma=1.0", "--out", folder] for folder in (suite, begun, one, many.parents[1])),
        *(["suite", "--scores", scores, "--out", folder] for folder in (one, many.parents[1])),
        ["suite", "--problems", "credit", "--agents", "shared", "--out", one],
        ["reproduce", "codinet", "--out", one],
    ):
        assert run(*command) == 2
        assert "holds runs of another command" in capsys.readouterr().err
    assert contents(tmp_path) == before
