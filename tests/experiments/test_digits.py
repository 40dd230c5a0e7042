"""The first comparison, at its defaults: minutes long."""

import json

import numpy as np
import pytest

from routing_gym.experiments.cli import main


@pytest.mark.slow
def test_wpl_solves_digits_mtl(tmp_path):
    """Five seeds: WPL at 98 % or better and within a point of task-specific-all, shared at the majority class."""
    agents = ["wpl", "task-specific-all", "shared", "random-fixed"]
    assert main(["compare", "--agents", *agents, "--seeds", "5", "--out", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "results.json").read_text())
    accuracy = {name: np.mean([r["test_accuracy"] for r in records if r["agent"] == name]) for name in agents}
    assert accuracy["wpl"] >= 0.98
    assert accuracy["wpl"] >= accuracy["task-specific-all"] - 0.01
    assert accuracy["shared"] == pytest.approx(0.9, abs=1e-9)
    assert all(r["macs"] == 64 * 48 + 48 * 48 + 48 * 2 for r in records)
