"""Commands on an id of one task that instances leave at different depths."""

import json

import numpy as np
import pytest
from PIL import Image

from routing_gym import evaluate
from routing_gym.agents import FixedRoutes, FixedRoutesConfig, make_agent
from routing_gym.experiments.cli import main
from routing_gym.experiments.train import load_with_env

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


def test_one_network_has_a_point_for_every_budget_which_its_thresholds_give(tmp_path):
    small = ["--env", "routing_gym/Budget-v0", "--env-options", "width=2", "images=300", "--epochs", "2"]
    agents = ["--agents", "shared", "confidence", "--seeds", "2", "--out", str(tmp_path)]
    assert main(["compare", *small, *agents, "--batch-size", "30"]) == 0
    records = json.loads((tmp_path / "results.json").read_text())
    assert ["exit_curves" in record for record in records] == [False, False, True, True]
    curves = records[2]["exit_curves"]
    agent = load_with_env(tmp_path / "confidence" / "seed-0" / "checkpoint.pt")
    stops = [evaluate(FixedRoutes(*fixed(agent, route)), fixed(agent, route)[0]) for route in ([0, 0], [1, 0], [1, 1])]
    looked = np.cumsum([0.0, *(decision.macs[0] for decision in agent.env.network.decisions)])
    for point, stop, looks in zip(curves["anytime"], stops, looked, strict=True):
        assert point["accuracy"] == pytest.approx(stop.accuracy) and point["macs"] == pytest.approx(stop.macs + looks)
    several = 0
    for measure in ("max-softmax", "entropy", "patience"):
        assert len(curves[measure]) == 8 and curves[measure][0]["macs"] <= 1.1 * curves["anytime"][0]["macs"]
        for point in curves[measure]:
            if point["threshold"] is not None:
                several += 1
                again = make_agent("confidence", agent.env, measure=measure, threshold=max(point["threshold"], 0))
                judged = evaluate(again, agent.env)
                assert (point["accuracy"], point["macs"]) == pytest.approx((judged.accuracy, judged.macs))
    assert several > 6
    picture = np.array(Image.open(tmp_path / "accuracy_by_macs.png").convert("L"))
    assert picture.std() > 5


def fixed(agent, route):
    """An environment over an agent's blocks that takes choices, and options by which all take one route."""
    env = agent.env.sibling(30, action_type="discrete", train=False)
    return env, FixedRoutesConfig(routes=[route])
