"""WPL against Algorithm 3 worked through visit by visit."""

import itertools

import pytest
import torch
from deciding import choice_of, choosers, learned_from, legal_for, scores_of, who_decides
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toys import of_family, small_env

from routing_gym.agents import WPL, make_agent
from routing_gym.agents.parts.losses import project
from routing_gym.envs import rollout
from routing_gym.networks import RoutedMLP


def visits_of(agent, trajectory):
    """Every choice, by cell (agent, row, tensor, choice): its returns, and where it was made."""
    visits = {}
    for row in range(len(trajectory)):
        rewards = [float(step.reward[row]) for step in trajectory.steps]
        chose = choosers(agent, trajectory.steps, row)
        for i, step in enumerate(trajectory.steps):
            value = float(trajectory.final_reward[row])
            value += sum(agent.config.gamma ** (j - i) * reward for j, reward in enumerate(rewards) if j >= i)
            for tensor in chose[i]:
                cell = (who_decides(agent, step, row), int(step.decision[row]), tensor, choice_of(step, row, tensor))
                visits.setdefault(cell, []).append((value, step, row))
    return visits


def by_tensor(agent, table):
    """A table as `[agent][row][tensor][choice]`, also where there is one tensor."""
    return table.view(*table.shape[:2], agent.num_tensors, -1)


def averaged(agent, visits, rate):
    """The averages after a batch, one cell at a time in plain Python."""
    average = by_tensor(agent, agent._average).tolist()
    for (who, decision, tensor, choice), made in visits.items():
        kept = (1 - rate) ** len(made)
        mean = sum(value for value, _, _ in made) / len(made)
        row = average[who][decision][tensor]
        row[choice] = kept * row[choice] + (1 - kept) * mean
    return average


def scaled(agent, value, chosen, own, averages, policy):
    """What one visit adds, without the rate."""
    if agent.baseline == "action":
        baseline = own
    else:
        baseline = sum(p * r for p, r in zip(policy, averages, strict=True))
    delta = value - baseline
    share = (1 - chosen) if delta < 0 else chosen
    return delta * (share if agent.config.scaling == "algorithm3" else 1 - share)


def algorithm_3(agent, trajectory):
    """The batched Algorithm 3, one visit at a time in plain Python; returns the new table and averages."""
    config, visits = agent.config, visits_of(agent, trajectory)
    table, new = by_tensor(agent, agent._table).tolist(), by_tensor(agent, agent._table).tolist()
    average = averaged(agent, visits, config.policy_rate)
    for (who, decision, tensor, choice), made in visits.items():
        old, averages = table[who][decision][tensor], average[who][decision][tensor]
        for value, _, _ in made:
            moved = scaled(agent, value, old[choice], averages[choice], averages, old)
            new[who][decision][tensor][choice] += config.policy_rate * moved
    for who, decision, tensor in itertools.product(*map(range, torch.tensor(new).shape[:-1])):
        clipped = [min(1.0, max(0.0, p)) for p in new[who][decision][tensor]]
        old = table[who][decision][tensor]
        new[who][decision][tensor] = [p / sum(clipped) for p in clipped] if sum(clipped) > 0 else old
    return torch.tensor(new).view_as(agent._table), torch.tensor(average).view_as(agent._table)


@pytest.mark.long
@settings(max_examples=40, deadline=None)
@given(
    arrangement=st.sampled_from(["per_task", "single", "dispatched"]),
    scaling=st.sampled_from(["algorithm3", "appendix"]),
    baseline=st.sampled_from(["action", "policy"]),
    gamma=st.sampled_from([0.0, 0.5, 1.0]),
    rate=st.sampled_from([0.01, 0.3]),
    family=st.sampled_from(["mlp", "tree", "gates", "columns"]),
    seed=st.integers(0, 10**4),
)
def test_update_is_algorithm_3(arrangement, scaling, baseline, gamma, rate, family, seed):
    env = small_env(of_family(family), k_cpt=0.01, seed=seed)
    agent = make_agent(
        "wpl", env, arrangement=arrangement, scaling=scaling, baseline=baseline, gamma=gamma, policy_rate=rate,
        seed=seed,
    )  # fmt: skip
    for _ in range(3):
        trajectory = rollout(agent, env)
        table, average = algorithm_3(agent, learned_from(agent, trajectory))
        agent.receive(trajectory)
        for row in set(range(agent.arrangement.num_rows)) - {agent.arrangement.left_row}:
            torch.testing.assert_close(agent._average[:, row], average[:, row], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(agent._table[:, row], table[:, row], rtol=1e-4, atol=1e-5)


@pytest.mark.long
@settings(max_examples=20, deadline=None)
@given(
    arrangement=st.sampled_from(["per_task", "single", "dispatched"]),
    scaling=st.sampled_from(["algorithm3", "appendix"]),
    baseline=st.sampled_from(["action", "policy"]),
    family=st.sampled_from(["mlp", "tree", "gates", "columns"]),
    seed=st.integers(0, 10**4),
)
def test_approximators_go_the_way_of_the_table(arrangement, scaling, baseline, family, seed):
    env = small_env(of_family(family), k_cpt=0.01, seed=seed)
    agent = make_agent(
        "wpl", env, representation="mlp", arrangement=arrangement, scaling=scaling, baseline=baseline, seed=seed
    )
    for _ in range(2):
        rolled = rollout(agent, env)
        visits = visits_of(agent, learned_from(agent, rolled))
        average, gain = averaged(agent, visits, 0.05), torch.zeros(())
        for (who, decision, tensor, choice), made in visits.items():
            for value, step, row in made:
                legal = legal_for(agent, step, row, tensor)
                averages = [average[who][decision][tensor][c] for c in legal]
                policy, taken = scores_of(agent, step, row, tensor=tensor).softmax(-1), legal.index(choice)
                chosen = float(policy[taken].detach())
                moved = scaled(agent, value, chosen, averages[taken], averages, policy.tolist())
                gain = gain + moved * policy[taken]
        parameters = list(agent.scores.parameters())
        gradients = torch.autograd.grad(-gain / 12, parameters)
        agent.receive(rolled)
        torch.testing.assert_close([parameter.grad for parameter in parameters], [*gradients], rtol=1e-3, atol=1e-5)


def test_the_entropy_pulls_every_visited_row_towards_uniform():
    env = small_env()
    plain, pulled = (make_agent("wpl", env, entropy=entropy, policy_rate=0.02) for entropy in (0.0, 0.5))
    start = torch.rand(plain._table.shape, generator=torch.Generator().manual_seed(0)) * plain.arrangement.legal
    start /= start.sum(-1, keepdim=True)
    plain._table.copy_(start)
    trajectory = rollout(plain, env)
    expected = start.clone()
    visits = visits_of(plain, trajectory)
    _, average = algorithm_3(plain, trajectory)
    for (who, decision, _, choice), made in visits.items():
        old = start[who, decision, 0]
        softmax = old.log().requires_grad_()
        policy = softmax.softmax(-1)
        (pull,) = torch.autograd.grad(torch.special.entr(policy).sum(), softmax)
        own = average[who, decision, 0]
        for value, _, _ in made:
            moved = scaled(plain, value, float(old[choice]), float(own[choice]), own.tolist(), old.tolist())
            expected[who, decision, 0, choice] += 0.02 * moved
            expected[who, decision, 0] += 0.02 * 0.5 * pull
    expected = project(expected, start, plain.arrangement.legal, 0.0)
    pulled._table.copy_(start)
    pulled.receive(trajectory)
    torch.testing.assert_close(pulled._table[:, :2], expected[:, :2], rtol=1e-4, atol=1e-5)


def test_two_visits_by_hand():
    """One task, two blocks at 0.5; block 0 earned +1, block 1 earned -1; rate 0.1."""
    env = small_env(RoutedMLP((1, 2, 3), 3, 2, width=4, layers=1), 2)
    agent = make_agent("wpl", env, arrangement="single", policy_rate=0.1)
    trajectory = rollout(agent, env)
    trajectory.steps[0].action, trajectory.final_reward = torch.tensor([[0], [1]]), torch.tensor([1.0, -1.0])
    agent.receive(trajectory)
    # averages: 0.1 and -0.1; differences 0.9 and -0.9, both scaled by 0.5; 0.5 ± 0.1 · 0.45
    torch.testing.assert_close(agent.average, torch.tensor([[[0.1, -0.1]]]))
    torch.testing.assert_close(agent.table, torch.tensor([[[0.545, 0.455]]]))
    agent.receive(trajectory)
    # averages: 0.19; difference 0.81, scaled by 0.545 (gain) and by 1 - 0.455 (loss); then divided by the sum
    moved = torch.tensor([0.545 + 0.1 * 0.81 * 0.545, 0.455 - 0.1 * 0.81 * 0.545])
    torch.testing.assert_close(agent.table[0, 0], moved / moved.sum())


def test_collaboration_by_probability_by_hand():
    """ρ · the average probability so far: nothing in the first batch, then the old policy's 0.5 for either block."""
    env = small_env(RoutedMLP((1, 2, 3), 3, 2, width=4, layers=1), 2, rho=0.4)
    agent = make_agent("wpl", env, arrangement="single", policy_rate=0.1)
    first = rollout(agent, env)
    agent.receive(first)
    assert first.steps[0].reward.tolist() == [0.0, 0.0]
    agent.table.copy_(torch.tensor([[[0.9, 0.1]]]))
    second = rollout(agent, env)
    agent.receive(second)
    torch.testing.assert_close(second.steps[0].reward, torch.tensor([0.2, 0.2]))
    third = rollout(agent, env)
    chances = torch.tensor([0.7, 0.3])[third.steps[0].action.flatten()]
    torch.testing.assert_close(third.steps[0].reward, 0.4 * chances)


@settings(max_examples=60)
@example([0.0, 0.0, 1.4e-45], 0.0, 0)
@example([0.0, 1.175494351e-38, 1.175494351e-38], 0.0, 1)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=5), st.sampled_from([0.0, 0.05]), st.integers(0, 100))
def test_projection_gives_probabilities(moved, floor, seed):
    generator = torch.Generator().manual_seed(seed)
    legal = torch.rand(len(moved), generator=generator) < 0.7
    legal[0] = True
    old = legal / legal.sum()
    projected = project(torch.tensor(moved), old, legal, floor)
    assert float(projected.sum()) == pytest.approx(1, abs=1e-5)
    assert bool((projected[~legal] == 0).all()) and bool((projected[legal] >= floor - 1e-6).all())
    total = sum(max(p, 0.0) for p, ok in zip(moved, legal.tolist(), strict=True) if ok)
    if total < 1.1e-38:  # below the smallest normal float32 a row is as good as 0, which is where the old one stays
        torch.testing.assert_close(projected, old)


def test_wpl_routes_every_tensor_of_a_gate():
    env = small_env(of_family("gates"), 4)
    agent = make_agent("wpl", env)
    assert agent.table.shape == (3, 3, 3, 3)
    trajectory = rollout(agent, env)
    assert trajectory.steps[1].action.shape == (4, 3)
    before = agent.table.clone()
    agent.receive(trajectory)
    assert not torch.equal(agent.table, before)
    torch.testing.assert_close(agent.table.sum(-1), torch.ones(3, 3, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_probability": 0.1, "representation": "mlp"}, "min_probability is for representation='table'"),
        ({"num_agents": 3}, "num_agents is for arrangement='dispatched'"),
        ({"scaling": "other"}, "scaling must be '"),
        ({"baseline": "none"}, "baseline must be '"),
        ({"arrangement": "dispatch"}, "arrangement must be '"),
        ({"policy_rate": 0.0}, "policy_rate must be positive"),
        ({"gamma": 1.5}, r"gamma must lie in \[0, 1\]"),
        ({"min_probability": 0.4}, "too much for so many choices"),
        ({"rate": 0.1}, "agent 'wpl' has no option 'rate'; it takes arrangement, baseline"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_agent("wpl", small_env(), **options)


def test_a_subclass_for_one_tensor_is_refused():
    class Single(WPL):
        max_tensors = 1

    with pytest.raises(ValueError, match="leave max_tensors at None"):
        Single(small_env())
