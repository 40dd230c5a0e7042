"""Thompson sampling: the posterior by hand, and how often each choice is drawn."""

import pytest
import torch
from deciding import learned_from, legal_for, who_decides
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ExitTree, of_family, planted_env, small_env

import routing_gym
from routing_gym.agents import make_agent
from routing_gym.envs import rollout
from routing_gym.networks import RoutedMLP


@pytest.mark.long
@settings(max_examples=15, deadline=None)
@given(
    arrangement=st.sampled_from(["per_task", "single", "dispatched"]),
    family=st.sampled_from(["mlp", "tree"]),
    memory=st.sampled_from([3.0, 40.0, 1e6]),
    prior=st.sampled_from([0.5, 2.0]),
    gamma=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 10**4),
)
def test_the_posterior_is_that_of_the_returns_seen_less_what_has_faded(arrangement, family, memory, prior, gamma, seed):
    env = small_env(of_family(family), k_cpt=0.01, seed=seed, final_reward="negative-loss")
    options = {"arrangement": arrangement, "memory": memory, "prior": prior, "gamma": gamma, "seed": seed}
    agent, seen = make_agent("thompson", env, **options), {}
    for _ in range(3):
        rolled = rollout(agent, env)
        new, steps = {}, learned_from(agent, rolled).steps
        for row in range(12):
            value = float(rolled.final_reward[row])
            for step in reversed(steps):
                if step.active[row]:
                    value = value + float(step.reward[row])
                    where = who_decides(agent, step, row), int(step.decision[row])
                    new.setdefault(where, []).append((int(step.action[row]), value))
                    assert int(step.action[row]) in legal_for(agent, step, row)
                    value = float(rolled.final_reward[row]) + gamma * (value - float(rolled.final_reward[row]))
        for where, visits in new.items():
            older = [
                (choice, value, weight * 2 ** (-len(visits) / memory)) for choice, value, weight in seen.get(where, [])
            ]
            seen[where] = older + [(choice, value, 1.0) for choice, value in visits]
        agent.receive(rolled)
        mean, deviation = agent.posterior()
        for (who, decision), visits in seen.items():
            count = sum(weight for *_, weight in visits)
            overall = sum(value * weight for _, value, weight in visits) / count
            squares = sum(weight * (value - overall) ** 2 for _, value, weight in visits)
            variance = (squares + prior) / (count + prior)
            for choice, legal in enumerate(agent.arrangement.legal[decision].tolist()):
                own = [(value, weight) for taken, value, weight in visits if taken == choice]
                number = prior + sum(weight for _, weight in own)
                expected = (prior * overall + sum(value * weight for value, weight in own)) / number
                expected = expected if legal else -torch.inf
                assert float(mean[who, decision, choice]) == pytest.approx(expected, rel=1e-3, abs=1e-4)
                assert float(deviation[who, decision, choice]) == pytest.approx((variance / number) ** 0.5, rel=1e-2)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("spread", [1.0, 0.3])
def test_a_choice_is_drawn_as_often_as_it_is_likely_to_be_the_best(asked, spread):
    rows = 20_000
    env = small_env(ExitTree([[1, 2, 3], [4], [], [], []]), rows, train=False, rho=0.1 * asked)
    agent = make_agent("thompson", env, arrangement="single", spread=spread)
    agent.visits[0, 0] = torch.tensor([4.0, 1.0, 2.0, 0.0])
    agent.total[0, 0] = torch.tensor([2.0, 0.2, 2.0, 0.0])
    agent.squares[0, 0] = torch.tensor([2.0, 0.2, 2.0, 0.0])
    mean, deviation = (of[0, 0].double() for of in agent.posterior())
    at = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    chances = []
    for own in range(4):  # the density of its own, times that all others are below
        z = (at.unsqueeze(1) - mean) / (spread * deviation)
        below = torch.special.ndtr(z)
        below[:, own] = torch.exp(-(z[:, own] ** 2) / 2) / (2 * torch.pi) ** 0.5 / (spread * deviation[own])
        chances.append(torch.trapezoid(below.prod(1), at))
    chances = torch.stack(chances)
    assert float(chances.sum()) == pytest.approx(1, abs=1e-6)
    taken = rollout(agent, env).steps[0].action
    share = torch.bincount(taken, minlength=4) / rows
    error = (chances * (1 - chances) / rows).sqrt()
    assert bool(((share - chances).abs() < 4 * error).all())
    best = rollout(agent, env, deterministic=True)
    assert bool((best.steps[0].action == int(mean.argmax())).all())


def test_illegal_choices_are_never_drawn_even_where_all_else_is_bad():
    env = small_env(ExitTree([[1, 2], [], [3], []]), 512)
    agent = make_agent("thompson", env, arrangement="single")
    agent.visits.fill_(50.0)
    agent.total.fill_(-5e4)
    agent.squares.fill_(1e8)
    deep = [step.action[step.active & (step.decision == 1)] for step in rollout(agent, env).steps]
    assert torch.cat(deep).unique().tolist() == [0, 1]
    assert bool((agent.posterior()[0][0, 1].isfinite() == torch.tensor([True, True, False])).all())


def test_where_all_returns_have_been_alike_it_goes_on_looking():
    """One route in sixteen is right: all that a small batch tries earns the same."""
    env = planted_env(18)
    agent = make_agent("thompson", env).learn(env, 3_600)
    assert routing_gym.evaluate(agent, env).accuracy == 1


def test_a_choice_not_taken_for_long_becomes_uncertain_again():
    env = small_env(RoutedMLP((1, 2, 3), 3, 2, width=4, layers=1), 12)
    agent = make_agent("thompson", env, arrangement="single", memory=100.0)
    agent.visits[0, 0], agent.total[0, 0] = torch.tensor([100.0, 100.0]), torch.tensor([90.0, -90.0])
    agent.squares[0, 0] = 100.0
    before = agent.posterior()[1][0, 0].clone()
    for _ in range(60):
        trajectory = rollout(agent, env)
        trajectory.steps[0].action = torch.zeros(12, dtype=torch.int64)
        agent.receive(trajectory)
    after = agent.posterior()[1][0, 0]
    assert float(after[1]) > 3 * float(before[1]) and float(after[0]) < 2 * float(before[0])


def test_what_it_draws_counts_for_the_collaboration_reward_also_with_more_agents_than_choices():
    env = small_env(rho=0.5)
    agent = make_agent("thompson", env, arrangement="dispatched", num_agents=6)
    agent.learn(env, 24)
    assert float(env.rewards.share.total[:2].sum()) == 48.0
    for step in rollout(agent, env).steps:
        assert torch.equal(step.record["probabilities"].argmax(-1), step.action)


def test_what_it_cannot_be_is_refused():
    for options, message in (
        ({"representation": "mlp"}, "representation must be 'table', got 'mlp'"),
        ({"memory": 0.0}, "memory must be positive"),
        ({"prior": -1.0}, "prior must be positive"),
        ({"spread": 0.0}, "spread must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent("thompson", small_env(), **options)
    with pytest.raises(ValueError, match="'thompson' chooses for 1 tensor per decision, this network has up to 3"):
        make_agent("thompson", small_env(of_family("gates")))
