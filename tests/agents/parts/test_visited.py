"""What a batch has not been to costs nothing and stays: going over what it visited is going over all."""

import gymnasium
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routing_gym.agents import make_agent, parts, q_learning, train_batch, wpl
from routing_gym.agents.parts.scores import visited

TASKS, BATCH = 60, 6
AGENTS = [
    ("wpl", {}),
    ("wpl", {"baseline": "policy", "entropy": 0.3, "min_probability": 0.01}),
    ("wpl", {"representation": "mlp"}),
    ("q-learning", {"td_lambda": 0.5}),
    ("q-learning", {"representation": "mlp", "optimizer": "sgd"}),
    ("reinforce", {"entropy": 0.2}),
    ("reinforce", {"representation": "mlp"}),
    ("actor-critic", {"representation": "mlp"}),
]


@pytest.fixture(autouse=True)
def _nothing_is_too_small(monkeypatch):
    monkeypatch.setattr(parts.scores, "LARGE", 0)


def trained(name, options):
    torch.manual_seed(0)
    options_of_env = {"num_tasks": TASKS, "num_blocks": 3, "width": 8}
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=BATCH, **options_of_env).unwrapped
    agent = make_agent(name, env, **options)
    metrics = [train_batch(agent, env)[2] for _ in range(4)]
    return agent, metrics


@pytest.mark.parametrize(("name", "options"), AGENTS, ids=lambda part: part if isinstance(part, str) else None)
def test_few_agents_of_many_learn_as_if_all_were_gone_over(name, options, monkeypatch):
    agent, metrics = trained(name, options)
    for module in (parts.scores, wpl, q_learning):
        monkeypatch.setattr(module, "visited", lambda cells, *_: (None, cells))
    dense, expected = trained(name, options)
    state, wanted = agent.state_dict(), dense.state_dict()
    assert state.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-6, msg=key)
    for got, want in zip(metrics, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=12))
def test_cells_are_numbered_among_those_visited(numbers):
    cells = torch.tensor(numbers)
    been, place = visited(cells, 100)
    assert been is not None and torch.equal(been[place], cells) and been.tolist() == sorted(set(numbers))
    assert visited(cells, 4 * len(cells))[0] is None
