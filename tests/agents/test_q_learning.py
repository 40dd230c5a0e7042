"""Q-learning and SARSA against targets worked out row by row."""

import pytest
import torch
from deciding import learned_from, scores_of, who_decides
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ExitTree, small_env

from routing_gym.agents import make_agent
from routing_gym.envs import rollout
from routing_gym.networks import RoutedMLP


@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["q-learning", "sarsa"]),
    arrangement=st.sampled_from(["per_task", "single", "dispatched"]),
    representation=st.sampled_from(["table", "mlp"]),
    gamma=st.sampled_from([0.5, 1.0]),
    td_lambda=st.sampled_from([0.0, 0.3, 1.0]),
    family=st.sampled_from(["mlp", "tree"]),
    seed=st.integers(0, 10**4),
)
def test_the_step_is_that_of_the_rows(name, arrangement, representation, gamma, td_lambda, family, seed):
    env = small_env(ExitTree([[1, 2], [], [3], []]) if family == "tree" else None, k_cpt=0.01, seed=seed)
    agent = make_agent(
        name, env, arrangement=arrangement, representation=representation, gamma=gamma, td_lambda=td_lambda, seed=seed
    )
    for _ in range(2):
        rolled = rollout(agent, env)
        steps = learned_from(agent, rolled).steps
        loss, visits = torch.zeros(()), {}
        for row in range(12):
            target = None
            for step, later in reversed(list(zip(steps, [*steps[1:], None], strict=True))):
                if not step.active[row]:
                    continue
                reward, choice = float(step.reward[row]), int(step.action[row])
                if target is None:
                    target = reward + float(rolled.final_reward[row])
                else:
                    ahead = scores_of(agent, later, row).detach()
                    guess = float(ahead.max() if name == "q-learning" else ahead[int(later.action[row])])
                    target = reward + gamma * ((1 - td_lambda) * guess + td_lambda * target)
                loss = loss + 0.5 * (target - scores_of(agent, step, row)[choice]) ** 2
                cell = (who_decides(agent, step, row), int(step.decision[row]), choice)
                visits.setdefault(cell, []).append(target)
        if representation == "table":
            expected = agent.scores.table.detach().clone()
            for cell, targets in visits.items():
                expected[cell] += (1 - 0.99 ** len(targets)) * (sum(targets) / len(targets) - expected[cell])
            agent.receive(rolled)
            for row in set(range(agent.arrangement.num_rows)) - {agent.arrangement.left_row}:
                torch.testing.assert_close(agent.scores.table[:, row].detach(), expected[:, row])
        else:
            parameters = list(agent.scores.parameters())
            gradients = torch.autograd.grad(loss / 12, parameters)
            agent.receive(rolled)
            torch.testing.assert_close([parameter.grad for parameter in parameters], [*gradients])


@pytest.mark.parametrize("name", ["q-learning", "sarsa"])
def test_credit_reaches_the_first_of_two_steps(name):
    """Only what is decided first matters, and it is paid for at the second decision: the value must travel back."""
    env = small_env(ExitTree([[1, 2], [3], [4], [], []]), num_envs=64)
    agent = make_agent(name, env, arrangement="single", learning_rate=0.05, epsilon_episodes=5000)
    for _ in range(150):
        trajectory = rollout(agent, env)
        trajectory.final_reward = torch.where(trajectory.steps[0].action == 1, 1.0, -1.0)
        agent.receive(trajectory)
        agent.episodes += 64
    table = agent.scores.table[0].detach()
    torch.testing.assert_close(table[0], torch.tensor([-1.0, 1.0, -1.0]), rtol=0, atol=0.05)
    torch.testing.assert_close(table[1, :2], torch.ones(2), rtol=0, atol=0.05)
    torch.testing.assert_close(table[2, :2], -torch.ones(2), rtol=0, atol=0.05)


def test_the_collaboration_reward_knows_how_often_it_explores():
    env = small_env(RoutedMLP((1, 2, 3), 3, 3, width=4, layers=1), 4, rho=0.5)
    agent = make_agent("q-learning", env, arrangement="single", epsilon=0.6, epsilon_final=0.6)
    with torch.no_grad():
        agent.scores.table[0, 0, 2] = 1.0
    record = rollout(agent, env).steps[0].record["probabilities"]
    torch.testing.assert_close(record, torch.tensor([[0.2, 0.2, 0.6]] * 4))


def test_exploration_falls_in_a_straight_line_and_stays_legal():
    env = small_env(ExitTree([[1, 2], [], [3], []]), 256)
    agent = make_agent("q-learning", env, epsilon=0.8, epsilon_final=0.2, epsilon_episodes=1000)
    assert agent.exploration == pytest.approx(0.8)
    agent.episodes = 500
    assert agent.exploration == pytest.approx(0.5)
    agent.episodes = 5000
    assert agent.exploration == pytest.approx(0.2)
    with torch.no_grad():
        agent.scores.table[:, 0, 1] = 1.0
    share = float((rollout(agent, env).steps[0].action == 1).float().mean())
    assert share == pytest.approx(0.8 + 0.2 / 3, abs=0.08)
    assert bool((rollout(agent, env, deterministic=True).steps[0].action == 1).all())


def test_the_copy_that_gives_targets_is_renewed_on_time():
    env = small_env()
    agent = make_agent("q-learning", env, representation="mlp", target_update=2, learning_rate=0.01)
    first = agent.target.output.weight.clone()
    for batch in range(1, 5):
        agent.receive(rollout(agent, env))
        renewed = torch.equal(agent.target.output.weight, agent.scores.output.weight)
        assert renewed == (batch % 2 == 0)
        agent.episodes += 12
    assert not torch.equal(agent.target.output.weight, first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"representation": "forest"}, "representation must be '"),
        ({"learning_rate": 1.5}, r"learning_rate of a table must lie in \(0, 1\], got 1.5"),
        ({"epsilon": 2.0}, r"epsilon must lie in \[0, 1\]"),
        ({"epsilon_episodes": 0}, "epsilon_episodes must be an integer of at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_agent("q-learning", small_env(), **options)
