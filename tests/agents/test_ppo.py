"""PPO against its formula, row by row, at every step that it takes on a batch."""

import pytest
import torch
from deciding import assert_descends_by, learned_from, policies_of, scores_of
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import of_family, small_env

from routing_gym.agents import make_agent
from routing_gym.envs import rollout


def advantages_by_hand(agent, steps, final, row, gamma, lambda_):
    """Generalised advantages and values of a row's steps, as numbers."""
    values = [float(scores_of(agent, step, row, agent.values)[0].detach()) for step in steps]
    advantages = [0.0] * len(steps)
    for i in range(len(steps)):
        weight = 1.0
        for j in range(i, len(steps)):
            ahead = final if j == len(steps) - 1 else gamma * values[j + 1]
            advantages[i] += weight * (float(steps[j].reward[row]) + ahead - values[j])
            weight *= gamma * lambda_
    return advantages, values


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(
    arrangement=st.sampled_from(["per_task", "single", "dispatched"]),
    representation=st.sampled_from(["table", "mlp"]),
    gae_lambda=st.sampled_from([0.0, 0.5, 1.0]),
    gamma=st.sampled_from([0.5, 1.0]),
    entropy=st.sampled_from([0.0, 0.3]),
    normalize=st.booleans(),
    family=st.sampled_from(["mlp", "tree", "gates", "columns"]),
    seed=st.integers(0, 10**4),
)
def test_every_step_is_along_the_gradient_of_the_formula(
    arrangement, representation, gae_lambda, gamma, entropy, normalize, family, seed
):
    env = small_env(of_family(family), k_cpt=0.01, seed=seed, final_reward="negative-loss")
    agent = make_agent(
        "ppo", env, arrangement=arrangement, representation=representation, gae_lambda=gae_lambda, gamma=gamma,
        entropy=entropy, normalize=normalize, critic=0.7, epochs=3, clip=0.1, learning_rate=0.1, seed=seed,
    )  # fmt: skip
    rolled = rollout(agent, env)
    steps, made = learned_from(agent, rolled).steps, []
    for row in range(12):
        own = [step for step in steps if step.active[row]]
        advantages, values = advantages_by_hand(agent, own, float(rolled.final_reward[row]), row, gamma, gae_lambda)
        old = [float(sum(log[taken] for log, taken in tensors).detach()) for tensors in policies_of(agent, own, row)]
        made.append((row, own, advantages, [a + v for a, v in zip(advantages, values, strict=True)], old))
    all_ = [advantage for _, _, advantages, _, _ in made for advantage in advantages]
    mean = sum(all_) / len(all_) if normalize else 0.0
    spread = (sum((one - mean) ** 2 for one in all_) / len(all_)) ** 0.5 + 1e-4 if normalize else 1.0

    def loss_by_hand():
        loss = torch.zeros(())
        for row, own, advantages, targets, old in made:
            policies = policies_of(agent, own, row)
            for i, step in enumerate(own):
                gain = (advantages[i] - mean) / spread
                ratio = (sum(log_policy[taken] for log_policy, taken in policies[i]) - old[i]).exp()
                loss = loss - torch.minimum(ratio * gain, ratio.clamp(0.9, 1.1) * gain)
                loss = loss + 0.7 * (targets[i] - scores_of(agent, step, row, agent.values)[0]) ** 2
                for log_policy, _ in policies[i]:
                    loss = loss + entropy * (log_policy.exp() * log_policy).sum()
        return loss / 12

    assert assert_descends_by(agent, loss_by_hand, lambda: agent.receive(rolled)) == 3


@pytest.mark.parametrize("rows", [12, 50, 60])
def test_a_batch_in_which_all_went_alike_teaches_the_policy_nothing(rows):
    """However the mean of equal advantages is rounded."""
    env = small_env(num_envs=rows, final_reward="negative-loss")
    agent = make_agent("ppo", env, arrangement="single", epochs=1, gae_lambda=1.0)
    for number in range(10):
        trajectory = rollout(agent, env)
        trajectory.final_reward = torch.full((rows,), 0.1 * number + 0.03)
        with torch.no_grad():
            agent.values.table.fill_(0.01)
        agent.receive(trajectory)
        assert float(agent.scores.table.grad.abs().max()) < 5e-3


def test_with_one_step_unclipped_and_unnormalised_it_is_the_actor_critic():
    found = []
    for name, options in (("actor-critic", {}), ("ppo", {"epochs": 1, "normalize": False})):
        env = small_env(of_family("tree"), k_cpt=0.01)
        agent = make_agent(name, env, representation="mlp", gae_lambda=0.9, entropy=0.1, **options)
        found.append(agent.learn(env, 12 * 3).state_dict())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_what_it_cannot_be_is_refused():
    for options, message in (
        ({"epochs": 0}, "epochs must be"),
        ({"clip": -0.1}, "clip must be positive"),
        ({"gae_lambda": 1.1}, "gae_lambda must"),
        ({"critic": -1.0}, "critic must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent("ppo", small_env(), **options)
