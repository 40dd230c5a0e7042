"""What a batch has not been to costs nothing and stays: going over what it visited is going over all."""

import copy

import gymnasium
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routing_gym.agents import Agent, make_agent, needs, parts, q_learning, train_batch, wpl
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
    ("reinforce", {"representation": "mlp", "into_blocks": True}),
    ("actor-critic", {"representation": "mlp"}),
    ("gumbel", {}),
    ("gumbel", {"representation": "mlp"}),
    ("soft-mixture", {"conditioned": True, "arrangement": "per_task", "optimizer": "sgd"}),
]


@pytest.fixture(autouse=True)
def _nothing_is_too_small(monkeypatch):
    monkeypatch.setattr(parts.scores, "LARGE", 0)


def made(name, **options):
    torch.manual_seed(0)
    kwargs = {"action_type": needs(name)["action_type"], "differentiable": "into_blocks" in options}
    kwargs |= {"num_tasks": TASKS, "num_blocks": 3, "width": 8, "autoreset_mode": "disabled"}
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=BATCH, **kwargs).unwrapped
    return make_agent(name, env, **options)


def trained(name, options):
    agent = made(name, **options)
    metrics = [train_batch(agent, agent.env)[2] for _ in range(4)]
    assert all(getattr(part, "used", None) is None for part in agent.modules())  # nothing is left to the next step
    return agent, metrics


@pytest.mark.parametrize(("name", "options"), AGENTS, ids=lambda part: part if isinstance(part, str) else None)
def test_few_agents_of_many_learn_as_if_all_were_gone_over(name, options, monkeypatch):
    agent, metrics = trained(name, options)
    for module in (parts.scores, wpl, q_learning):
        monkeypatch.setattr(module, "visited", lambda cells, *_: (None, cells))
    dense, expected = trained(name, options)
    torch.testing.assert_close(agent.state_dict(), dense.state_dict(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(metrics, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), AGENTS, ids=lambda part: part if isinstance(part, str) else None)
def test_a_saved_agent_goes_on_bit_for_bit(name, options, tmp_path):
    agent, _ = trained(name, options)
    agent.save(tmp_path / "agent.pt")
    loaded, found = Agent.load(tmp_path / "agent.pt", made(name, **options).env), []
    for one in (agent, loaded):
        one.env.reset(seed=1)
        found.append([train_batch(one, one.env)[2] for _ in range(3)])
    assert found[0] == found[1]
    kept, wanted = loaded.state_dict(), agent.state_dict()
    assert all(torch.equal(kept[key], wanted[key]) for key in wanted if key != "generator")


@pytest.mark.parametrize("rows", [0, 1, BATCH])
def test_gradients_of_large_stacks_are_of_what_was_asked_alone(rows, monkeypatch):
    """One network, which needs no sorting, included; and none."""
    agent, found = made("reinforce", representation="mlp"), []
    observation = {key: value[:rows] for key, value in agent.env.reset()[0].items()}
    for large in (0, 2**40):
        monkeypatch.setattr(parts.scores, "LARGE", large)
        agent.optimizer.zero_grad()
        scores = agent.scores(observation, observation["task"])
        assert scores.shape == (rows, 1, 3)
        scores.square().sum().backward()
        found.append([parameter.grad for parameter in agent.scores.parameters()])
    for sparse, dense in zip(*found, strict=True):
        assert sparse.is_sparse and sparse._nnz() == len(observation["task"].unique()) and not dense.is_sparse
        torch.testing.assert_close(sparse.to_dense(), dense)


def policy_entropy(agent):
    exists = agent.env.network.exists[:-1]
    entropy = torch.special.entr(agent._table).sum(-1)[:, : agent.num_decisions]
    return float(entropy[:, exists].mean())


def test_entropies_are_of_the_table_as_it_is():
    """Whatever has been written to the table, or put into its place, since they were worked out last."""
    agent, other = made("wpl"), trained("wpl", {"policy_rate": 0.5})[0]
    for number in range(5):
        trajectory, _, metrics = train_batch(agent, agent.env)
        assert float(metrics["policy_entropy"]) == pytest.approx(policy_entropy(agent))
        copied = copy.deepcopy(agent)  # its tensors begin to count their versions anew
        copied.load_state_dict(other.state_dict())
        for _ in range(number - 1):
            copied._table.mul_(1)
        for _ in range(2):
            assert float(copied.receive(trajectory)["policy_entropy"]) == pytest.approx(policy_entropy(copied))


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", ["wpl", "q-learning", "reinforce"])
def test_few_rows_of_many_agents_are_planned_as_all_are(name, deterministic):
    agent = made(name)
    table = agent._table if name == "wpl" else agent.scores.table
    with torch.no_grad():
        table.copy_(torch.rand(table.shape, generator=torch.Generator().manual_seed(0)))
    task = torch.arange(TASKS)
    state = agent.generator.get_state()
    everyone = agent.plan(task, deterministic)
    for begin in range(0, TASKS, BATCH):  # the same numbers are drawn, one batch after the other
        few = task[begin : begin + BATCH]
        if not begin:
            agent.generator.set_state(state)
        assert torch.equal(agent.plan(few, deterministic), everyone[few])


@given(st.lists(st.integers(0, 99), min_size=1, max_size=12))
def test_cells_are_numbered_among_those_visited(numbers):
    cells = torch.tensor(numbers)
    been, place = visited(cells, 100)
    assert been is not None and torch.equal(been[place], cells) and been.tolist() == sorted(set(numbers))
    assert visited(cells, 4 * len(cells))[0] is None
