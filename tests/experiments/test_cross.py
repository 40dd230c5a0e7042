"""The table of every agent on every network."""

import json

import pytest

from routing_gym.experiments.benchmarks import cross


@pytest.mark.long
def test_every_place_has_figures_or_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(cross, "BATCHES", 2)
    monkeypatch.setattr(cross, "NETWORKS", {name: cross.NETWORKS[name] for name in ("mlp", "resnet32-skip")})
    agents = ("shared", "shared-with-task", "codinet", "actor", "task-specific-all")
    assert cross.main(["--out", str(tmp_path), "--seeds", "2", "--agents", *agents]) == 0
    records = json.loads((tmp_path / "cross.json").read_text())
    runs = {(record["agent"], record["network"]) for record in records if "refused" not in record}
    assert runs == {
        *(("shared", network) for network in cross.NETWORKS),
        ("shared-with-task", "mlp"),
        ("task-specific-all", "mlp"),
        ("codinet", "resnet32-skip"),
    }
    assert all(0 < record["accuracy"] <= 1 and record["batch_ms"] > 0 for record in records if "macs" in record)
    page = (tmp_path / "cross.md").read_text()
    rows = {line.split("`")[1]: line.split("|")[2:4] for line in page.splitlines() if line.startswith("| `")}
    assert rows["actor"] == [" [3] ", " [3] "] and rows["shared-with-task"][1] == " [1] "
    assert rows["task-specific-all"][1] == " [4] " and rows["codinet"][0] == " [2] "
    assert "1. the agent needs a network with the option 'task_input'" + chr(10) in page
    assert "4. the agent needs a block for each of the 3 tasks, a decision offers fewer" in page
