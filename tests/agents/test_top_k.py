"""Sparse gates against a loop over rows: which blocks they pick, what they weigh, what is trained and what it costs."""

import functools
import math

import pytest
import torch
import weighing
from stepping import block_loss
from toys import TREE, ExitTree, small_env

import routing_gym
from routing_gym.agents import make_agent, train_batch
from routing_gym.envs import Context, Known, rollout
from routing_gym.networks import RoutedMLP

BLOCKS, ROWS = 5, 6
weights_env = functools.partial(weighing.weights_env, num_envs=ROWS)


def with_weights(env, **options):
    """An agent with random numbers in all gates, those of the noise too."""
    agent = make_agent("top-k", env, **options)
    numbers = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for scores in (agent.scores, agent.spread):
            if scores is not None:
                scores.output.weight.normal_(generator=numbers)
    return agent


def gate_of(agent, scores, x, task, decision):
    """x·W of one row; what the decision sees is padded with zeros to the widest."""
    who = task if agent.config.arrangement == "per_task" else 0
    return x @ scores.output.weight[who * (agent.num_decisions + 1) + decision, : len(x)]


def by_hand(agent, env, trajectory, noise):
    """Logits of every row and what it picked, `noise[decision]` being `(B, A)`."""
    logits, picked = [], []
    for row, pixels in enumerate(env.dataset.pixels(trajectory.instance).flatten(1)):
        x, own = pixels, []
        for decision, bank in enumerate(env.network.banks):
            # The gate sees the activation as the environment shows it: detached.
            seen, task = x.detach(), int(trajectory.task[row])
            scores = gate_of(agent, agent.scores, seen, task, decision)
            if noise is not None:
                wide = gate_of(agent, agent.spread, seen, task, decision)
                scores = scores + noise[decision][row] * (1 + wide.exp()).log()
            best = sorted(range(BLOCKS), key=lambda i: -scores[i].item())[: agent.config.k]
            over = best if agent.config.softmax == "chosen" else range(BLOCKS)
            total = sum(scores[i].exp() for i in over)
            x = sum(scores[i].exp() / total * block(bank, i, x) for i in best)
            own.append(best)
        logits.append(x)
        picked.append(own)
    return torch.stack(logits), picked


def block(bank, i, x):
    y = x @ bank.weight[i] + bank.bias[i]
    return y.clamp(min=0) if bank.relu else y


@pytest.mark.parametrize("arrangement", ["single", "per_task"])
@pytest.mark.parametrize("k", [1, 2, 3, BLOCKS])
def test_deterministic_gates_are_those_of_a_loop_over_rows(k, arrangement):
    env = weights_env()
    agent = with_weights(env, k=k, arrangement=arrangement)
    trajectory = rollout(agent, env, deterministic=True)
    logits, picked = by_hand(agent, env, trajectory, None)
    torch.testing.assert_close(trajectory.exits[0].logits, logits)
    for decision, step in enumerate(trajectory.steps):
        indices, weights = step.action
        assert indices.tolist() == [own[decision] for own in picked]
        assert weights.shape == (ROWS, k)
        torch.testing.assert_close(weights.sum(1), torch.ones(ROWS))
    assert bool((trajectory.macs == k * (6 * 4 + 4 * 3)).all())
    assert agent.macs(0) == 6 * BLOCKS


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("shared", [1, 2])
def test_shared_blocks_always_run_beside_the_best_of_the_others(shared, k):
    """Of the legal choices the first: 1 and 2 where 0 is masked; at the second decision only three others are left."""
    masks = torch.ones(2, 1, BLOCKS, dtype=torch.bool)
    masks[0, 0, 0] = False
    env = weights_env(masks=masks, rho=0.1)
    agent = with_weights(env, k=k, shared=shared, noise=False)
    trajectory = rollout(agent, env)
    legal, spent = [[1, 2, 3, 4], [0, 1, 2, 3, 4]], 0.0
    for row, pixels in enumerate(env.dataset.pixels(trajectory.instance).flatten(1)):
        x = pixels
        for decision, bank in enumerate(env.network.banks):
            scores = gate_of(agent, agent.scores, x, 0, decision)
            always, others = legal[decision][:shared], legal[decision][shared:]
            best = sorted(others, key=lambda i: -scores[i].item())[:k]
            total = sum(scores[i].exp() for i in best)
            x = sum(block(bank, i, x) for i in always) + sum(scores[i].exp() / total * block(bank, i, x) for i in best)
            shares = trajectory.steps[decision].record["probabilities"][row]
            assert shares.nonzero().flatten().tolist() == sorted(always + best)
            assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
            spent += (len(always) + len(best)) * [6 * 4, 4 * 3][decision] / ROWS
        torch.testing.assert_close(trajectory.exits[0].logits[row], x)
    assert float(trajectory.macs.mean()) == pytest.approx(spent)


def test_no_balancing_loss_is_of_shared_blocks():
    """Of four blocks two are shared and always run: the use of the others alone is uneven, or not."""
    env = weights_env(RoutedMLP((1, 2, 3), 3, 4, width=4, layers=1))
    agent = make_agent("top-k", env, k=1, shared=2, balance=1.0, noise=False)
    trajectory = rollout(agent, env)
    picked = trajectory.steps[0].action[0][:, 2].tolist()
    assert set(picked) <= {2, 3} and trajectory.steps[0].action[0][:, :2].tolist() == [[0, 1]] * ROWS
    counts = [picked.count(2), picked.count(3)]
    uneven = (counts[0] - counts[1]) ** 2 / ROWS**2  # of two: variance over mean squared
    assert agent.auxiliary_loss(trajectory).item() == pytest.approx(uneven, abs=1e-6)
    assert float(agent.update(trajectory)["unevenness"]) == pytest.approx(uneven, abs=1e-6)


@pytest.mark.parametrize("shared", [0, 1])
def test_the_z_loss_is_that_of_a_loop(shared):
    """Zoph et al. 2022, Eq. 5: the mean over rows of log² Σ exp(score), of the blocks a row may pick."""
    env = weights_env(ExitTree(TREE) if not shared else None, num_envs=12)
    agent = with_weights(env, k=2, z_loss=0.3, balance=0.0, shared=shared)
    trajectory, total = rollout(agent, env), 0.0
    for step in trajectory.steps:
        for row in range(12):
            decision = int(step.decision[row])
            if step.active[row]:
                n = env.network.decisions[decision].n
                scores = step.observation["activation"][row] @ agent.scores.output.weight[decision].detach()
                total += math.log(sum(math.exp(scores[i]) for i in range(shared, n))) ** 2
    loss = agent.auxiliary_loss(trajectory)
    assert float(loss.detach()) == pytest.approx(0.3 * total / 12, rel=1e-4)
    loss.backward()
    assert float(agent.scores.output.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("options", [{}, {"k": 1, "softmax": "all", "balance": 0.0}, {"softmax": "all"}])
def test_noise_and_all_gradients_are_those_of_a_loop_over_rows(options):
    env = weights_env()
    agent = with_weights(env, arrangement="per_task", **options)
    at = agent.generator.get_state()
    trajectory = rollout(agent, env)
    again = torch.Generator()
    again.set_state(at)
    noise = [torch.empty(ROWS, BLOCKS).normal_(generator=again) for _ in range(2)]
    logits, picked = by_hand(agent, env, trajectory, noise)
    torch.testing.assert_close(trajectory.exits[0].logits, logits)
    assert [step.action[0].tolist() for step in trajectory.steps] == [[own[d] for own in picked] for d in range(2)]
    assert picked != by_hand(agent, env, trajectory, None)[1]

    trained = [agent.scores.output.weight, agent.spread.output.weight, *env.network.parameters()]
    ours = torch.autograd.grad(block_loss(env), trained)
    label = env.dataset.label[trajectory.instance]
    theirs = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, label), trained)
    torch.testing.assert_close(ours, theirs)
    assert all(float(one.abs().sum()) > 0 for one in ours)


def test_one_choice_of_weight_1_teaches_the_gates_nothing_and_says_so():
    with pytest.warns(
        UserWarning, match=r"'top-k' with k=1 and balance=0 learns nothing: .* take softmax='all', k=2 or"
    ):
        agent = make_agent("top-k", weights_env(), k=1, balance=0.0, noise=False)
    rollout(agent, agent.env)
    block_loss(agent.env).backward()
    assert not bool(agent.scores.output.weight.grad.any())
    env = weights_env(num_envs=32)
    agent = make_agent("top-k", env, k=1, balance=0.0, softmax="all")
    before = agent.scores.output.weight.clone()
    agent.learn(env, 64)
    assert not torch.equal(agent.scores.output.weight, before)


def test_weights_that_do_not_sum_to_1_are_for_networks_that_mix_activations():
    with pytest.raises(ValueError, match="shares outcomes out by weights that sum to 1, softmax='all' gives others"):
        make_agent("top-k", weights_env(ExitTree(TREE)), softmax="all")
    with pytest.raises(ValueError, match="shares outcomes out .* blocks that always run give others: leave it at shar"):
        make_agent("top-k", weights_env(ExitTree(TREE)), shared=1)
    with pytest.raises(ValueError, match="'top-k': shared=5 leaves nothing to choose at some decision"):
        make_agent("top-k", weights_env(), shared=5)
    with pytest.raises(ValueError, match="softmax='all' is for choice='row'"):
        make_agent("top-k", weights_env(), softmax="all", choice="expert")


def test_only_what_was_picked_has_a_gradient():
    env = weights_env(num_envs=2)
    agent = with_weights(env)
    trajectory = rollout(agent, env)
    block_loss(env).backward()
    for step, bank in zip(trajectory.steps, env.network.banks, strict=True):
        picked = step.action[0].unique().tolist()
        assert len(picked) < BLOCKS
        for i in range(BLOCKS):
            # At the output: a hidden unit that is not active has none either way.
            assert bool(bank.bias.grad[i].any()) <= (i in picked)
            assert bool(bank.weight.grad[i].any()) <= (i in picked)
    last = trajectory.steps[-1].action[0].unique().tolist()
    assert [i for i in range(BLOCKS) if bool(env.network.banks[-1].bias.grad[i].any())] == last
    assert agent.scores.output.bias.grad is None and not bool(agent.scores.output.bias.any())


def test_noise_is_off_when_deterministic_and_as_large_as_the_log_of_two_at_first():
    env = weights_env(num_envs=4000)
    agent = make_agent("top-k", env, k=1)
    with torch.no_grad():
        agent.scores.output.weight.zero_()
    observation = env.reset()[0]
    free = Known(torch.ones(4000, dtype=torch.bool), torch.ones(4000, BLOCKS, dtype=torch.bool))
    at = agent.generator.get_state()
    assert len(agent.act(observation, Context(free, deterministic=True))[0].unique()) == 1
    assert torch.equal(agent.generator.get_state(), at)
    counts = torch.bincount(agent.act(observation, Context(free))[0][:, 0], minlength=BLOCKS)
    assert counts.min() > 700 and torch.equal(agent.spread.output.weight, torch.zeros_like(agent.spread.output.weight))
    silent = make_agent("top-k", env, k=1, noise=False)
    assert silent.spread is None
    assert torch.equal(silent.act(observation, Context(free))[0], silent.act(observation, Context(free))[0])


def test_where_fewer_are_legal_the_rest_weighs_nothing():
    """A tree in which decisions have three ways on or two, and outcomes are shared out."""
    env = weights_env(ExitTree(TREE), num_envs=12)
    agent = make_agent("top-k", env, k=3)
    ways = torch.tensor([*(decision.n for decision in env.network.decisions), 3])
    for _ in range(4):
        trajectory, loss, _ = train_batch(agent, env)
        assert bool(loss.isfinite())
        for step in trajectory.steps:
            indices, weights = step.action
            assert bool((weights[indices >= ways[step.decision].unsqueeze(1)] == 0).all())
            assert bool(((weights > 0).sum(1) == ways[step.decision])[step.active].all())
    assert all(bool(parameter.isfinite().all()) for parameter in agent.parameters())


def test_a_choice_that_is_masked_is_never_picked():
    masks = torch.ones(2, 1, BLOCKS, dtype=torch.bool)
    masks[0, 0, [0, 3]] = False
    masks[1, 0, 1:] = False
    env = weights_env(num_envs=64, masks=masks)
    agent = make_agent("top-k", env, k=3)
    trajectory = rollout(agent, env)
    first, second = (step.action for step in trajectory.steps)
    assert first[0].unique().tolist() == [1, 2, 4] and bool((first[1] > 0).all())
    assert bool((second[0][:, 0] == 0).all()) and second[1].tolist() == [[1.0]] * 64


def test_sparse_gates_learn_with_the_blocks():
    env = weights_env(num_envs=24)
    agent = make_agent("top-k", env, arrangement="per_task")
    before = [agent.scores.output.weight.detach().clone(), agent.spread.output.weight.detach().clone()]
    losses = []
    agent.learn(env, 24 * 100, lambda metrics: losses.append(float(metrics["loss"])))
    after = [agent.scores.output.weight, agent.spread.output.weight]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert sum(losses[-10:]) < sum(losses[:10])
    assert routing_gym.evaluate(agent, env, split="train").accuracy > 0.45  # a third by chance


def test_what_is_not_possible_is_said():
    with pytest.raises(ValueError, match="'top-k' acts by weights"):
        make_agent("top-k", small_env())
    with pytest.raises(ValueError, match="TopK: k must be an integer of at least 1, got 0"):
        make_agent("top-k", weights_env(), k=0)
    with pytest.raises(ValueError, match="'top-k' mixes k=6 blocks, no decision of this network offers more than 5"):
        make_agent("top-k", weights_env(), k=6)
