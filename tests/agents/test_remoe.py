"""ReLU routing (Wang et al. 2024, "ReMoE"): weights, penalty and the course of λ, by hand."""

import functools

import pytest
import torch
import weighing
from resuming import assert_goes_on
from toys import of_family, small_env

from routing_gym.agents import make_agent, train_batch
from routing_gym.envs import rollout
from routing_gym.networks import RoutedMLP

BLOCKS = 4
weights_env = functools.partial(weighing.weights_env, num_envs=12, blocks=BLOCKS)


def with_scores(env, *rows, **options):
    """One gate for all tasks whose scores at each decision are given."""
    agent = make_agent("remoe", env, arrangement="single", **options)
    with torch.no_grad():
        agent.scores.table[0, : len(rows)] = torch.tensor(rows)
    return agent


def test_weights_are_the_positive_part_of_scores_above_an_even_share():
    masks = torch.ones(2, 1, BLOCKS, dtype=torch.bool)
    masks[1, 0, 0] = False
    env = weights_env(masks=masks)
    agent = with_scores(env, [0.5, -0.2, -0.25, -3.0], [9.0, 0.0, -0.5, 0.1])
    for deterministic in (False, True):
        first, second = (step.action for step in rollout(agent, env, deterministic=deterministic).steps)
        torch.testing.assert_close(first, torch.tensor([0.75, 0.05, 0.0, 0.0]).expand(12, -1))
        torch.testing.assert_close(second, torch.tensor([0.0, 1 / 3, 0.0, 1 / 3 + 0.1]).expand(12, -1))
    evenly = rollout(make_agent("remoe", env), env).steps[1].action
    torch.testing.assert_close(evenly, torch.tensor([0, 1, 1, 1]).div(3).expand(12, -1))


def test_a_row_whose_blocks_are_all_off_takes_its_best_with_the_gradient_of_its_score():
    env = weights_env()
    agent = with_scores(env, [-0.5, -0.3, -0.9, -0.4], [1.0, 0.0, -1.0, -1.0])
    step = rollout(agent, env).steps[0]
    weights = step.action
    assert weights.tolist() == [[0.0, 1.0, 0.0, 0.0]] * 12 and not bool(step.record["relu"].any())
    (weights * torch.arange(48.0).view(12, 4)).sum().backward()
    second = float(torch.arange(48.0).view(12, 4)[:, 1].sum())
    torch.testing.assert_close(agent.scores.table.grad[0, 0], torch.tensor([0.0, second, 0.0, 0.0]))


@pytest.mark.parametrize("balance", [False, True])
def test_the_penalty_is_that_of_a_loop(balance):
    """Eqs. 7 and 8, and 12 where each block's part is weighed by blocks / (k T) times the rows that used it."""
    env = weights_env()
    agent = make_agent("remoe", env, penalty=0.3, k=2.0, balance=balance)
    with torch.no_grad():
        agent.scores.table.normal_(std=0.4, generator=torch.Generator().manual_seed(0))
    trajectory = rollout(agent, env)
    loss = agent.auxiliary_loss(trajectory)
    total = 0.0
    for number in range(2):
        weights = [[max(0.0, 0.25 + s) for s in agent.scores.table[t, number].tolist()] for t in trajectory.task]
        for block in range(BLOCKS):
            used = sum(row[block] > 0 for row in weights)
            factor = BLOCKS / (2.0 * 12) * used if balance else 1.0
            total += sum(factor * row[block] for row in weights)
    assert loss.item() == pytest.approx(0.3 * total / (2 * 12), rel=1e-5)
    loss.backward()
    assert float(agent.scores.table.grad.abs().sum()) > 0


@pytest.mark.parametrize("blocks", [[2, 6], [6, 2], [3, 3], [4, 4]])
@pytest.mark.parametrize("k", [1.0, 2.0])
def test_balance_is_by_the_blocks_of_each_decision(blocks, k):
    """All are on at first, by weights that sum to 1: decisions of 2 and of 6 blocks make (2 + 6) / 2 at k = 1."""
    masks = None
    if blocks == [4, 4]:  # of which masks leave 2 and 3
        masks = torch.tensor([[[True, True, False, False]], [[True, False, True, True]]])
    env = weights_env(RoutedMLP((1, 2, 3), 3, blocks, width=4, layers=2), masks=masks)
    agent = make_agent("remoe", env, penalty=1.0, k=k, balance=True)
    legal = [2, 3] if masks is not None else blocks
    assert agent.auxiliary_loss(rollout(agent, env)).item() == pytest.approx(sum(legal) / 2 / k)


def test_the_course_of_the_penalty_by_hand():
    """λ α where more than k are on, λ / α where fewer are, λ where as many (Eq. 9)."""
    env = weights_env(learning_rate=1e-30)
    agent = with_scores(env, [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, -1.0], penalty=0.1, learning_rate=1e-30)
    expected, courses = 0.1, [(1.0, 1.2), (1.5, 1.0), (2.0, 1 / 1.2), (0.5, 1.2)]
    for k, factor in courses:
        agent.config = type(agent.config)(**{**vars(agent.config), "k": k})
        _, _, reported = train_batch(agent, env)
        expected *= factor
        assert float(reported["blocks_on"]) == 1.5  # two at the first decision, one at the second
        assert float(agent.penalty) == pytest.approx(expected) == float(reported["penalty"])


def test_the_penalty_can_rise_again_however_long_too_few_are_on():
    env = weights_env()
    agent = with_scores(env, [-1.0] * 4, [-1.0] * 4)
    trajectory = rollout(agent, env)
    for _ in range(5000):
        agent.update(trajectory)
    before, agent = agent.penalty.clone(), with_scores(env, [1.0] * 4, [1.0] * 4)
    agent.penalty.copy_(before)
    agent.update(rollout(agent, env))
    assert float(agent.penalty / before) == pytest.approx(1.2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("k", "options"),
    [
        (1.0, {"penalty": 0.01}),
        (2.0, {"learning_rate": 0.3}),
        (2.0, {"representation": "mlp", "penalty": 0.01, "penalty_step": 1.05}),
    ],
)
def test_in_time_about_k_blocks_are_on(k, options):
    """Where scores follow λ fast enough: a table's block that has been switched off has no gradient to come back by."""
    env = weights_env(num_envs=24)
    agent, on = make_agent("remoe", env, k=k, **options), []
    agent.learn(env, 24 * 150, lambda metrics: on.append(float(metrics["blocks_on"])))
    assert on[0] > k + 1 and sum(on[-30:]) / 30 == pytest.approx(k, abs=0.4)


def test_the_penalty_goes_on_where_it_stopped(tmp_path):
    options = {"penalty": 0.2, "penalty_step": 1.5, "balance": True}
    half, *_ = assert_goes_on(lambda: make_agent("remoe", weights_env(), **options), (4, 4), tmp_path)
    assert float(half.penalty) != 0.2


def test_what_it_cannot_do_is_said():
    with pytest.raises(
        ValueError, match="'remoe': this network shares outcomes out .* the weights of ReLU routing sum to anything"
    ):
        make_agent("remoe", small_env(of_family("tree"), action_type="weights"))
    with pytest.raises(ValueError, match="'remoe' mixes k=5.5 blocks, no decision of this network offers more than 4"):
        make_agent("remoe", weights_env(), k=5.5)
    with pytest.raises(ValueError, match="ReMoE: penalty_step must be above 1, got 0.9"):
        make_agent("remoe", weights_env(), penalty_step=0.9)
    with pytest.raises(ValueError, match="'remoe' chooses for 1 tensor"):
        make_agent("remoe", small_env(of_family("columns"), action_type="weights"))
