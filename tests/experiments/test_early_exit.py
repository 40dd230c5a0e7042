"""Commands on an id of one task that instances leave at different depths."""

import json

import numpy as np
import pytest
from PIL import Image

from routing_gym.experiments.cli import main

HYBRID = "routing_gym/HybridEarlyExit-v0"
SMALL = ["--env", HYBRID, "--env-options", "columns=3", "width=2", "--batch-size", "32", "--epochs", "1"]


@pytest.mark.long
def test_agents_are_compared(tmp_path):
    agents = ["wpl", "shared", "sb3:DQN", "top-k"]
    assert main(["compare", *SMALL, "--agents", *agents, "--seeds", "1", "--out", str(tmp_path)]) == 0
    records = {record["agent"]: record for record in json.loads((tmp_path / "results.json").read_text())}
    assert list(records) == agents and all(np.shape(record["routes"]) == (1, 2, 2) for record in records.values())
    assert records["shared"]["macs"] < records["top-k"]["macs"]
    assert records["shared"]["env_config"]["k_cpt"] == 4e-9
    picture = np.array(Image.open(tmp_path / "routing_maps.png").convert("L"))
    assert (picture[:, [0, -1]] == 255).all()  # the title is not cut off
    assert main(["evaluate", str(tmp_path / "wpl" / "seed-0" / "checkpoint.pt")]) == 0


@pytest.mark.parametrize(
    ("name", "option"), [("shared-with-task", "task_input=True"), ("cross-stitch", "form='columns'")]
)
def test_agents_whose_options_the_id_does_not_have_are_named(name, option, tmp_path, capsys):
    assert main(["compare", *SMALL, "--agents", "wpl", name, "--seeds", "1", "--out", str(tmp_path)]) == 2
    wrong = f"agent {name!r} needs an environment made with {option}, an option that {HYBRID} does not have: leave"
    assert wrong in capsys.readouterr().err
