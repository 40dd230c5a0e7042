"""Pages of results: what is generated and what people write do not share a fate."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.papers.page import BEGIN, END, page_around, write_page
from routing_gym.experiments.reproduce import REPRODUCTIONS

PAGES = Path(__file__).parents[2] / "docs" / "results"
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40).filter(lambda t: "<!--" not in t)


@pytest.mark.long
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=WORDS, old=WORDS, behind=WORDS, new=WORDS)
def test_what_is_written_around_survives_to_the_byte(before, old, behind, new, tmp_path):
    page = tmp_path / "page.md"
    page.write_bytes(f"{before}{BEGIN}{old}{END}{behind}".encode())
    write_page(page, "Title", new)
    assert page.read_bytes() == f"{before}{BEGIN}\n\n{new.strip()}\n\n{END}{behind}".encode()
    assert page_around(page) == (before, behind)


def test_a_new_page_has_a_title_and_marks(tmp_path):
    write_page(tmp_path / "page.md", "Title", "a\n")
    assert (tmp_path / "page.md").read_text() == f"# Title\n\n{BEGIN}\n\na\n\n{END}\n"


@pytest.mark.parametrize(
    "text",
    [b"", b"mine", BEGIN.encode(), f"{END}{BEGIN}".encode(), f"{BEGIN}{BEGIN}{END}".encode(),
     f"{BEGIN}{END}{BEGIN}{END}".encode(), b"\xff" + f"{BEGIN}{END}".encode()],
)  # fmt: skip
def test_a_page_without_marks_is_refused_before_anything_runs(text, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_bytes(text)
    assert main(["reproduce", "codinet", "--out", str(tmp_path / "out"), "--report", str(page)]) == 2
    assert str(page) in capsys.readouterr().err
    assert page.read_bytes() == text and not (tmp_path / "out").exists()


def test_a_folder_is_no_page(tmp_path, capsys):
    assert main(["reproduce", "codinet", "--out", str(tmp_path / "out"), "--report", str(tmp_path)]) == 2
    assert f"--report must name a file, {tmp_path} is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(REPRODUCTIONS))
def test_the_pages_of_papers_can_be_generated_again(name):
    before, _ = page_around(PAGES / f"{name.replace('-', '_')}.md")
    assert before.startswith(f"# {REPRODUCTIONS[name].title}") and "What holds and what does not" in before


def test_a_page_that_is_not_there_is_none(tmp_path):
    assert page_around(tmp_path / "none.md") is None
    with pytest.raises(UsageError, match="cannot be read"):
        page_around(tmp_path)
