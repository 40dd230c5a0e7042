"""Pages of results: generated from records, around a text of conclusions, whose figures the records must hold."""

import re
import shlex
from pathlib import Path

import pytest

from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.page import BEHIND, check_page, text_of, write_page
from routing_gym.experiments.papers.reproduction import _plain
from routing_gym.experiments.queue import Queue, entries
from routing_gym.experiments.suite import leaderboard

PAGES = Path(__file__).parents[2] / "docs" / "results"
RECORDS = PAGES / "records"
GENERATED = sorted(path for path in PAGES.glob("[a-z]*.md") if BEHIND in path.read_text(encoding="utf-8"))
SUITE = sorted(PAGES.glob("suite/**/leaderboard.md"))
CLAIMS = PAGES / "README.md"
FIGURE = re.compile(r"(?:(?<=[\s(±])|^)[+-]?\d+(?:\.\d+)?(?=[ %)\],;:]|[.](?:\s|$)|$)", re.MULTILINE)
"""A number in a text: of steps or seeds too, all of which its tables must show."""


LINK = re.compile(r"\[([^]]*)\]\(([^)]*)\)")


def figures_not_in(text, tables):
    shown = {number.lstrip("+-") for number in re.findall(r"\d+(?:\.\d+)?", tables)}
    return [figure for figure in FIGURE.findall(text) if figure.lstrip("+-") not in shown]


def quoted_elsewhere(text, folder):
    """The text without its links, and what of them their own pages do not have; what others say stands for itself."""
    ours = [(what, folder / where) for what, where in LINK.findall(text) if not where.startswith("http")]
    wrong = [figure for what, page in ours for figure in figures_not_in(what, page.read_text(encoding="utf-8"))]
    return LINK.sub("", text), wrong


def test_a_text_stands_in_its_page_and_survives(tmp_path):
    page = tmp_path / "page.md"
    write_page(page, "Title", "a\n", [tmp_path / "pictures" / "one.png"])
    assert page.read_text().endswith(f"# Title\n\n{BEHIND}\n\na\n\n![one](pictures/one.png)\n")
    text_of(page).write_text("\nWhat is concluded.\n")
    write_page(page, "Title", "b")
    assert page.read_text().endswith(f"# Title\n\nWhat is concluded.\n\n{BEHIND}\n\nb\n")
    assert text_of(page).read_text() == "\nWhat is concluded.\n"


@pytest.mark.parametrize("text", [b"", b"mine", b"# Title\n", b"\xff"])
def test_a_page_that_people_wrote_is_refused_before_anything_runs(text, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_bytes(text)
    assert main(["reproduce", "codinet", "--out", str(tmp_path / "out"), "--report", str(page)]) == 2
    assert str(page) in capsys.readouterr().err
    assert page.read_bytes() == text and not (tmp_path / "out").exists()


def test_a_folder_is_no_page(tmp_path, capsys):
    assert main(["reproduce", "codinet", "--out", str(tmp_path / "out"), "--report", str(tmp_path)]) == 2
    assert f"--report must name a file, {tmp_path} is a folder" in capsys.readouterr().err
    with pytest.raises(UsageError, match="cannot be read"):
        check_page(tmp_path)


def test_figures_of_a_text_are_found():
    assert figures_not_in("It errs 3.1 points less, over 3 seeds: 12.", "| 3.1 | 3 | 12.0 |") == ["12"]
    assert figures_not_in("CIFAR-10, 16x16, conv3 and Fig. 5a have none; -0.4 is one.", "0.4") == []


def test_a_link_is_held_against_its_own_page(tmp_path):
    (tmp_path / "other.md").write_text("| 0.7 |")
    text = "Ours is 3; [others have 0.7 and 8](other.md), [theirs 53](https://example.org)."
    assert quoted_elsewhere(text, tmp_path) == ("Ours is 3; , .", ["8"])


@pytest.mark.parametrize("page", [*GENERATED, *SUITE, CLAIMS], ids=lambda page: page.parent.name + page.stem)
def test_every_figure_of_a_text_occurs_in_what_was_made_of_the_records(page):
    text, _, tables = page.read_text(encoding="utf-8").partition(BEHIND)
    assert text_of(page).read_text(encoding="utf-8").strip() in text
    own, wrong = quoted_elsewhere(text_of(page).read_text(encoding="utf-8"), page.parent)
    assert not wrong and not figures_not_in(own, tables)


@pytest.mark.parametrize("page", GENERATED, ids=lambda page: page.stem)
def test_the_command_for_a_row_asks_for_that_row_alone(page, tmp_path, capsys):
    protocols = {entry.protocol.name: entry.protocol for entry in entries()
                 if entry.paper.name == page.stem.replace("_", "-")}  # fmt: skip
    for command in re.findall(r"A row again: `routing-gym (.*)`", page.read_text(encoding="utf-8")):
        arguments = shlex.split(command)
        label = protocols[arguments[arguments.index("--settings") + 1]].rows[-1]
        arguments = [part.replace("ROW", label) for part in arguments]
        assert main([*arguments, "--launcher", "print", "--out", str(tmp_path)]) == 0
        folders = re.findall(r"--out (\S+)", capsys.readouterr().out)
        assert folders and all(_plain(label) in Path(folder).parts for folder in folders)


@pytest.mark.long
@pytest.mark.parametrize("page", GENERATED, ids=lambda page: page.stem)
def test_pages_are_made_of_the_records_there_are(page, tmp_path, monkeypatch):
    name, again = page.stem.replace("_", "-"), tmp_path / page.name
    command = ["reproduce", name, "--records", str(RECORDS / name)]
    monkeypatch.setattr("routing_gym.experiments.papers.reproduction.Reproduction.pictures", lambda *_: [])
    assert main([*command, "--out", str(tmp_path / "out"), "--report", str(again)]) == 0

    def tables(path):
        made = path.read_text(encoding="utf-8").partition(BEHIND)[2]
        return re.sub(r"\n*!\[.*", "", re.sub(r"routing_gym \S+ at commit .*", "", made)).strip()

    assert tables(again) == tables(page)


def test_the_table_of_claims_is_made_of_the_records_there_are(tmp_path):
    (tmp_path / "records").symlink_to(RECORDS)
    (tmp_path / "README.text.md").write_bytes(text_of(CLAIMS).read_bytes())
    assert main(["queue", "page", "--records", str(tmp_path / "records")]) == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == CLAIMS.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", SUITE, ids=lambda page: page.parent.name)
def test_leaderboards_are_made_of_the_scores_there_are(page, tmp_path, monkeypatch):
    for drawn in ("radar", "profile", "along_knobs"):
        monkeypatch.setattr(leaderboard, drawn, lambda *given: given[-1])
    monkeypatch.setattr(leaderboard, "write_report", lambda *given: None)
    (tmp_path / "leaderboard.text.md").write_text(text_of(page).read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["suite", "--scores", str(page.parent), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "leaderboard.md").read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_every_kept_record_answers_to_a_run_of_its_protocol():
    """Fails where a protocol, or a default that it does not pin, has changed since."""
    queue = Queue(records=RECORDS)
    kept = {record["folder"] for entry in entries() for record in queue.stand(entry).finished}
    assert len(kept) == len(list(RECORDS.rglob("*.json.gz")))
