"""What the parts early-exit and block-skip of `bench` measure; how fast anything is, is left to those who look."""

import json
from functools import partial

import gymnasium
import pytest
import torch
from commands import run

from routing_gym.agents import make_agent
from routing_gym.experiments.bench import tables
from routing_gym.experiments.benchmarks import inference
from routing_gym.networks import RoutedPyramid, make_network

CPU = torch.device("cpu")
CUMULATIVE = [1.364, 5.272, 7.560, 11.394, 13.463, 17.002, 18.192, 20.551]
"""Million multiply-accumulates of the first n columns and a classifier."""
ROUTERS = [4384, 4384, 8480, 8480, 16672, 16672, 33056]
"""Those of each router."""
HYBRID = "routing_gym/HybridEarlyExit-v0"


@pytest.fixture
def small(monkeypatch):
    """The same networks, 2 wide, ResNets of three blocks, and few images."""

    def make(name, **options):
        return make_network(name, width=2, **({"stages": [1, 1, 1]} if "skip" in name else {}), **options)

    monkeypatch.setattr(inference, "LEAST", 8)
    monkeypatch.setattr(inference, "make_network", make)


@pytest.mark.long
def test_prescribed_exits_are_taken(monkeypatch):
    """At the paper's width, where the costs are known; 30 % of 40, of 28, of 20, ... leave."""
    monkeypatch.setattr(inference, "LEAST", 20)
    routed = {record["case"]: agent for agent, record in inference.prescribed("pyramid-chain", CPU, 4)}
    assert list(routed) == [
        "nobody leaves early",
        *(f"all leave after column {number}" for number in range(1, 8)),
        "30 % leave at every exit",
    ]
    for number, agent in enumerate(routed.values()):
        rows, images = inference.images_of(agent.env, 4)
        assert images.shape == (40, 3, 32, 32) and agent.name == "actor" and not agent.training
        assert [agent.macs(decision) for decision in range(7)] == ROUTERS
        macs, own, *shares = inference.means_of(agent, inference.routes_of(agent, rows.split(10), None)).tolist()
        if number == 8:
            left = [12, 8, 6, 4, 3, 2, 2]
            assert shares == [count / 40 for count in [*left, 40 - sum(left)]]
        else:
            assert shares == [float(leaves == (number - 1) % 8) for leaves in range(8)]
        assert macs == pytest.approx(sum(s * 1e6 * c for s, c in zip(shares, CUMULATIVE, strict=True)), rel=1e-3)
        still = [sum(shares[decision:]) for decision in range(7)]
        assert own == pytest.approx(sum(s * c for s, c in zip(still, ROUTERS, strict=True)))


def test_the_floor_is_the_plain_network_of_each_way_out(small, monkeypatch):
    """Every image that a batch is timed on goes, in turn, through what the routed network computes for it."""
    timed = {}
    monkeypatch.setattr(inference, "in_turns", lambda steps, *_: timed.update(steps) or dict.fromkeys(steps, [1.0]))
    make = lambda batch: inference.prescribed("pyramid-chain", CPU, batch)[-1:]  # noqa: E731
    inference.measure_inference(make, 8, 1)
    case, whole = "30 % leave at every exit", "the whole network"
    assert list(timed) == [(what, place) for place in range(2) for what in (whole, case, f"floor of {case}")]
    for place in range(2):
        ((classify, images, task),) = timed[case, place].args[0]
        logits, calls = classify(images, task), timed[f"floor of {case}", place].args[0]
        assert len(calls) > 2
        with torch.no_grad():
            left = [(plain(own), own) for plain, own in calls]
        row_of = {tuple(image.flatten()[:9].tolist()): row for row, image in enumerate(images)}
        rows = [row_of[tuple(image.flatten()[:9].tolist())] for _, own in left for image in own]
        assert sorted(rows) == list(range(8))
        torch.testing.assert_close(torch.cat([own for own, _ in left]), logits[rows], rtol=1e-4, atol=1e-5)
        ((plain, own),) = timed[whole, place].args[0]
        assert own is images and len(plain.columns) == 8


@pytest.mark.long
def test_prescribed_exits_are_recorded_and_tabled(small, tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert run("bench", "--parts", "early-exit", "--batch", 1, 16, "--rounds", 1, "--out", out) == 0
    records = json.loads(out.read_text())
    assert [(r["part"], r["batch"]) for r in records] == [("early-exit", 1)] * 9 + [("early-exit", 16)] * 9
    for record in records:
        assert {"threads", "device", "torch", "commit", "processor"} <= set(record)
        assert record["agent"] == "actor" and record["checkpoint"] is None and record["k_cpt"] is None
        assert sum(record["leaving"]) == pytest.approx(1) and len(record["leaving"]) == 8
        time = record["microseconds"] / record["static_microseconds"]
        assert record["time_ratio"] == pytest.approx(time) and record["floor_ratio"] > 0
        saved = 1 - record["macs_ratio"]
        if saved > 0.02:
            assert record["saving_arrived"] == pytest.approx((1 - time) / saved)
    nobody, last = records[9], records[17]
    assert nobody["macs_ratio"] == pytest.approx(1 + nobody["router_macs_ratio"]) and nobody["saving_arrived"] is None
    assert last["macs_ratio"] < 0.6
    printed = capsys.readouterr().out
    assert "30 % leave at every exit" in printed and "Early exit, inference" in printed
    assert [table.row_count for table in tables(records)] == [18]


def saved(tmp_path, name, **options):
    env = gymnasium.make_vec(HYBRID, num_envs=8, columns=3, width=2, autoreset_mode="disabled", **options)
    agent = make_agent(name, env)
    path = tmp_path / f"{name}.pt"
    agent.save(path)
    return path


def test_checkpoints_are_measured_on_their_test_split(small, tmp_path):
    """One that sees the price at each it knows; where images are shared out there is no floor."""
    needs = {"action_type": "weights", "differentiable": True}
    prices = saved(tmp_path, "actor", price=True, k_cpt=[0.0, 1e-8], **needs)
    shared = saved(tmp_path, "soft-mixture", **needs)
    out = tmp_path / "bench.json"
    given = ("--checkpoints", prices, shared, "--batch", 4, "--rounds", 1)
    assert run("bench", "--parts", "early-exit", *given, "--out", out) == 0
    records = json.loads(out.read_text())
    assert [(r["agent"], r["k_cpt"], r["checkpoint"]) for r in records] == [
        ("actor", 0.0, str(prices)), ("actor", 1e-8, str(prices)), ("soft-mixture", None, str(shared)),
    ]  # fmt: skip
    assert [r["floor_ratio"] is None for r in records] == [False, False, True]
    assert records[2]["macs_ratio"] > 1 and len(records[2]["leaving"]) == 3


def test_the_tree_too(small):
    torch.manual_seed(0)
    env = gymnasium.make_vec(
        HYBRID, num_envs=8, network="pyramid-tree", columns=3, width=2, junctions=1, autoreset_mode="disabled"
    )
    agent = make_agent("random-fixed", env)
    assert isinstance(agent.env.network, RoutedPyramid)
    case = {"case": "a tree", "k_cpt": None}
    (record,) = inference.measure_inference(lambda batch: [(agent.eval(), case)], 4, 1)
    assert record["case"] == "a tree" and sum(record["leaving"]) == 1 and len(record["leaving"]) == 5


@pytest.mark.parametrize(
    ("name", "env_id", "message"),
    [("wpl", "routing_gym/DigitsMTL-v0", "is for pyramid-chain and pyramid-tree"), (None, None, "no such checkpoint")],
)
def test_checkpoints_that_cannot_be_measured_are_refused_before_anything_is(name, env_id, message, tmp_path, capsys):
    path = tmp_path / "wpl.pt"
    if name:
        make_agent(name, gymnasium.make_vec(env_id, num_envs=8, autoreset_mode="disabled")).save(path)
    out = tmp_path / "new" / "bench.json"
    assert run("bench", "--parts", "early-exit", "--checkpoints", path, "--out", out) == 2
    assert message in " ".join(capsys.readouterr().err.split()) and not out.exists()


def test_as_many_images_run_each_block_as_shall(small, monkeypatch):
    monkeypatch.setattr(inference, "SHARES", (1.0, 0.75, 0.25, 0.0))
    for agent, record in inference.prescribed("resnet32-skip", CPU, 20):
        network, (rows, images) = agent.env.network, inference.images_of(agent.env, 20)
        assert images.shape == (20, 3, 32, 32)
        macs, *_, leaving = inference.means_of(agent, inference.routes_of(agent, [rows], None)).tolist()
        behind = sum(decision.macs[1] for decision in network.decisions)
        assert macs - network.stem_macs == pytest.approx(record["share"] * behind) and leaving == 1


def test_records_of_skipped_blocks_add_up(small):
    make = partial(inference.prescribed, "resnet32-skip", CPU)
    first, *others = records = inference.measure_inference(make, 20, 1)
    assert [record["share"] for record in records] == list(inference.SHARES)
    for record in records:
        assert record["batch"] == 20 and record["microseconds"] > 0 and record["static_microseconds"] > 0
        assert record["time_ratio"] == pytest.approx(record["microseconds"] / record["static_microseconds"])
    assert first["macs_ratio"] == pytest.approx(1 + first["router_macs_ratio"]) and first["macs_ratio"] > 1
    assert first["saving_arrived"] is first["of_routed"] is None
    for record in others:
        expected = (1 - record["time_ratio"]) / (1 - record["macs_ratio"])
        assert record["saving_arrived"] == pytest.approx(expected)
        assert record["macs_ratio"] < first["macs_ratio"]
        against = (1 - record["time_ratio"] / first["time_ratio"]) / (1 - record["macs_ratio"] / first["macs_ratio"])
        assert record["of_routed"] == pytest.approx(against)


def test_the_command_writes_what_it_measured_of_skipped_blocks(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(inference, "SKIPS", ("resnet32-skip",))
    out = tmp_path / "skip.json"
    assert run("bench", "--parts", "block-skip", "--batch", 10, 20, "--rounds", 1, "--out", out) == 0
    records = json.loads(out.read_text())
    assert [(record["batch"], record["share"]) for record in records] == [
        (batch, share) for batch in (10, 20) for share in inference.SHARES
    ]
    assert {record["part"] for record in records} == {"block-skip"}
    (table,) = tables(records)
    assert "Blocks that are skipped" in str(table.title)
