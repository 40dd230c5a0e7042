"""Records of another version are refused in a line, names are text whatever they look like, and nothing is lost."""

import dataclasses
import json

import pytest
from commands import run
from made_up_runs import block
from records import strict

from routing_gym.agents import AGENTS, AgentConfig, register_agent
from routing_gym.experiments.engine.records import VERSION

SMALL = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "1", "--batch-size", "256"]


# ------------------------------------------------------------------------------------------------------------ versions


def of_version(folder, version):
    """Make all records in a folder those of another version; return the files and what is in them."""
    for path in folder.rglob("results.json"):
        records = json.loads(path.read_text())
        for record in records:
            record.pop("version")
            record |= {} if version is None else {"version": version}
        path.write_text(json.dumps(records))
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("version", [1, VERSION + 1, None])
@pytest.mark.parametrize(
    "command",
    [
        ["compare", "--agents", "wpl", "--seeds", 1],
        ["compare", "--agents", "shared", "--seeds", 1],
        ["train"],
        ["train", "--epochs", 2],
        ["sweep", "--grid", "gamma=1.0", "--seeds", 1],
    ],
    ids=lambda command: "-".join(map(str, command[:3])),
)
def test_records_of_another_version_are_refused(version, command, tmp_path, capsys):
    first = {"compare": ["compare", "--agents", "wpl", "--seeds", 1], "train": ["train"]}.get(command[0], command)
    command = [command[0], *SMALL, *command[1:]]
    again = ["--out", tmp_path, *([] if command[0] == "sweep" else ["--resume"])]
    assert run(first[0], *SMALL, *first[1:], "--out", tmp_path) == 0
    before = of_version(tmp_path, version)
    capsys.readouterr()
    assert run(*command, *again) == 2
    said = capsys.readouterr().err
    assert f"it is of version {version or 1} of the form of records, this routing_gym reads {VERSION}" in said
    assert said.count("\n") == 1 and "results.json cannot be read back" in said
    assert {path: path.read_bytes() for path in before} == before
    if command[0] != "sweep":  # but they may be replaced
        assert run(*command, "--out", tmp_path, "--overwrite") == 0


def test_the_report_lists_records_of_another_version(tmp_path, capsys):
    for name in ("old", "new"):
        assert run("train", *SMALL, "--agent", "shared", "--out", tmp_path / name) == 0
    of_version(tmp_path / "old", 1)
    assert run("report", tmp_path / "old", tmp_path / "new", "--out", tmp_path / "report.html") == 0
    data = block(tmp_path / "report.html")
    assert len(data["runs"]) == 1 and len(data["failures"]) == 1
    assert "old/results.json cannot be read back (it is of version 1 of the form" in data["failures"][0]
    assert run("report", tmp_path / "old") == 2
    assert "it is of version 1" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- names


@pytest.fixture
def strange():
    """Agents whose names have what separates names elsewhere, one the beginning of the other."""

    class Strange(AGENTS["shared"]):
        @dataclasses.dataclass(frozen=True)
        class Config(AgentConfig):
            text: str = "plain"

    register_agent("a-b.c:d", Strange)
    register_agent("a-b", AGENTS["wpl"])
    return ("a-b.c:d", "a-b")


@pytest.mark.long
def test_names_and_options_are_text_whatever_they_look_like(strange, tmp_path, capsys):
    text = "[red]x[/]<b>&amp;"
    options = ["--agent-options", f"a-b.c:d.text={text}", "a-b.gamma=0.9"]
    arguments = ["compare", *SMALL, "--agents", *strange, "--seeds", 1, *options, "--out", tmp_path]
    assert run(*arguments) == 0
    first, second = strict(tmp_path / "results.json")
    assert first["config"]["text"] == text and second["config"]["gamma"] == 0.9
    printed = capsys.readouterr().out
    assert "a-b.c:d, seed 0: epoch 1/1" in printed and "\n a-b.c:d  " in printed
    data = block(tmp_path / "report.html")
    assert [agent["name"] for agent in data["agents"]] == list(strange)
    assert data["agents"][0]["options"]["agent_options.text"] == text
    assert "<b>" not in (tmp_path / "report.html").read_text().partition('id="data">')[2].partition("</script>")[0]
    assert run(*arguments, "--resume") == 0
    out = tmp_path / "again"
    assert run("train", "--config", tmp_path / "a-b.c-d" / "seed-0" / "config.toml", "--out", out) == 0
    assert strict(out / "results.json")[0]["config"]["text"] == text
    assert run("compare", *SMALL, "--agents", *strange, "--agent-options", "a.c=1", "--out", out) == 2
    assert "AGENT.NAME=VALUE" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("batch", [0, 1])
def test_a_comparison_of_which_every_run_fails_says_so_in_its_folder(batch, tmp_path, capsys):
    class Fails(AGENTS["shared"]):
        def update(self, trajectory):
            if self.episodes >= batch * self.env.num_envs:
                raise RuntimeError("none [of] <them>")

    register_agent("fails", Fails)
    arguments = ["compare", *SMALL, "--agents", "fails", "--seeds", 2, "--out", tmp_path]
    assert run(*arguments) == 1
    printed = capsys.readouterr().out
    lines = (tmp_path / "failures.txt").read_text().splitlines()
    assert len(lines) == 1 + batch and all("RuntimeError: none [of] <them>" in line for line in lines)
    assert f"No run is finished; written to {tmp_path}: failures.txt" in printed
    assert all(line in printed for line in lines) and not (tmp_path / "results.json").exists()
    if batch:  # there are folders of unfinished runs to go on with
        assert run("report", tmp_path) == 0
        assert block(tmp_path / "report.html")["failures"] == lines
