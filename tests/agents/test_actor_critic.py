"""The advantage actor-critic against its formula, row by row."""

import pytest
import torch
from deciding import learned_from, policies_of, scores_of
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import of_family, small_env

from routing_gym.agents import make_agent
from routing_gym.envs import rollout


@pytest.mark.long
@settings(max_examples=15, deadline=None)
@given(
    arrangement=st.sampled_from(["per_task", "single", "dispatched"]),
    representation=st.sampled_from(["table", "mlp"]),
    gae_lambda=st.sampled_from([0.0, 0.5, 1.0]),
    gamma=st.sampled_from([0.5, 1.0]),
    entropy=st.sampled_from([0.0, 0.3]),
    family=st.sampled_from(["mlp", "tree", "gates", "columns"]),
    seed=st.integers(0, 10**4),
)
def test_the_gradient_is_that_of_the_formula(arrangement, representation, gae_lambda, gamma, entropy, family, seed):
    env = small_env(of_family(family), k_cpt=0.01, seed=seed)
    agent = make_agent(
        "actor-critic", env, arrangement=arrangement, representation=representation, gae_lambda=gae_lambda, gamma=gamma,
        entropy=entropy, critic=0.7, seed=seed,
    )  # fmt: skip
    for _ in range(2):
        rolled = rollout(agent, env)
        steps, loss = learned_from(agent, rolled).steps, torch.zeros(())
        for row in range(12):
            made = [step for step in steps if step.active[row]]
            policies = policies_of(agent, made, row)
            values = [value_of(agent, step, row) for step in made]
            advantage = 0.0
            for i in reversed(range(len(made))):
                last = i == len(made) - 1
                worth = float(rolled.final_reward[row]) if last else gamma * float(values[i + 1])
                error = float(made[i].reward[row]) + worth - float(values[i])
                advantage = error + (0.0 if last else gamma * gae_lambda * advantage)
                for log_policy, taken in policies[i]:
                    loss = loss - advantage * log_policy[taken]
                    loss = loss + entropy * (log_policy.exp() * log_policy).sum()
                loss = loss + 0.7 * (advantage + float(values[i]) - values[i]) ** 2
        parameters = [*agent.scores.parameters(), *agent.values.parameters()]
        gradients = torch.autograd.grad(loss / 12, parameters, materialize_grads=True)
        agent.receive(rolled)
        networks = [getattr(scores, "hidden", None) for scores in (agent.scores, agent.values)]
        hidden = {id(parameter) for network in networks if network is not None for parameter in network.parameters()}
        for parameter, expected in zip(parameters, gradients, strict=True):
            wrong = ~torch.isclose(parameter.grad, expected, rtol=1e-4, atol=1e-6)
            # A hidden unit may lie at the kink of its ReLU in some row: a few seeds in ten thousand.
            assert len(wrong.nonzero()[:, -1].unique()) <= (id(parameter) in hidden)


def value_of(agent, step, row):
    """What the critic thinks of one row."""
    return scores_of(agent, step, row, agent.values)[0]
