"""The examples run as their own first lines say, and stay short."""

import json
import re
from pathlib import Path

import gymnasium
import pytest

from routing_gym.experiments.cli import main
from routing_gym.registration import ENV_IDS
from routing_gym.testing import check_vector_env

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
LIMITS = {"ucb_agent.py": 40}


@pytest.mark.long
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run_as_they_say(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    assert len(text.splitlines()) <= LIMITS.get(path.name, 60)
    command = re.search(r"^routing-gym (.*)$", text, re.M).group(1).split()
    assert main([*command, "--seeds", "1", "--epochs", "1", "--batch-size", "1024", "--out", str(tmp_path)]) == 0
    agents = command[command.index("--agents") + 1 :]
    records = json.loads((tmp_path / "results.json").read_text())
    assert [record["agent"] for record in records] == agents
    for env_id in set(ENV_IDS) - {record for record in ENV_IDS if record.startswith("routing_gym/")}:
        check_vector_env(gymnasium.make_vec(env_id, num_envs=6))
    assert main(["evaluate", str(tmp_path / agents[0] / "seed-0" / "checkpoint.pt"), "--plugin", str(path)]) == 0


def test_there_is_an_example_of_everything_that_plugs_in():
    text = "".join(path.read_text() for path in EXAMPLES)
    for what in ("register_agent(", "register_network(", "register_dataset(", "register_reward(", "register_env(",
                 "FunctionBlocks)"):  # fmt: skip
        assert what in text
    guides = "".join(path.read_text() for path in (ROOT / "docs/howto").glob("*.md"))
    assert all(path.name in guides for path in EXAMPLES)
