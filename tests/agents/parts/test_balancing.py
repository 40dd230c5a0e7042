"""What keeps experts busy, against numbers worked by hand and loops over rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import TREE, ExitTree
from weighing import weights_env

from routing_gym.agents import make_agent, train_batch
from routing_gym.agents.parts.losses import chance_of_being_picked, chance_of_staying, cv_squared
from routing_gym.agents.top_k import expert_choice
from routing_gym.envs import Context, Known, rollout
from routing_gym.networks import RoutedMLP, actions

BLOCKS = 5


def phi(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def test_variation_by_hand():
    every = torch.ones(2, 3, dtype=torch.bool)
    use = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]])  # mean 2, variance 2/3
    torch.testing.assert_close(cv_squared(use, every), torch.tensor([1 / 6, 0.0]))
    legal = torch.tensor([[True, False, True], [True, True, True]])  # of 1 and 3: mean 2, variance 1
    torch.testing.assert_close(cv_squared(use, legal), torch.tensor([0.25, 0.0]))
    assert cv_squared(torch.zeros(1, 3), every[:1]).tolist() == [0.0]


def test_chances_by_hand():
    """Two experts, the best is picked; then three, of which the best two are."""
    legal = torch.ones(1, 2, dtype=torch.bool)
    clean, noisy, spread = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.5, 0.2]]), torch.tensor([[1.0, 2.0]])
    chance = chance_of_being_picked(clean, noisy, spread, torch.tensor([1]), legal)
    # The first stays picked while it is above 0.2, the second would have to rise above 1.5.
    torch.testing.assert_close(chance, torch.tensor([[phi(0.8), phi(-0.75)]]))
    clean, noisy = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[1.5, 0.2, 0.7]])
    chance = chance_of_being_picked(clean, noisy, torch.ones(1, 3), torch.tensor([2]), torch.ones(1, 3).bool())
    torch.testing.assert_close(chance, torch.tensor([[phi(1 - 0.2), phi(0 - 0.7), phi(2 - 0.2)]]))


def slow_chance(clean, noisy, spread, k, legal):
    others = sorted((noisy[j] for j in range(len(noisy)) if legal[j]), reverse=True)
    if k >= len(others):
        return [1.0 if ok else 0.0 for ok in legal]
    result = []
    for i in range(len(noisy)):
        if not legal[i]:
            result.append(0.0)
            continue
        rest = sorted((noisy[j] for j in range(len(noisy)) if legal[j] and j != i), reverse=True)
        result.append(phi((clean[i] - rest[k - 1]) / spread[i]))
    return result


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_chances_are_those_of_a_loop_over_rows(seed, most):
    numbers = torch.Generator().manual_seed(seed)
    shape = (7, BLOCKS)
    clean = torch.randn(shape, generator=numbers, dtype=torch.float64).requires_grad_()
    spread = (torch.rand(shape, generator=numbers, dtype=torch.float64) + 0.1).requires_grad_()
    noise = torch.randn(shape, generator=numbers, dtype=torch.float64)
    legal = torch.rand(shape, generator=numbers) < 0.7
    legal[:, 0] = True
    k = torch.randint(1, most + 1, (7,), generator=numbers).minimum(legal.sum(-1))
    masked = clean.masked_fill(~legal, -torch.inf)
    noisy = masked + noise * spread
    chance = chance_of_being_picked(masked, noisy, spread, k, legal)
    expected = [slow_chance(*(part[row].tolist() for part in (clean, noisy, spread)), int(k[row]), legal[row].tolist())
                for row in range(7)]  # fmt: skip
    torch.testing.assert_close(chance, torch.tensor(expected, dtype=torch.float64))
    chance.sum().backward()
    assert bool(clean.grad.isfinite().all()) and bool(spread.grad.isfinite().all())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("score", [-1.0, -30.0, -44.0, -46.0, -60.0, -90.0, -120.0, -1e4])
def test_gradients_are_finite_however_little_noise_there_is(score, masked):
    """Where noise is less than anything the chance is 0 or 1, and 1/2 where an expert is as good as the threshold."""
    scores = torch.full((2, 3), score, requires_grad=True)
    clean = torch.tensor([[1.0, 0.5, -2.0], [0.5, 0.5, 0.5]], requires_grad=True)
    spread = torch.nn.functional.softplus(scores)
    noisy = clean + spread * torch.tensor([0.3, -0.2, 1.0])
    if masked:
        chance = chance_of_being_picked(clean, noisy, spread, torch.tensor([1, 1]), torch.ones(2, 3).bool())
    else:
        chance = chance_of_staying(clean, noisy, spread, noisy.topk(2, -1).values)
    if score <= -30:
        assert chance.tolist() == [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    chance.square().sum().backward()
    assert bool(clean.grad.isfinite().all()) and bool(scores.grad.isfinite().all())
    if score > -10:
        by_hand = [slow_chance(*(of[row].tolist() for of in (clean, noisy, spread)), 1, [True] * 3) for row in (0, 1)]
        torch.testing.assert_close(chance, torch.tensor(by_hand))


def test_gates_without_noise_left_learn_on():
    env = weights_env()
    agent = make_agent("top-k", env, balance=0.3)
    with torch.no_grad():
        agent.spread.output.weight.copy_(-1e3 * env.reset()[0]["activation"].mean(0).sign()[:PIXELS].view(1, -1, 1))
    for _ in range(3):
        train_batch(agent, env)
    assert all(bool(parameter.isfinite().all()) for parameter in agent.parameters())


@pytest.mark.parametrize("masked", [False, True])
def test_with_biases_the_load_is_that_of_the_choice_that_is_made(masked):
    """Picks go by scores and biases: that is what an expert must come out on top of."""
    masks = torch.ones(2, 1, BLOCKS, dtype=torch.bool)
    masks[:, 0, 4] = not masked
    env = weights_env(masks=masks if masked else None)
    agent = make_agent("top-k", env, k=2, bias_rate=0.1)
    with torch.no_grad():
        agent.spread.output.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(3))
        agent.bias[:, :4] = torch.tensor([2.0, -1.0, 0.5, -3.0])
    state = agent.generator.get_state()
    trajectory = rollout(agent, env)
    again, legal = torch.Generator(), masks[0, 0].tolist()
    again.set_state(state)
    for number, step in enumerate(trajectory.steps):
        who = torch.zeros_like(step.decision)
        clean = agent.scores(step.observation, who).detach() + agent.bias[number]
        spread = torch.nn.functional.softplus(agent.spread(step.observation, who)).detach()
        noisy = clean + spread * torch.empty(24, BLOCKS).normal_(generator=again)
        expected = [slow_chance(*(of[row].tolist() for of in (clean, noisy, spread)), 2, legal) for row in range(24)]
        torch.testing.assert_close(step.record["load"].detach(), torch.tensor(expected), rtol=1e-4, atol=1e-5)
        picked = noisy.masked_fill(~masks[0, 0], -torch.inf).topk(2, -1).indices
        assert torch.equal(step.action[0].sort(-1).values, picked.sort(-1).values)


def test_the_losses_are_those_of_a_loop_and_reach_gates_and_noise():
    env = weights_env()
    agent = make_agent("top-k", env, k=2, balance=0.3)
    with torch.no_grad():
        agent.spread.output.weight.normal_(generator=torch.Generator().manual_seed(3))
    trajectory = rollout(agent, env)
    loss = agent.auxiliary_loss(trajectory)
    total = 0.0
    for step in trajectory.steps:
        weights = actions.dense(step.action, BLOCKS)
        for use in (weights, step.record["load"]):
            sums = [sum(float(use[row, i].detach()) for row in range(len(use))) for i in range(BLOCKS)]
            mean = sum(sums) / BLOCKS
            total += sum((one - mean) ** 2 for one in sums) / BLOCKS / mean**2
    assert float(loss) == pytest.approx(0.3 * total, rel=1e-4)
    loss.backward()
    for scores in (agent.scores, agent.spread):
        assert float(scores.output.weight.grad[:2].abs().sum()) > 0


def test_losses_on_a_tree_are_of_the_rows_that_are_there():
    env = weights_env(ExitTree(TREE), 12)
    agent = make_agent("top-k", env, k=1)
    trajectory, loss, reported = train_batch(agent, env)
    assert bool(loss.isfinite()) and bool(reported["unevenness"].isfinite())
    assert all(bool(parameter.isfinite().all()) for parameter in agent.parameters())


def test_k_falls_over_the_decisions():
    env = weights_env(RoutedMLP((1, 2, 3), 3, 7, width=4, layers=8))
    agent = make_agent("top-k", env, k=7, k_last=2)
    trajectory = rollout(agent, env, deterministic=True)
    picked = [int((step.action[1] > 0).sum(1).unique()) for step in trajectory.steps]
    assert picked == [7, 6, 6, 5, 4, 3, 3, 2]
    by_hand = env.network.stem_macs + sum(k * d.macs[0] for k, d in zip(picked, env.network.decisions, strict=True))
    assert set(trajectory.macs.tolist()) == {by_hand}


def test_the_weight_of_the_losses_falls_to_zero():
    env = weights_env()
    agent = make_agent("top-k", env, balance=0.1, balance_epochs=2.0)
    assert agent.balance == 0.1
    agent.episodes = len(env.dataset)
    assert agent.balance == pytest.approx(0.05)
    agent.episodes = 3 * len(env.dataset)
    assert agent.balance == 0 and agent.auxiliary_loss(rollout(agent, env)) is None
    assert make_agent("top-k", env).balance == 0.1


@pytest.mark.long
def test_balance_keeps_blocks_in_use():
    """Gates that begin by sending everything one way spread out again where the losses count."""

    def unevenness(**options):
        env = weights_env(learning_rate=1e-5)
        agent = make_agent("top-k", env, learning_rate=0.03, **options)
        with torch.no_grad():
            agent.scores.output.weight.zero_()
            agent.scores.output.weight[:, :, 0] = 0.5 * env.reset()[0]["activation"].mean(0).sign()[:PIXELS]
        seen = []
        agent.learn(env, 24 * 60, lambda metrics: seen.append(float(metrics["unevenness"])))
        return sum(seen[-10:]) / 10

    without = unevenness(balance=0.0)
    assert unevenness(balance=0.5) < 0.5 * without
    assert unevenness(balance=0.0, bias_rate=0.05) < 0.5 * without


PIXELS = 6


def test_biases_move_against_the_load_and_only_pick():
    env = weights_env()
    agent = make_agent("top-k", env, k=2, bias_rate=0.5, noise=False, balance=0.0)
    first, _, _ = train_batch(agent, env)
    used = torch.stack([(actions.dense(step.action, BLOCKS) != 0).sum(0) for step in first.steps])
    mean = used.sum(-1, keepdim=True) / BLOCKS
    torch.testing.assert_close(agent.bias[:2], 0.5 * (mean - used).sign())
    later = rollout(agent, env, deterministic=True)
    for number, step in enumerate(later.steps):
        scores = agent.scores(step.observation, torch.zeros_like(step.decision))
        best = (scores + agent.bias[number]).topk(2, -1).indices
        assert torch.equal(step.action[0].sort(-1).values, best.sort(-1).values)
        torch.testing.assert_close(step.action[1], scores.gather(1, step.action[0]).softmax(-1))
    assert "bias" in agent.state_dict()


def test_experts_choose_equal_shares():
    scores = torch.tensor(
        [[2.0, 0.0, -torch.inf], [1.0, 0.0, -torch.inf], [0.0, 0.5, -torch.inf], [3.0, 0.1, -torch.inf]]
    )
    depth, k, active = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64), torch.ones(4).bool()
    weights = expert_choice(scores, depth, k, Context(Known(active, None)), 1)
    # Two legal experts, four rows, one each: two rows per expert. The first is liked best by rows 3 and 0 (gaps 2.9
    # and 2), the second by rows 2 and 1 (gaps -0.5 and 1).
    assert (weights != 0).tolist() == [
        [True, False, False],
        [False, True, False],
        [False, True, False],
        [True, False, False],
    ]
    torch.testing.assert_close(weights.sum(-1), torch.ones(4))


def test_a_row_that_no_expert_takes_goes_where_it_likes_best():
    scores = torch.tensor([[4.0, 0.0], [3.0, 0.0], [0.1, 0.0], [0.2, 0.0]])
    some = Context(Known(torch.tensor([True, True, True, False]), None))
    weights = expert_choice(scores, torch.zeros(4).long(), torch.ones(4).long(), some, 1)
    # Of the three rows that decide each expert takes two: 0 and 1, 2 and 1.
    assert (weights[:3] != 0).tolist() == [[True, False], [True, True], [False, True]]
    torch.testing.assert_close(weights[1], torch.tensor([3.0, 0.0]).softmax(0))
    same = torch.zeros(5, 2)
    same[:, 0] = 1
    left = expert_choice(
        same, torch.zeros(5).long(), torch.ones(5).long(), Context(Known(torch.ones(5).bool(), None)), 1
    )
    torch.testing.assert_close(left.sum(-1), torch.ones(5))


def test_expert_choice_learns_and_judges_row_by_row():
    env = weights_env()
    agent = make_agent("top-k", env, choice="expert", arrangement="per_task")
    trajectory, loss, _ = train_batch(agent, env)
    assert trajectory.steps[0].action.shape == (24, BLOCKS) and bool(loss.isfinite())
    judged = rollout(agent, env, deterministic=True)
    assert all(bool(((step.action[1] > 0).sum(1) == 2).all()) for step in judged.steps)
    losses = []
    agent.learn(env, 24 * 100, lambda metrics: losses.append(float(metrics["loss"])))
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_an_embedding_that_outweighs_the_activations_keeps_a_task_together():
    env = weights_env(num_envs=64)
    small, large = (make_agent("top-k", env, task_embedding=4, noise=False, k=1, embedding_scale=s) for s in (1.0, 1e4))
    torch.testing.assert_close(large.embedding.weight, 1e4 * small.embedding.weight)
    steps = rollout(large, env).steps
    for step in steps:
        ways = {(int(task), int(choice)) for task, choice in zip(step.observation["task"], step.action[0], strict=True)}
        assert len(ways) == len({task for task, _ in ways})
    with pytest.raises(ValueError, match="embedding_scale must be positive and finite, got 0.0"):
        make_agent("top-k", env, embedding_scale=0.0)


def test_embeddings_join_what_a_gate_sees():
    env = weights_env()
    agent = make_agent("top-k", env, task_embedding=3, noise=False)
    assert agent.macs(0) == (PIXELS + 3) * BLOCKS
    trajectory = rollout(agent, env, deterministic=True)
    step, weight = trajectory.steps[0], agent.scores.output.weight[0]
    seen = torch.cat([step.observation["activation"], agent.embedding(trajectory.task)], 1)
    best = (seen @ weight).topk(2, -1)
    assert torch.equal(step.action[0], best.indices)
    before = agent.embedding.weight.detach().clone()
    train_batch(agent, env)
    assert not torch.equal(agent.embedding.weight, before)


def test_gates_that_see_only_the_task_send_its_rows_one_way():
    env = weights_env()
    agent = make_agent("top-k", env, task_embedding=4, task_only=True, noise=False)
    trajectory = rollout(agent, env, deterministic=True)
    for step in trajectory.steps:
        for task in trajectory.task.unique():
            assert len(step.action[0][trajectory.task == task].unique(dim=0)) == 1
    with pytest.raises(ValueError, match="task_only=True shows the gate the embedding alone"):
        make_agent("top-k", env, task_only=True)


def test_what_is_not_possible_is_said():
    env = weights_env()
    with pytest.raises(ValueError, match="mixes k=6 blocks"):
        make_agent("top-k", env, k=2, k_last=6)
    with pytest.raises(ValueError, match="balance_epochs must be positive"):
        make_agent("top-k", env, balance_epochs=0.0)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_chance_where_nothing_is_masked_needs_the_best_scores_alone(k):
    numbers = torch.Generator().manual_seed(k)
    clean, spread = (torch.rand(20, 5, generator=numbers).requires_grad_() for _ in range(2))
    noisy = clean + spread * torch.randn(20, 5, generator=numbers)
    every = torch.ones(20, 5, dtype=torch.bool)
    ways = [
        chance_of_staying(clean, noisy, spread, noisy.topk(k + 1, -1).values),
        chance_of_being_picked(clean, noisy, spread, torch.full((20,), k), every),
    ]
    torch.testing.assert_close(*ways)
    weights = torch.rand(20, 5, generator=numbers)
    found, expected = (torch.autograd.grad((way * weights).sum(), [clean, spread], retain_graph=True) for way in ways)
    torch.testing.assert_close(found, expected)
