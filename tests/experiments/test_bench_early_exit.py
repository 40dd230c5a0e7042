"""What the part early-exit of `bench` measures; how fast anything is, is left to those who look."""

import json

import gymnasium
import pytest
import torch

from routing_gym.agents import make_agent
from routing_gym.agents.trained.classify import classify, route_out
from routing_gym.experiments.benchmarks import early_exit
from routing_gym.experiments.benchmarks.report import tables
from routing_gym.experiments.cli import main
from routing_gym.networks import RoutedPyramid, make_network, ways_out

CPU = torch.device("cpu")
CUMULATIVE = [1.364, 5.272, 7.560, 11.394, 13.463, 17.002, 18.192, 20.551]
"""Million multiply-accumulates of the first n columns and a classifier."""
ROUTERS = [4384, 4384, 8480, 8480, 16672, 16672, 33056]
"""Those of each router."""
HYBRID = "routing_gym/HybridEarlyExit-v0"


@pytest.fixture
def small(monkeypatch):
    """The same chain, 2 wide, and few images."""
    monkeypatch.setattr(early_exit, "LEAST", 8)
    monkeypatch.setattr(early_exit, "make_network", lambda name, **options: make_network(name, width=2, **options))


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.long
def test_prescribed_exits_are_taken(monkeypatch):
    """At the paper's width, where the costs are known; 30 % of 40, of 28, of 20, ... leave."""
    monkeypatch.setattr(early_exit, "LEAST", 20)
    routed = {one.case: one for one in early_exit.prescribed(CPU, 4)}
    assert list(routed) == [
        "nobody leaves early",
        *(f"all leave after column {number}" for number in range(1, 8)),
        "30 % leave at every exit",
    ]
    for number, one in enumerate(routed.values()):
        assert one.images.shape == (40, 3, 32, 32) and one.agent.name == "actor" and not one.agent.training
        assert [one.agent.macs(decision) for decision in range(7)] == ROUTERS
        states = [route_out(one.agent, part) for part in one.images.split(10)]
        macs, own, shares = early_exit._costs(one, states, 40)
        if number == 8:
            left = [12, 8, 6, 4, 3, 2, 2]
            assert shares == [count / 40 for count in [*left, 40 - sum(left)]]
        else:
            assert shares == [float(leaves == (number - 1) % 8) for leaves in range(8)]
        assert macs == pytest.approx(sum(s * 1e6 * c for s, c in zip(shares, CUMULATIVE, strict=True)), rel=1e-3)
        still = [sum(shares[decision:]) for decision in range(7)]
        assert own == pytest.approx(sum(s * c for s, c in zip(still, ROUTERS, strict=True)))


def test_the_floor_is_the_plain_network_of_each_way_out(small):
    one = early_exit.prescribed(CPU, 8)[-1]
    batches = one.images.split(8)
    states = [route_out(one.agent, part) for part in batches]
    ways = early_exit._ways(states)
    assert [sorted(torch.cat([rows for _, rows in own]).tolist()) for own in ways] == [list(range(8))] * 2
    plain = {way: one.network.static_prefix(*way).eval() for way in ways_out(one.network.decisions)}
    assert sum(map(len, ways)) > 4
    for part, own in zip(batches, ways, strict=True):
        logits = classify(one.agent, part)
        for way, rows in own:
            torch.testing.assert_close(plain[way](part[rows]), logits[rows], rtol=1e-4, atol=1e-5)


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
    (record,) = early_exit.measure_early_exit(lambda: early_exit.trained("a tree", agent, 4), 4, 1)
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
