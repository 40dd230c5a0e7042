"""The first comparisons, the README's and the start page's, at their full length: minutes."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from routing_gym.experiments.cli import main

START = (Path(__file__).parents[2] / "docs/start.md").read_text()


def accuracies(arguments, out):
    """Mean test accuracy of every agent of a comparison."""
    assert main(["compare", *arguments, "--out", str(out)]) == 0
    records = json.loads((out / "results.json").read_text())
    assert all(record["macs"] == 64 * 48 + 48 * 48 + 48 * 2 for record in records)
    agents = {record["agent"] for record in records}
    return {name: np.mean([r["test_accuracy"] for r in records if r["agent"] == name]) for name in agents}


@pytest.mark.slow
def test_wpl_solves_digits_mtl(tmp_path):
    """Five seeds: WPL at 98 % or better and within a point of task-specific-all, shared at the majority class."""
    agents = ["wpl", "task-specific-all", "shared", "random-fixed"]
    accuracy = accuracies(["--agents", *agents, "--seeds", "5"], tmp_path)
    assert accuracy["wpl"] >= 0.98
    assert abs(accuracy["wpl"] - accuracy["task-specific-all"]) < 0.01
    assert accuracy["shared"] == pytest.approx(0.9, abs=1e-9)


@pytest.mark.slow
def test_the_start_page_shows_what_its_command_prints(tmp_path):
    command = re.search(r"^routing-gym compare (.*?) --out", START, flags=re.S | re.M)[1].replace("\\\n", " ")
    shown = re.findall(r"^ ([a-z-]+) +([\d.]+) ± ([\d.]+)", START, flags=re.M)
    accuracy = accuracies(shlex.split(command), tmp_path)
    assert len(shown) == len(accuracy) == 3
    for agent, mean, half in shown:
        assert 100 * accuracy[agent] == pytest.approx(float(mean), abs=max(0.3, float(half))), agent
