"""What the part block-skip of `bench` measures; how fast anything is, is left to those who look."""

import json

import pytest
import torch

from routing_gym.agents.trained.classify import route_out
from routing_gym.experiments.benchmarks import block_skip
from routing_gym.experiments.benchmarks.report import tables
from routing_gym.experiments.cli import main
from routing_gym.networks import make_network

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """Three blocks, 2 wide."""
    monkeypatch.setattr(block_skip, "NETWORKS", ("resnet32-skip",))

    def make(name, **options):
        return make_network(name, width=2, stages=[1, 1, 1], **options)

    monkeypatch.setattr(block_skip, "make_network", make)


def test_as_many_images_run_each_block_as_shall(small):
    data = {"train": block_skip.stand_in_images(1, 10, per_class=2)}
    images = data["train"].pixels(torch.arange(20))
    for share, count in ((1.0, 20), (0.75, 15), (0.25, 5), (0.0, 0)):
        agent = block_skip._prescribed("resnet32-skip", data, 20, images, share)
        network = agent.env.network
        (state,) = route_out(agent, images)
        spent = (state.macs.double() - network.stem_macs).sum()
        assert float(spent) == pytest.approx(count * sum(decision.macs[1] for decision in network.decisions))


def test_records_add_up(small):
    records = block_skip.measure_block_skip("resnet32-skip", 20, 1, CPU)
    assert [record["share"] for record in records] == list(block_skip.SHARES)
    for record in records:
        assert record["batch"] == 20 and record["microseconds"] > 0 and record["static_microseconds"] > 0
        assert record["time_ratio"] == pytest.approx(record["microseconds"] / record["static_microseconds"])
    first, *others = records
    assert first["macs_ratio"] > 1, "all blocks and the routers"
    assert first["saving_arrived"] is first["of_routed"] is None
    for record in others:
        expected = (1 - record["time_ratio"]) / (1 - record["macs_ratio"])
        assert record["saving_arrived"] == pytest.approx(expected)
        assert record["macs_ratio"] < first["macs_ratio"]
        against = (1 - record["time_ratio"] / first["time_ratio"]) / (1 - record["macs_ratio"] / first["macs_ratio"])
        assert record["of_routed"] == pytest.approx(against)


def test_the_command_writes_what_it_measured(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("routing_gym.experiments.bench.NETWORKS", ("resnet32-skip",))
    out = tmp_path / "skip.json"
    assert main(["bench", "--parts", "block-skip", "--batch", "10", "20", "--rounds", "1", "--out", str(out)]) == 0
    records = json.loads(out.read_text())
    assert [(record["batch"], record["share"]) for record in records] == [
        (batch, share) for batch in (10, 20) for share in block_skip.SHARES
    ]
    assert {record["part"] for record in records} == {"block-skip"}
    (table,) = tables(records)
    assert "Blocks that are skipped" in str(table.title)
