"""RELAX and REBAR against their formula, row by row; and what the papers promise of them."""

import itertools

import pytest
import torch
from deciding import assert_descends_by, learned_from, legal_for, scores_of, who_decides
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from toys import ExitTree, of_family, small_env

from routing_gym.agents import make_agent
from routing_gym.agents.parts.draws import drawn
from routing_gym.agents.relax import gumbel_given, relaxed_gain
from routing_gym.envs import rollout


@pytest.mark.long
@settings(max_examples=10, deadline=None)
@given(
    control=st.sampled_from(["relax", "rebar"]),
    arrangement=st.sampled_from(["per_task", "single", "dispatched"]),
    representation=st.sampled_from(["table", "mlp"]),
    gamma=st.sampled_from([0.5, 1.0]),
    entropy=st.sampled_from([0.0, 0.3]),
    family=st.sampled_from(["mlp", "tree"]),
    seed=st.integers(0, 10**4),
)
def test_policy_and_control_variate_descend_as_the_formula_says(
    control, arrangement, representation, gamma, entropy, family, seed
):
    env = small_env(of_family(family), k_cpt=0.01, seed=seed)
    agent = make_agent(
        "relax", env, control=control, arrangement=arrangement, representation=representation, gamma=gamma,
        entropy=entropy, temperature=0.7, learning_rate=0.1, seed=seed,
    )  # fmt: skip
    for _ in range(2):  # tables are 0 at first
        rolled = rollout(agent, env)
        steps, state = learned_from(agent, rolled).steps, agent.generator.get_state()
        choices = agent.arrangement.num_choices
        noise = [drawn(torch.empty(12, choices), "exponential_", agent.generator) for _ in range(2 * len(steps))]
        agent.generator.set_state(state)

        def loss_by_hand(rolled=rolled, steps=steps, noise=noise):
            loss = torch.zeros(())
            for row in range(12):
                for i, step in enumerate(steps):
                    if step.active[row]:
                        rewards = [float(later.reward[row]) * gamma**far for far, later in enumerate(steps[i:])]
                        value = float(rolled.final_reward[row]) + sum(rewards)
                        first, second = noise[2 * i][row], noise[2 * i + 1][row]
                        loss = loss + of_one_choice(agent, step, row, value, first, second)
            return loss / 12

        assert assert_descends_by(agent, loss_by_hand, lambda rolled=rolled: agent.receive(rolled)) == 1


def of_one_choice(agent, step, row, value, first, second):
    """What a choice adds to a loss whose gradient is that of policy, control variate and η."""
    legal, config = legal_for(agent, step, row), agent.config
    scores, chosen = scores_of(agent, step, row), legal.index(int(step.action[row]))
    q = scores_of(agent, step, row, agent.control)[legal]
    eta = torch.ones(())
    if config.control == "rebar":
        eta = 1 + agent.strength.table[who_decides(agent, step, row), int(step.decision[row]), 0]
    x = scores.detach().requires_grad_()
    pi = x.softmax(0)

    def given_choice(pi, noise):
        top = -noise[legal[chosen]].log()
        parts = [-(noise[own] / pi[k] + noise[legal[chosen]]).log() for k, own in enumerate(legal)]
        return torch.stack([top if k == chosen else part for k, part in enumerate(parts)])

    def c(z):
        return eta * ((z / 0.7).softmax(0) * (q.detach() if config.control == "rebar" else q)).sum()

    gumbel = given_choice(pi.detach(), first) - pi.detach().log()
    anew = given_choice(pi, second)
    gain = (value - c(anew.detach())) * pi[chosen].log() + c(gumbel + pi.log()) - c(anew)
    gain = gain - config.entropy * (pi * pi.log()).sum()
    (slope,) = torch.autograd.grad(-gain, x, create_graph=True)
    loss = (slope.detach() * scores).sum()
    if config.control == "rebar":
        loss = loss + (value - q[chosen]) ** 2
    return loss + slope.square().sum()


def test_gumbels_given_their_largest_are_those_that_rejection_leaves():
    generator, rows = torch.Generator().manual_seed(0), 40_000
    log_policy = torch.tensor([0.5, 0.3, 0.0, 0.2]).log()
    uniform = torch.rand(rows * 6, 4, generator=generator, dtype=torch.float64)
    free = (-(-uniform.log()).log() + log_policy).float()
    for chosen in (0, 1, 3):
        kept = free[free.argmax(1) == chosen]
        noise = torch.empty(rows, 4).exponential_(generator=generator)
        given = gumbel_given(log_policy.expand(rows, -1), torch.full((rows,), chosen), noise)
        assert bool((given.argmax(1) == chosen).all()) and bool((given[:, 2] == -torch.inf).all())
        for one in (0, 1, 3):
            assert stats.ks_2samp(given[:, one], kept[:, one]).pvalue > 0.01
        for one, other in itertools.combinations((0, 1, 3), 2):  # and together
            assert stats.ks_2samp(given[:, one] - given[:, other], kept[:, one] - kept[:, other]).pvalue > 0.01


def test_an_unlikely_choice_has_a_gradient():
    scores = torch.tensor([[[0.0, 300.0, -torch.inf, 2.0]]], requires_grad=True)
    worth, action = torch.tensor([[[1.0, -1.0, 0.0, 3.0]]], requires_grad=True), torch.tensor([[1]])
    noise = torch.full((1, 1, 4), 0.3), torch.full((1, 1, 4), 2.0)
    gain, _ = relaxed_gain(scores, worth, action, torch.ones(1, 1), noise, 0.5)
    (slope,) = torch.autograd.grad(gain.sum(), scores, create_graph=True)
    assert bool(slope.isfinite().all())
    for found in torch.autograd.grad(slope.square().sum(), (scores, worth)):
        assert bool(found.isfinite().all())


ROUTES = {(0,): 0.5, (1,): -1.0, (2, 0): 2.0, (2, 1): 1.0}
"""What every route of `tree_agent` earns."""


def tree_agent(rows, **options):
    """An agent in a tree of two decisions, of which the second has a choice less; its policy and rewards are given."""
    env = small_env(ExitTree([[1, 2], [], [3], []]), rows, train=False)
    agent = make_agent("relax", env, arrangement="single", **options)
    with torch.no_grad():
        agent.scores.table[0, :2] = torch.tensor([[0.3, -0.4, 0.6], [-0.5, 0.2, 9.0]])
    return agent, env


def paid(agent, env):
    """A batch of episodes with the rewards of their routes, and noise."""
    trajectory = rollout(agent, env)
    steps, noise = trajectory.steps, torch.Generator().manual_seed(int(agent.generator.get_state().sum()))
    routes = [tuple(int(step.action[row]) for step in steps if step.active[row]) for row in range(len(trajectory))]
    earned = torch.tensor([ROUTES[route] for route in routes])
    trajectory.final_reward = earned + 0.3 * torch.randn(len(routes), generator=noise)
    return trajectory


def exact_gradient(table):
    """The gradient of the expected reward of a policy, and the expected squared length of REINFORCE's, by decision."""
    table = table.detach().clone().requires_grad_()
    first, second = table[0].log_softmax(0), table[1, :2].log_softmax(0)
    value, squared = torch.zeros(()), torch.zeros(2)
    for route, reward in ROUTES.items():
        logs = [first[route[0]], *([second[route[1]]] if len(route) > 1 else [])]
        chance = sum(logs).exp()
        value = value + chance * reward
        for number, own in enumerate(logs):
            (slope,) = torch.autograd.grad(own, table, retain_graph=True)
            squared[number] += chance.detach() * (reward**2 + 0.3**2) * slope.square().sum()
    return torch.autograd.grad(value, table)[0], squared


@pytest.mark.long
@pytest.mark.parametrize("control", ["relax", "rebar"])
def test_the_estimate_is_unbiased_whatever_the_control_variate(control):
    rows, batches = 4_000, 12
    agent, env = tree_agent(rows, control=control, learning_rate=1e-12)
    with torch.no_grad():
        agent.control.table.normal_(std=2.0, generator=torch.Generator().manual_seed(3))
        agent.strength.table.fill_(0.7)
    means = []
    for _ in range(batches):
        agent.receive(paid(agent, env))
        means.append(-agent.scores.table.grad[0, :2])  # of the loss
    means, (expected, _) = torch.stack(means), exact_gradient(agent.scores.table[0, :2])
    error = means.std(0) / batches**0.5
    assert 0 < float(error.max()) < 0.02 < float(expected.abs().max())
    assert bool(((means.mean(0) - expected).abs() <= 4 * error + 1e-6).all())
    assert bool((means[:, 1, 2] == 0).all())  # not legal


@pytest.mark.long
@pytest.mark.parametrize("control", ["relax", "rebar"])
def test_a_trained_control_variate_makes_the_estimate_less_noisy(control):
    agent, env = tree_agent(256, control=control)
    policy, reported = agent.scores.table.detach().clone(), []
    for _ in range(50):
        reported.append(float(agent.receive(paid(agent, env))["gradient_variance"]))
        with torch.no_grad():
            agent.scores.table.copy_(policy)
    gradient, squared = exact_gradient(policy[0, :2])
    reinforce, least = float(squared.sum()), float(gradient.square().sum())
    assert reported[0] == pytest.approx(reinforce, rel=0.2)  # q is 0 at first
    assert sum(reported[-15:]) / 15 - least < 0.5 * (reinforce - least)


def test_what_it_cannot_be_is_refused():
    for options, message in (
        ({"control": "none"}, "control must be '"),
        ({"temperature": 0.0}, "temperature must be at least 1e-6"),
        ({"entropy": -0.1}, "entropy must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent("relax", small_env(), **options)
    with pytest.raises(ValueError, match="'relax' chooses for 1 tensor per decision, this network has up to 3"):
        make_agent("relax", small_env(of_family("gates")))
