"""Estimators of hard gates: ReinMax and SparseMixer against their papers, worked out row by row."""

import pytest
import torch
from scipy import stats
from toys import MaskedColumns, of_family, small_env

from routing_gym.agents import make_agent
from routing_gym.agents.gumbel import reinmax
from routing_gym.envs import rollout

LEARNED = torch.tensor([0.2, 0.5, 0.3]).log()


def gate(estimator, num_envs, network=None, **options):
    """One gate for all tasks in an environment of its own, with numbers in its table."""
    env = small_env(network, num_envs, action_type="weights")
    agent = make_agent("gumbel", env, estimator=estimator, arrangement="single", **options)
    with torch.no_grad():
        agent.scores.table.normal_(generator=torch.Generator().manual_seed(4))
        if network is None:
            agent.scores.table[0, 0] = LEARNED
    return agent


def first_weights(agent, deterministic=False):
    """Weights `(B, M, A)` of the first decision, and what each tensor would choose by chance, `(M, A)`."""
    agent.plan = lambda task, deterministic: None  # of hard gates it knows routes and ones
    weights = rollout(agent, agent.env, deterministic=deterministic).steps[0].action
    return weights, agent.scores.of_all_rows()[0, 0].detach().view(weights.shape[1:]).softmax(-1)


def slope_of_softmax(probability, pull):
    """Σ_k pull_k ∂π_k / ∂θ_j, by the table of all derivatives."""
    sizes = range(len(probability))
    return [sum(pull[k] * probability[k] * ((j == k) - probability[j]) for k in sizes) for j in sizes]


@pytest.mark.parametrize("network", [None, MaskedColumns])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_of_reinmax_is_that_of_algorithm_2(network, temperature):
    agent = gate("reinmax", 6, network and network(), temperature=temperature)
    weights, policy = first_weights(agent)
    tensors = policy.shape[0]
    pull = torch.arange(weights.numel() * 1.0).view(weights.shape).sin()
    (weights * pull).sum().backward()
    expected = torch.zeros(tensors, 3)
    heated = (agent.scores.of_all_rows()[0, 0].detach().view(tensors, 3) / temperature).softmax(-1)
    for row in range(6):
        for tensor in range(tensors):
            drawn = int(weights[row, tensor].argmax())
            middle = [((k == drawn) + float(heated[tensor, k])) / 2 for k in range(3)]
            own = pull[row, tensor].tolist()
            ends = slope_of_softmax(policy[tensor].tolist(), own), slope_of_softmax(middle, own)
            expected[tensor] += torch.tensor([2 * m - e / 2 for e, m in zip(*ends, strict=True)])
    torch.testing.assert_close(agent.scores.table.grad[0, 0].view(tensors, 3), expected, rtol=1e-4, atol=1e-5)
    assert bool((weights.detach() != 0).sum(-1).eq(1).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, tensors))


@pytest.mark.parametrize("legal", [[True] * 4, [True, False, True, True]])
def test_reinmax_is_exact_where_the_outcome_is_quadratic_and_straight_through_is_not(legal):
    numbers, legal = torch.Generator().manual_seed(0), torch.tensor(legal)
    scores = torch.randn(4, generator=numbers, dtype=torch.float64).masked_fill(~legal, -torch.inf).requires_grad_()
    square, line = (torch.randn(*size, generator=numbers, dtype=torch.float64) for size in ((4, 4), (4,)))

    def outcome(choice):
        return choice @ square @ choice + line @ choice

    def estimated(soft):
        """Expected gradient: of every choice, by its chance."""
        total = torch.zeros(4, dtype=torch.float64)
        for chosen in legal.nonzero().flatten():
            choice = torch.nn.functional.one_hot(chosen, 4).double().requires_grad_()
            (slope,) = torch.autograd.grad(outcome(choice), choice)
            (gradient,) = torch.autograd.grad(soft(chosen) @ slope, scores)
            total += scores.detach().softmax(-1)[chosen] * gradient
        return total

    each = torch.stack([outcome(choice) for choice in torch.eye(4, dtype=torch.float64)])
    (exact,) = torch.autograd.grad(scores.softmax(-1) @ each, scores)
    torch.testing.assert_close(estimated(lambda chosen: reinmax(scores, chosen, 1.0)), exact)
    assert float((estimated(lambda chosen: scores.softmax(-1)) - exact).abs().max()) > 0.05
    assert float((estimated(lambda chosen: reinmax(scores, chosen, 0.5)) - exact).abs().max()) > 0.01
    square.zero_()
    (exact,) = torch.autograd.grad(scores.softmax(-1) @ line, scores)
    torch.testing.assert_close(estimated(lambda chosen: scores.softmax(-1)), exact)


def test_sparsemixer_looks_at_a_third_three_times_out_of_four():
    """Liu et al. 2024: f(p) − f(0) = f'(p) p / 4 + 3 f'(p / 3) p / 4, but at p where the likeliest was drawn."""
    agent = gate("sparsemixer", 4000)
    weights, policy = first_weights(agent)
    weights, policy = weights.detach()[:, 0], policy[0]
    assert bool((weights != 0).sum(-1).eq(1).all())
    drawn, at = weights.argmax(-1), weights.amax(-1)
    assert stats.chisquare(torch.bincount(drawn).numpy(), [800, 2000, 1200]).pvalue > 1e-4
    share = at / policy[drawn]
    whole, third = (torch.isclose(share, torch.tensor(size)) for size in (1.0, 1 / 3))
    assert bool((whole | third).all()) and bool(whole[drawn == 1].all())
    others = whole[drawn != 1]
    assert stats.binomtest(int(others.sum()), len(others), 0.25).pvalue > 1e-4


@pytest.mark.parametrize("network", [None, MaskedColumns])
def test_the_gradient_of_sparsemixer_is_that_of_the_probability(network):
    agent = gate("sparsemixer", 6, network and network())
    weights, policy = first_weights(agent)
    pull = torch.arange(weights.numel() * 1.0).view(weights.shape).sin()
    (weights * pull).sum().backward()
    expected = torch.zeros(policy.shape)
    for row in range(6):
        for tensor, chance in enumerate(policy.tolist()):
            drawn = int(weights[row, tensor].argmax())
            assert chance[drawn] > 0
            slope = slope_of_softmax(chance, [float(pull[row, tensor, k]) * (k == drawn) for k in range(3)])
            expected[tensor] += torch.tensor(slope)
    torch.testing.assert_close(agent.scores.table.grad[0, 0].view(policy.shape), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("power", "unbiased"), [(3, True), (4, False)])
def test_sparsemixer_is_unbiased_up_to_cubes(power, unbiased):
    """Σ_i f_i(p_i) ∂p_i, with each draw by its chance; f of the likeliest, which is looked at in one place, a line."""
    agent = gate("sparsemixer", 400)
    weights, policy = first_weights(agent)
    weights, policy = weights[:, 0], policy[0].tolist()

    def outcome(choice, weight):
        return weight * (0.7 + choice) + (choice != 1) * (weight**2 * (1 - choice) + 3 * weight**power)

    found, exact = torch.zeros(3), torch.zeros(3)
    for choice, chance in enumerate(policy):
        exact += outcome(choice, chance) * torch.tensor(slope_of_softmax(policy, [k == choice for k in range(3)]))
        for at, often in ((1.0, 0.25), (1 / 3, 0.75)) if choice != 1 else ((1.0, 1.0),):
            row = int(torch.isclose(weights.detach()[:, choice], torch.tensor(chance * at)).nonzero()[0])
            loss = outcome(choice, weights[row, choice])
            (gradient,) = torch.autograd.grad(loss, agent.scores.table, retain_graph=True)
            found += chance * often * gradient[0, 0, 0]
    assert torch.allclose(found, exact, rtol=1e-4, atol=1e-6) == unbiased


def test_judged_the_best_choice_is_weighed_as_in_training():
    for estimator, weight in (("sparsemixer", 0.5), ("reinmax", 1.0), ("dense", 1.0)):
        weights, _ = first_weights(gate(estimator, 4), deterministic=True)
        torch.testing.assert_close(weights[:, 0], torch.tensor([0.0, weight, 0.0]).expand(4, -1))


def test_dense_gates_mix_all_blocks_without_chance():
    agent = gate("dense", 4, temperature=0.5)
    before = agent.generator.get_state()
    weights, _ = first_weights(agent)
    torch.testing.assert_close(weights[:, 0], torch.tensor([4, 25, 9]).div(38).expand(4, -1))  # squares of 2, 5, 3
    assert torch.equal(agent.generator.get_state(), before)


def test_only_weights_that_sum_to_1_share_outcomes_out():
    env = small_env(of_family("tree"), action_type="weights")
    with pytest.raises(ValueError, match="shares outcomes out .* estimator='sparsemixer' weighs one choice"):
        make_agent("gumbel", env, estimator="sparsemixer")
    for estimator in ("reinmax", "dense"):
        rollout(make_agent("gumbel", env, estimator=estimator), env)


def test_whole_routes_are_planned_where_one_block_of_weight_1_runs():
    task = torch.zeros(4, dtype=torch.int64)
    planned = {name: gate(name, 4).plan(task, False) is not None for name in ("reinmax", "sparsemixer", "dense")}
    assert planned == {"reinmax": True, "sparsemixer": False, "dense": False}
