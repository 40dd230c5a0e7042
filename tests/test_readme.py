"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import pytest

from routing_gym.agents import AGENTS
from routing_gym.registration import env_ids

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.long
@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    known = dict(AGENTS)
    try:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    finally:
        AGENTS.clear()
        AGENTS.update(known)
    printed = capsys.readouterr().out
    if "ValueTable" in code:
        assert 0.97 <= float(printed) <= 1 and (tmp_path / "value-table.pt").exists()
    if "render" in code:
        assert re.match(r"task \d: layer 1 -> \d, layer 2 -> \d, layer 3 -> \d (correct|wrong)", printed)


def test_the_tables_name_everything():
    for name in [*env_ids(), *AGENTS]:
        assert f"`{name}`" in README, name
    linked = re.findall(r"\]\((docs/.*?)\)", README)
    assert len(linked) == 3
    # In a clean checkout: what git leaves out is not there.
    for path in [*linked, *re.findall(r"`(docs/[^`]*)`", README)]:
        assert (Path(__file__).parent.parent / path).exists(), path
