"""Optimisers of agents' own parameters: steps by hand, rates that follow the blocks', and saved states."""

import copy

import pytest
import torch
from damage import same
from toys import CLASSES, IMAGE, small_env

from routing_gym.agents import Agent, make_agent, train_batch
from routing_gym.agents.base.checkpoint import read, write
from routing_gym.networks import ColumnsMLP, RoutedMLP

CASES = [
    ("cross-stitch", {}),
    ("soft-mixture", {}),
    ("soft-mixture", {"conditioned": True}),
    ("gumbel", {}),
    ("gumbel", {"representation": "mlp"}),
    ("reinforce", {}),
    ("reinforce", {"representation": "mlp"}),
    ("q-learning", {"representation": "mlp"}),
    ("sarsa", {"representation": "mlp"}),
    ("actor-critic", {}),
]


def made(name, **options):
    torch.manual_seed(0)
    if name == "cross-stitch":
        network = ColumnsMLP(IMAGE, CLASSES, 3, width=4, layers=2, num_tasks=3)
    else:
        network = RoutedMLP(IMAGE, CLASSES, 3, width=4, layers=2)
    mixes = name in ("cross-stitch", "soft-mixture", "gumbel")
    env_options = {
        "learning_rate": 0.5,
        "schedule": "step",
        "schedule_epochs": 0.01,
        "dense_backward": name == "gumbel",
    }
    env = small_env(network, 24, action_type="weights" if mixes else "discrete", **env_options)
    return make_agent(name, env, **options)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("rate", [None, 0.3])
def test_plain_descent(name, options, rate):
    """Every parameter moves by minus the rate times its gradient; the rate is the blocks' unless one is asked for."""
    agent = made(name, optimizer="sgd", learning_rate=rate, **options)
    moved = 0.0
    for _ in range(2):
        before = copy.deepcopy(agent.state_dict())
        joint = agent.env.trainer.rate
        train_batch(agent, agent.env)
        expected = rate or (joint if agent.needs_gradients else agent.env.trainer.rate)  # after the blocks' step
        for full_name, parameter in agent.named_parameters():
            if parameter.grad is not None:
                step = expected * parameter.grad
                torch.testing.assert_close(parameter.detach(), before[full_name] - step)
                moved += float(step.abs().max())
    assert moved > 0
    assert agent.env.trainer.rate < 0.5  # it has fallen


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", ["gumbel", "cross-stitch", "reinforce"])
def test_a_saved_agent_goes_on_with_its_optimiser(name, optimizer, tmp_path):
    agent = made(name, optimizer=optimizer)
    train_batch(agent, agent.env)
    agent.save(tmp_path / "agent.pt")
    restored = Agent.load(tmp_path / "agent.pt", made(name).env)
    assert type(restored.optimizer) is type(agent.optimizer)
    for one in (agent, restored):
        one.env.reset(seed=1)
        train_batch(one, one.env)
    assert same(agent.state_dict(), restored.state_dict())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_state_of_another_optimiser_is_refused(optimizer, tmp_path):
    agent = made("reinforce", optimizer=optimizer)
    train_batch(agent, agent.env)
    agent.save(tmp_path / "agent.pt")
    saved = read(tmp_path / "agent.pt")
    saved["config"]["optimizer"] = {"adam": "sgd", "sgd": "adam"}[optimizer]
    write(tmp_path / "other.pt", saved)
    with pytest.raises(ValueError, match=r"does not fit this environment: agent_optimizer\.param_groups"):
        Agent.load(tmp_path / "other.pt", made("reinforce").env)


def test_tables_of_values_have_no_optimiser():
    with pytest.raises(ValueError, match="optimizer is for representation='mlp', got 'sgd'"):
        made("q-learning", optimizer="sgd")
