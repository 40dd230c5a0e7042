"""REINFORCE against the formula, one visit at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ExitTree, Gates, scores_of, small_env

import routing_gym
from routing_gym.agents import make_agent
from routing_gym.envs import Context, rollout
from routing_gym.networks import RoutedMLP


@settings(max_examples=25, deadline=None)
@given(
    arrangement=st.sampled_from(["per_task", "single"]),
    representation=st.sampled_from(["table", "mlp"]),
    baseline=st.sampled_from(["average", "none"]),
    entropy=st.sampled_from([0.0, 0.3]),
    gamma=st.sampled_from([0.5, 1.0]),
    family=st.sampled_from(["mlp", "tree"]),
    seed=st.integers(0, 10**4),
)
def test_the_gradient_is_that_of_the_formula(arrangement, representation, baseline, entropy, gamma, family, seed):
    env = small_env(ExitTree([[1, 2], [], [3], []]) if family == "tree" else None, k_cpt=0.01, seed=seed)
    agent = make_agent(
        "reinforce", env, arrangement=arrangement, representation=representation, baseline=baseline, entropy=entropy,
        gamma=gamma, seed=seed,
    )  # fmt: skip
    for _ in range(2):
        trajectory = rollout(agent, env)
        if "activation" not in trajectory.steps[0].observation:
            assert representation == "table"
        loss, returns = torch.zeros(()), {}
        for row in range(12):
            rewards = [float(step.reward[row]) for step in trajectory.steps]
            for i, step in enumerate(trajectory.steps):
                if not step.active[row]:
                    continue
                value = float(trajectory.final_reward[row])
                value += sum(gamma ** (j - i) * reward for j, reward in enumerate(rewards) if j >= i)
                who = int(trajectory.task[row]) if arrangement == "per_task" else 0
                returns.setdefault((who, int(step.decision[row])), []).append(value)
                if baseline == "average":
                    value -= float(agent.average[who, int(step.decision[row])])
                log_policy = scores_of(agent, step, row).log_softmax(-1)
                loss = loss - value * log_policy[int(step.action[row])]
                loss = loss + entropy * (log_policy.exp() * log_policy).sum()
        parameters = list(agent.scores.parameters())
        expected = torch.autograd.grad(loss / 12, parameters, allow_unused=True)
        average = agent.average.clone()
        agent.receive(trajectory)
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter) if gradient is None else gradient)
        for (who, decision), values in returns.items():
            moved = average[who, decision] + 0.1 * (sum(values) / len(values) - average[who, decision])
            torch.testing.assert_close(agent.average[who, decision], moved)


@pytest.mark.parametrize("representation", ["table", "mlp"])
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_the_best_arm_of_a_noisy_bandit_becomes_greedy(representation, shift):
    """Three arms of mean 0.2, 0.5, 0.8 (or all negative), noise 1: the best is greedy in 10 of 10 seeds."""
    means = torch.tensor([0.2, 0.5, 0.8]) + shift
    env = small_env(RoutedMLP((1, 2, 3), 3, 3, width=4, layers=1), 32)
    for seed in range(10):
        agent = make_agent(
            "reinforce", env, arrangement="single", representation=representation, seed=seed, learning_rate=0.01
        )
        noise = torch.Generator().manual_seed(seed)
        trajectory = rollout(agent, env)
        with torch.no_grad():
            observation = {**trajectory.steps[0].observation, "activation": torch.zeros(32, 6)}
            observation["task"] = torch.zeros_like(observation["task"])
        trajectory.steps[0].observation = observation
        for _ in range(300):
            context = Context(torch.ones(32, dtype=torch.bool), torch.ones(32, 3, dtype=torch.bool))
            action = agent.act(observation, context)
            trajectory.steps[0].action = action
            trajectory.final_reward = means[action] + torch.randn(32, generator=noise)
            agent.receive(trajectory)
        assert int(agent.act(observation, Context(context.active, context.mask, True))[0]) == 2, seed


def test_flipping_the_reward_flips_the_preference():
    preferences = []
    for sign in (1, -1):
        env = small_env(RoutedMLP((1, 2, 3), 3, 2, width=4, layers=1), 4)
        agent = make_agent("reinforce", env, arrangement="single")
        trajectory = rollout(agent, env)
        trajectory.steps[0].action = torch.tensor([0, 1, 0, 1])
        trajectory.final_reward = sign * torch.tensor([1.0, -1.0, 1.0, -1.0])
        agent.receive(trajectory)
        preferences.append(float(agent.scores.table[0, 0, 0] - agent.scores.table[0, 0, 1]))
    assert preferences[0] > 0 > preferences[1] and preferences[0] == pytest.approx(-preferences[1])


def test_illegal_choices_are_never_drawn_and_the_cost_is_counted():
    env = small_env(ExitTree([[1, 2], [], [3], []]), 64)
    agent = make_agent("reinforce", env, representation="mlp", entropy=0.1)
    for _ in range(5):
        agent.receive(rollout(agent, env))  # an illegal choice would be refused
    assert all(bool(parameter.isfinite().all()) for parameter in agent.parameters())
    assert agent.macs(0) == (4 + 3) * 64 + 64 * 3
    assert routing_gym.evaluate(agent, env).router_macs >= agent.macs(0)
    assert make_agent("reinforce", env).macs(0) == 0


def test_what_it_cannot_route_or_be_is_refused():
    with pytest.raises(ValueError, match="'reinforce' chooses for 1 tensor per decision"):
        make_agent("reinforce", small_env(Gates(2)))
    for options, message in (
        ({"representation": "tree"}, "representation must be one of"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"entropy": -1.0}, "entropy must be at least 0"),
        ({"baseline_rate": 0.0}, r"baseline_rate must lie in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent("reinforce", small_env(), **options)
