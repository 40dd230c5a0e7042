"""REINFORCE against the formula, one visit at a time."""

import gymnasium
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ExitTree, learned_from, of_family, policies_of, small_env, who_decides

import routing_gym
from routing_gym.agents import make_agent, needs
from routing_gym.envs import rollout


@pytest.mark.long
@settings(max_examples=15, deadline=None)
@given(
    arrangement=st.sampled_from(["per_task", "single", "dispatched"]),
    representation=st.sampled_from(["table", "mlp"]),
    baseline=st.sampled_from(["average", "none"]),
    entropy=st.sampled_from([0.0, 0.3]),
    gamma=st.sampled_from([0.5, 1.0]),
    family=st.sampled_from(["mlp", "tree", "gates", "columns"]),
    seed=st.integers(0, 10**4),
)
def test_the_gradient_is_that_of_the_formula(arrangement, representation, baseline, entropy, gamma, family, seed):
    env = small_env(of_family(family), k_cpt=0.01, seed=seed)
    agent = make_agent(
        "reinforce", env, arrangement=arrangement, representation=representation, baseline=baseline, entropy=entropy,
        gamma=gamma, seed=seed,
    )  # fmt: skip
    for _ in range(2):
        rolled = rollout(agent, env)
        trajectory = learned_from(agent, rolled)
        assert representation == "table" or "activation" in trajectory.steps[0].observation
        loss, returns = torch.zeros(()), {}
        for row in range(12):
            rewards = [float(step.reward[row]) for step in trajectory.steps]
            policies = policies_of(agent, trajectory.steps, row)
            for i, step in enumerate(trajectory.steps):
                if not step.active[row]:
                    continue
                value = float(trajectory.final_reward[row])
                value += sum(gamma ** (j - i) * reward for j, reward in enumerate(rewards) if j >= i)
                who = who_decides(agent, step, row)
                returns.setdefault((who, int(step.decision[row])), []).append(value)
                if baseline == "average":
                    value -= float(agent.average[who, int(step.decision[row])])
                for log_policy, taken in policies[i]:
                    loss = loss - value * log_policy[taken]
                    loss = loss + entropy * (log_policy.exp() * log_policy).sum()
        parameters = list(agent.scores.parameters())
        expected = torch.autograd.grad(loss / 12, parameters, allow_unused=True)
        average = agent.average.clone()
        agent.receive(rolled)
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter) if gradient is None else gradient)
        for (who, decision), values in returns.items():
            moved = average[who, decision] + 0.1 * (sum(values) / len(values) - average[who, decision])
            torch.testing.assert_close(agent.average[who, decision], moved)


def test_illegal_choices_are_never_drawn_and_the_cost_is_counted():
    env = small_env(ExitTree([[1, 2], [], [3], []]), 64)
    agent = make_agent("reinforce", env, representation="mlp", entropy=0.1)
    for _ in range(5):
        agent.receive(rollout(agent, env))  # an illegal choice would be refused
    assert all(bool(parameter.isfinite().all()) for parameter in agent.parameters())
    assert agent.macs(0) == (4 + 3) * 64 + 64 * 3
    assert routing_gym.evaluate(agent, env).router_macs >= agent.macs(0)
    assert make_agent("reinforce", env).macs(0) == 0


def test_what_it_cannot_be_is_refused():
    for options, message in (
        ({"representation": "tree"}, "representation must be '"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"entropy": -1.0}, "entropy must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent("reinforce", small_env(), **options)


@pytest.mark.long
@pytest.mark.parametrize("representation", ["mlp", "table"])
def test_blocks_of_a_resnet_are_dropped_where_they_are_dear(representation):
    """As BlockDrop does: the policy gradient of a reward that goes down with what is run."""
    data = {"num_tasks": 1, "num_classes": 3, "image_size": 8, "images_per_class": 12}
    form = {"network": "resnet32-skip", "width": 2, "stages": [1, 1, 1], "num_envs": 12, "learning_rate": 0.03}
    rate = {"mlp": 0.03, "table": 1.0}[representation]
    ran = []
    for k_cpt in (0.0, 3e-4):
        env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", **data, **form, k_cpt=k_cpt, **needs("reinforce"))
        agent = make_agent("reinforce", env, representation=representation, learning_rate=rate)
        agent.learn(env, 12 * 50)
        judged = routing_gym.evaluate(agent, env)
        assert judged.accuracy > 0.6  # by chance 0.33; what the stem gives will do
        ran.append(judged.macs - judged.router_macs - env.unwrapped.network.stem_macs)
    assert ran[1] == 0 < ran[0]
