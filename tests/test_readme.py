"""Python in the README and in the guides runs as it stands there, and prints what stands beside it."""

import re
from itertools import takewhile
from pathlib import Path

import pytest

from routing_gym.agents import AGENTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "docs/start.md", ROOT / "docs/concepts.md", *sorted(ROOT.glob("docs/howto/*.md"))]
SNIPPETS = {
    f"{path.stem} {number}": code
    for path in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.S))
}
TOKEN = re.compile(r"~?\d+(?:\.\d+)?(?:e[+-]?\d+)?|[^\s\d~]+")


def expected_of(code):
    """The lines a snippet says it prints: the comments below a `print`, or else the one beside it."""
    lines = code.splitlines()
    for number, line in enumerate(lines):
        if re.match(r" *print\(", line):
            below = list(takewhile(lambda text: text.lstrip().startswith("# "), lines[number + 1 :]))
            yield from [text.strip().removeprefix("# ") for text in below] or line.split("  # ")[1:]


def agrees(expected, printed):
    """Words and whole numbers are exact, 0.99 is meant to 3 units of its last digit, ~6 to a factor of 1.5."""
    wanted, got = TOKEN.findall(expected), TOKEN.findall(printed)
    if wanted[-1] == "...":
        del wanted[-1], got[len(wanted) :]
    return len(wanted) == len(got) and all(map(_is_meant, wanted, got))


def _is_meant(wanted, got):
    if not (wanted[-1].isdigit() and got[-1].isdigit()):
        return wanted == got
    figure, value = float(wanted.removeprefix("~")), float(got)
    if wanted[0] == "~":
        return figure / 1.5 <= value <= figure * 1.5
    return abs(value - figure) <= (3.0001 * 10.0 ** -len(wanted.partition(".")[2]) if "." in wanted else 0)


@pytest.mark.parametrize(
    ("expected", "printed", "agree"),
    [
        ("0.99", "0.9926", True),
        ("0.99", "0.95", False),
        ("wpl ~6 [4, 4]", "wpl 4 [4, 4]", True),
        ("wpl ~6", "wpl 3", False),
        ("task 8: layer 1 -> 7", "task 8: layer 1 -> 6", False),
        ("wpl 0.99 ...", "wpl 1.0 12 13", True),
        ("0.99", "0.99 0.98", False),
    ],
)
def test_figures_are_meant_as_precisely_as_they_are_written(expected, printed, agree):
    assert agrees(expected, printed) is agree


@pytest.mark.long
@pytest.mark.parametrize("code", SNIPPETS.values(), ids=SNIPPETS)
def test_snippets_print_what_they_say(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    known = dict(AGENTS)
    try:
        exec(compile(code, "page", "exec"), {"__name__": "page"})
    finally:
        AGENTS.clear()
        AGENTS.update(known)
    printed, expected = capsys.readouterr().out.splitlines(), list(expected_of(code))
    assert expected and len(printed) == len(expected)
    for one, other in zip(expected, printed, strict=True):
        assert agrees(one, other), f"the page says {one!r}, printed is {other!r}"
    if "agent.save" in code:
        assert list(tmp_path.glob("*.pt"))


def test_the_readme_is_short_and_every_link_of_it_is_there():
    prose = re.sub(r"```.*?```|\]\(.*?\)|[|#`*-]+", " ", README, flags=re.S)
    assert len(README.splitlines()) <= 150 and len(prose.split()) <= 900
    linked = [path for path in re.findall(r"\]\((.*?)\)", README) if not path.startswith("http")]
    assert len(linked) >= 10
    for path in linked:  # in a clean checkout: what git leaves out is not there
        assert (ROOT / path).exists(), path


def test_the_suite_in_the_readme_is_the_leaderboard():
    def rows_of(table):
        head, _, *rows = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in table.splitlines()]
        return {row[0]: dict(zip(head, row, strict=True)) for row in rows}

    shown, board = (
        rows_of(re.search(r"^\| agent \|.*?\n\n", text, flags=re.S | re.M)[0].strip())
        for text in (README, (ROOT / "docs/results/suite/leaderboard.md").read_text())
    )
    assert len(shown) >= 5
    for agent, row in shown.items():
        for column, figure in list(row.items())[1:]:
            known = "IQM" if "IQM" in column else column.replace(" ", "-")
            assert board[agent][known].split()[0] == figure, (agent, column)


def test_every_agent_has_a_text_with_its_equation_and_when_it_works():
    for name in AGENTS:
        text = (ROOT / f"docs/agents/{name.replace(':', '-')}.text.md").read_text()
        assert "$" in text and "## When it works, and when not" in text, name
