"""Q-learning and SARSA against targets worked out row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ExitTree, scores_of, small_env

from routing_gym.agents import make_agent
from routing_gym.envs import Context, rollout
from routing_gym.networks import RoutedMLP


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["q-learning", "sarsa"]),
    arrangement=st.sampled_from(["per_task", "single"]),
    representation=st.sampled_from(["table", "mlp"]),
    gamma=st.sampled_from([0.5, 1.0]),
    family=st.sampled_from(["mlp", "tree"]),
    seed=st.integers(0, 10**4),
)
def test_the_step_is_that_of_the_rows(name, arrangement, representation, gamma, family, seed):
    env = small_env(ExitTree([[1, 2], [], [3], []]) if family == "tree" else None, k_cpt=0.01, seed=seed)
    agent = make_agent(name, env, arrangement=arrangement, representation=representation, gamma=gamma, seed=seed)
    for _ in range(2):
        trajectory = rollout(agent, env)
        loss, visits = torch.zeros(()), {}
        for row in range(12):
            for i, step in enumerate(trajectory.steps):
                if not step.active[row]:
                    continue
                choice = int(step.action[row])
                target = float(step.reward[row])
                later = trajectory.steps[i + 1] if i + 1 < len(trajectory.steps) else None
                if later is None or not later.active[row]:
                    target += float(trajectory.final_reward[row])
                else:
                    ahead = scores_of(agent, later, row).detach()
                    target += gamma * float(ahead.max() if name == "q-learning" else ahead[int(later.action[row])])
                loss = loss + 0.5 * (target - scores_of(agent, step, row)[choice]) ** 2
                who = int(trajectory.task[row]) if arrangement == "per_task" else 0
                visits.setdefault((who, int(step.decision[row]), choice), []).append(target)
        if representation == "table":
            expected = agent.scores.table.detach().clone()
            for cell, targets in visits.items():
                expected[cell] += (1 - 0.99 ** len(targets)) * (sum(targets) / len(targets) - expected[cell])
            agent.receive(trajectory)
            torch.testing.assert_close(agent.scores.table[:, :-1].detach(), expected[:, :-1])
        else:
            parameters = list(agent.scores.parameters())
            gradients = torch.autograd.grad(loss / 12, parameters)
            agent.receive(trajectory)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("name", ["q-learning", "sarsa"])
@pytest.mark.parametrize("representation", ["table", "mlp"])
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_the_best_arm_of_a_noisy_bandit_becomes_greedy(name, representation, shift):
    """Three arms of mean 0.2, 0.5, 0.8 (or all negative), noise 1: the best is greedy in 10 of 10 seeds."""
    means = torch.tensor([0.2, 0.5, 0.8]) + shift
    env = small_env(RoutedMLP((1, 2, 3), 3, 3, width=4, layers=1), 32)
    for seed in range(10):
        rate = 0.005 if representation == "table" else 0.003
        agent = make_agent(
            name, env, arrangement="single", representation=representation, seed=seed, learning_rate=rate
        )
        noise = torch.Generator().manual_seed(seed)
        trajectory = rollout(agent, env)
        observation = {key: torch.zeros_like(value) for key, value in env.reset()[0].items()}
        trajectory.steps[0].observation, trajectory.task = observation, observation["task"]
        context = Context(torch.ones(32, dtype=torch.bool), torch.ones(32, 3, dtype=torch.bool))
        for _ in range(400):
            action = trajectory.steps[0].action = agent.act(observation, context)
            trajectory.final_reward = means[action] + torch.randn(32, generator=noise)
            agent.receive(trajectory)
            agent.episodes += 32
        context.deterministic = True
        assert int(agent.act(observation, context)[0]) == 2, seed


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
        ({"representation": "forest"}, "representation must be one of"),
        ({"learning_rate": 1.5}, r"learning_rate must lie in \(0, 1.0\], got 1.5"),
        ({"epsilon": 2.0}, r"epsilon must lie in \[0, 1\]"),
        ({"epsilon_episodes": 0}, "epsilon_episodes must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_agent("q-learning", small_env(), **options)
