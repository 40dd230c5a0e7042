"""Balanced assignment: plans against a loop over a matrix, and what becomes of rows."""

import functools
import math

import pytest
import torch
import weighing
from scipy import stats
from toys import of_family, small_env

from routing_gym.agents import make_agent
from routing_gym.agents.sinkhorn import balanced
from routing_gym.envs import Context, Known, rollout
from routing_gym.ranks import Ranks

BLOCKS = 5
weights_env = functools.partial(weighing.weights_env, num_envs=60)


def slow_plan(scores, iterations):
    """Columns scaled to rows / choices, rows to 1, in turn; scores without what is not legal."""
    plan = [[math.exp(score) for score in row] for row in scores]
    for _ in range(iterations):
        for column in range(len(plan[0])):
            total = sum(row[column] for row in plan)
            for row in plan:
                row[column] *= len(plan) / len(plan[0]) / total
        plan = [[value / sum(row) for value in row] for row in plan]
    return plan


def drawn_scores(rows, seed=0):
    return torch.randn(rows, BLOCKS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


@pytest.mark.parametrize("legal", [list(range(BLOCKS)), [0, 2, 3]])
@pytest.mark.parametrize("iterations", [1, 8])
def test_plans_are_those_of_a_loop(iterations, legal):
    scores, rows = drawn_scores(12), torch.arange(12) % 3 > 0
    off = torch.ones(BLOCKS, dtype=torch.bool)
    off[legal] = False
    plan = balanced(scores.masked_fill(off, -torch.inf), rows, iterations).exp()
    expected = torch.zeros(12, BLOCKS, dtype=torch.float64)
    slow = torch.tensor(slow_plan(scores[rows][:, legal].tolist(), iterations), dtype=torch.float64)
    expected[rows.nonzero(), torch.tensor(legal)] = slow
    torch.testing.assert_close(plan, expected)


def test_rows_of_a_plan_sum_to_1_and_columns_to_equal_shares():
    plan = balanced(drawn_scores(15), torch.ones(15).bool(), 200).exp()
    torch.testing.assert_close(plan.sum(1), torch.ones(15).double())
    torch.testing.assert_close(plan.sum(0), torch.full((BLOCKS,), 3.0).double())


def test_a_block_that_all_like_best_gets_its_share_while_training_and_all_when_judged():
    env = weights_env(num_envs=300, layers=1)
    agent = make_agent("sinkhorn", env, arrangement="single", representation="mlp")
    with torch.no_grad():
        agent.scores.output.weight.mul_(5)
        agent.scores.output.bias[0, 0] = 6
    (step,) = rollout(agent, env).steps
    assert bool((torch.bincount(step.action[0][:, 0], minlength=BLOCKS) - 60).abs().max() < 30)
    (step,) = rollout(agent, env, deterministic=True).steps
    assert bool((step.action[0] == 0).all())


def test_a_decision_is_balanced_over_its_own_rows_and_choices():
    """Rows at both decisions at once, some have left; against a plan by hand for each decision."""
    masks = torch.ones(2, 1, BLOCKS, dtype=torch.bool)
    masks[1, 0, [1, 4]] = False
    env = weights_env(num_envs=24, masks=masks)
    agent = make_agent("sinkhorn", env, arrangement="single", representation="mlp", temperature=0.1)
    depth = torch.arange(24) % 3
    seen = {**env.reset()[0], "depth": depth}
    known = Known(depth < 2, None)
    choice, weight = (part[:, 0] for part in agent.act(seen, Context(known)))
    scores = agent.scored(seen).detach()
    for number, legal in enumerate(([0, 1, 2, 3, 4], [0, 2, 3])):
        rows = (depth == number).nonzero().flatten()
        plan = torch.tensor(slow_plan((scores[rows][:, legal] / 0.1).tolist(), 8))
        sure = plan.sort(-1).values.diff()[:, -1] > 0.01
        assert int(sure.sum()) > 4
        assert torch.equal(choice[rows][sure], torch.tensor(legal)[plan.argmax(-1)][sure])
    torch.testing.assert_close(weight, scores.softmax(-1).gather(1, choice.unsqueeze(1))[:, 0])
    judged = agent.act(seen, Context(known, deterministic=True))[0][:, 0]
    for row in range(24):
        alone = {key: value[row : row + 1] for key, value in seen.items()}
        one = agent.act(alone, Context(Known(depth[row : row + 1] < 2, None), deterministic=True))[0]
        assert int(one) == int(judged[row]) == int(scores[row].argmax())


def test_the_gradient_is_that_of_the_probability_of_what_was_taken():
    env = weights_env(num_envs=6)
    agent = make_agent("sinkhorn", env, arrangement="single")
    indices, weights = rollout(agent, env).steps[0].action
    pull = torch.arange(6.0).sin()
    (weights[:, 0] * pull).sum().backward()
    taken = torch.nn.functional.one_hot(indices[:, 0], BLOCKS)
    expected = (pull.unsqueeze(1) * 0.2 * (taken - 0.2)).sum(0)  # all are equally likely yet
    torch.testing.assert_close(agent.scores.table.grad[0, 0], expected)


def test_where_all_is_alike_chance_deals_rows_out():
    env = weights_env(num_envs=1000, layers=1)
    agent = make_agent("sinkhorn", env)
    counts = torch.bincount(rollout(agent, env).steps[0].action[0][:, 0], minlength=BLOCKS)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    with torch.no_grad():  # but not rows that like a choice better than others do
        agent.scores.table[0, 0, 3] = 0.5
    trajectory = rollout(agent, env)
    assert bool((trajectory.steps[0].action[0][trajectory.task == 0] == 3).all())


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match="'sinkhorn': this network shares outcomes out"):
        make_agent("sinkhorn", small_env(of_family("tree"), action_type="weights"))
    with pytest.raises(ValueError, match="'sinkhorn' chooses for 1 tensor"):
        make_agent("sinkhorn", small_env(of_family("columns"), action_type="weights"))
    env = weights_env()
    env.ranks = Ranks(0, 2)
    with pytest.raises(ValueError, match="'sinkhorn' assigns the rows of a whole batch: it trains in one process"):
        make_agent("sinkhorn", env)
