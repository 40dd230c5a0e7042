"""Gates: what their weights are, and that they are trained by the blocks' own backward pass."""

import gymnasium
import pytest
import torch
from scipy import stats
from toys import ExitTree, small_env, toy_env

import routing_gym
from routing_gym.agents import make_agent, needs, train_batch
from routing_gym.envs import Context, Known, rollout
from routing_gym.networks import ColumnsMLP, RoutedMLP


def weights_env(network=None, num_envs=12, **options):
    return small_env(network, num_envs, action_type="weights", **options)


def asked(agent, env, deterministic=False, task=None):
    """The weights at the first decision."""
    observation = dict(env.reset()[0])
    if task is not None:
        observation["task"] = torch.full_like(observation["task"], task)
    rows = len(observation["task"])
    known = Known(torch.ones(rows, dtype=torch.bool), torch.ones(rows, 3, dtype=torch.bool))
    context = Context(known, deterministic=deterministic)
    return agent.act(observation, context)


def test_gumbel_noise_draws_by_the_softmax_of_the_scores():
    env = weights_env(num_envs=4000)
    agent = make_agent("gumbel", env, arrangement="single")
    with torch.no_grad():
        agent.scores.table[0, 0] = torch.tensor([0.2, 0.5, 0.3]).log()
    weights = asked(agent, env)
    assert weights.detach().unique().numel() <= 4 and bool((weights.detach() != 0).sum(-1).eq(1).all())
    counts = torch.bincount(weights.argmax(-1).flatten(), minlength=3)
    assert stats.chisquare(counts.numpy(), [800, 2000, 1200]).pvalue > 1e-4
    assert bool((asked(agent, env, deterministic=True).argmax(-1) == 1).all())


def test_the_gradient_of_a_straight_through_gate_is_that_of_the_soft_weights():
    env = weights_env(num_envs=6)
    gradients = []
    for estimator in ("straight-through", "soft"):
        agent = make_agent("gumbel", env, arrangement="single", estimator=estimator, temperature=0.7, seed=3)
        weights = asked(agent, env)
        (weights * torch.arange(18.0).view(6, 1, 3)).sum().backward()
        gradients.append(agent.scores.table.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert float(gradients[0].abs().sum()) > 0


def test_the_temperature_falls_by_the_same_factor():
    agent = make_agent("gumbel", weights_env(), temperature=2.0, temperature_final=0.5, temperature_episodes=100)
    assert agent.temperature == pytest.approx(2.0)
    agent.episodes = 50
    assert agent.temperature == pytest.approx(1.0)
    agent.episodes = 1000
    assert agent.temperature == pytest.approx(0.5)


def test_soft_mixture_mixes_all_blocks_by_a_softmax():
    env = weights_env(RoutedMLP((1, 2, 3), 3, 3, width=4, layers=1))
    agent = make_agent("soft-mixture", env)
    with torch.no_grad():
        agent.scores.table[0, 0] = torch.tensor([0.2, 0.5, 0.3]).log()
    trajectory = rollout(agent, env)
    blocks, pixels = env.network.bank(0), env.dataset.pixels(trajectory.instance).flatten(1)
    for row in range(12):
        by_hand = sum(
            share * (pixels[row] @ blocks.weight[c] + blocks.bias[c]) for c, share in enumerate((0.2, 0.5, 0.3))
        )
        torch.testing.assert_close(trajectory.exits[0].logits[row], by_hand)
    assert bool((trajectory.macs == 3 * 6 * 3).all())
    # Weights of the decision's own know no task; conditioned ones do, and cost something.
    assert torch.equal(asked(agent, env, task=0), asked(agent, env, task=1)) and agent.macs(0) == 0
    conditioned = make_agent("soft-mixture", env, conditioned=True)
    assert not torch.equal(asked(conditioned, env, task=0), asked(conditioned, env, task=1))
    assert conditioned.macs(0) == (6 + 3) * 64 + 64 * 3


def test_cross_stitch_feeds_every_column_with_all_columns():
    """Against a loop over rows, layers and columns."""
    env = weights_env(ColumnsMLP((1, 2, 3), 3, 3, width=4, layers=3, num_tasks=3))
    agent = make_agent("cross-stitch", env, own=0.7)
    torch.testing.assert_close(agent.weight[0], torch.full((3, 3), 0.15).fill_diagonal_(0.7))
    with torch.no_grad():
        agent.weight.add_(torch.randn(agent.weight.shape))
    trajectory = rollout(agent, env)
    pixels = env.dataset.pixels(trajectory.instance).flatten(1)
    for row in range(12):
        columns = [pixels[row]] * 3
        for layer, bank in enumerate(env.network.banks):
            fed = [sum(agent.weight[layer, i, j] * columns[i] for i in range(3)) for j in range(3)]
            columns = [fed[j] @ bank.weight[j] + bank.bias[j] for j in range(3)]
            columns = columns if layer == 2 else [column.clamp(min=0) for column in columns]
        torch.testing.assert_close(trajectory.exits[0].logits[row], columns[int(trajectory.task[row])])
    assert bool((trajectory.macs == 3 * (6 * 4 + 4 * 4 + 4 * 3)).all())


@pytest.mark.parametrize("name", ["gumbel", "soft-mixture", "cross-stitch"])
def test_gates_learn_with_the_blocks(name):
    env = weights_env(ColumnsMLP((1, 2, 3), 3, 3, num_tasks=3) if name == "cross-stitch" else None, 24)
    agent = make_agent(name, env)
    before = [parameter.clone() for parameter in agent.parameters()]
    losses = []
    agent.learn(env, 24 * 60, lambda metrics: losses.append(float(metrics["loss"])))
    assert any(not torch.equal(old, new) for old, new in zip(before, agent.parameters(), strict=True))
    assert sum(losses[-10:]) < sum(losses[:10])
    # A third by chance; one mixture for all tasks, whose labels conflict, cannot do better.
    assert (routing_gym.evaluate(agent, env, split="train").accuracy > 0.4) == (name != "soft-mixture")


def test_what_gates_need_is_said():
    with pytest.raises(ValueError, match="'gumbel' acts by weights"):
        make_agent("gumbel", small_env())
    with pytest.raises(ValueError, match="'cross-stitch' needs an environment made with form='columns', got 'paths'"):
        make_agent("cross-stitch", weights_env())
    with pytest.raises(ValueError, match="every one of the 3 tasks needs a column of its own, got num_blocks=2"):
        ColumnsMLP((1, 2, 3), 3, 2, num_tasks=3)
    with pytest.raises(ValueError, match="temperature must be at least 1e-6 and finite, got 0"):
        make_agent("gumbel", weights_env(), temperature=0.0)


def test_soft_ordering():
    """Three tasks, a recurrent network: weights of each task's own at every depth mix the same blocks, by hand."""
    torch.manual_seed(0)
    network = RoutedMLP((1, 2, 3), 3, [1, 3, 1], width=4, layers=4, recurrent=True)
    env = weights_env(network)
    agent = make_agent("soft-mixture", env, arrangement="per_task")
    assert agent.scores.table.shape[:2] == (3, len(network.decisions) + 1)
    with torch.no_grad():
        agent.scores.table.add_(torch.randn(agent.scores.table.shape))
    trajectory = rollout(agent, env)
    first, bank, last = network.banks
    assert network.bank_of == [0, 1, 1, 2]
    for row in range(12):
        task = int(trajectory.task[row])
        h = env.dataset.pixels(trajectory.instance[row : row + 1]).flatten(1)
        h = torch.relu(h @ first.weight[0] + first.bias[0])
        for depth in (1, 2):
            weights = agent.scores.table[task, depth].softmax(-1)  # of three blocks and PASS
            blocks = [torch.relu(h @ bank.blocks.weight[k] + bank.blocks.bias[k]) for k in range(3)]
            h = sum(w * y for w, y in zip(weights, [*blocks, h], strict=True))
        logits = h @ last.weight[0] + last.bias[0]
        torch.testing.assert_close(trajectory.exits[0].logits[row], logits[0])


@pytest.mark.parametrize(
    ("estimator", "options"),
    [
        ("straight-through", {}),
        ("reinmax", {}),
        ("straight-through", {"recurrent": True, "layers": 4}),
        ("straight-through", {"network": "simple-convnet", "image_size": 16}),
    ],
)
def test_hard_gates_that_are_asked_once_learn_as_if_asked_at_every_decision(estimator, options):
    learned = []
    for planned in (True, False):
        torch.manual_seed(0)
        given = {"optimizer": "sgd", "learning_rate": 0.1, "width": 8, **options, **needs("gumbel")}
        env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=48, num_blocks=3, **given).unwrapped
        agent = make_agent("gumbel", env, learning_rate=0.3, estimator=estimator)
        if not planned:
            agent.plan = lambda task, deterministic: None
        for _ in range(6):
            trajectory, _, _ = train_batch(agent, env)
        assert isinstance(trajectory.steps[0].action, torch.Tensor)
        assert trajectory.steps[0].action.is_floating_point() != planned
        learned.append({**agent.state_dict(), **env.network.state_dict()})
        learned[-1]["accuracy"] = torch.tensor(routing_gym.evaluate(agent, env).accuracy)
    assert float(learned[0]["scores.table"].abs().max()) > 0.3
    torch.testing.assert_close(*learned, rtol=1e-4, atol=1e-5)


def test_gates_that_pay_for_computation_are_asked_at_every_decision():
    for options, planned in (({}, True), ({"k_cpt": 1e-6}, False), ({"dense_backward": True}, False)):
        env = weights_env(**options)
        task = torch.zeros(12, dtype=torch.int64)
        assert (make_agent("gumbel", env).plan(task, False) is not None) == planned
        assert make_agent("gumbel", env, estimator="soft").plan(task, False) is None


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (torch.ones(12, 3), r"floating-point ones of shape \(12, 2\), got torch.float32 of shape \(12, 3\)"),
        (torch.ones(12, 2, dtype=torch.int64), "floating-point ones .*, got torch.int64"),
        ([1.0], "floating-point ones .*, got list"),
        (torch.full((12, 2), 0.5), "are ones, whose gradient is that of weights; other weights are for act"),
    ],
)
def test_gates_of_a_plan_that_are_no_ones_are_refused(gates, message):
    env = weights_env()
    agent = make_agent("gumbel", env)
    agent.plan = lambda task, deterministic: (torch.zeros(12, 2, dtype=torch.int64), gates)
    with pytest.raises(ValueError, match=message):
        rollout(agent, env)


def test_gates_of_a_plan_are_refused_where_they_would_not_be_used():
    env = toy_env(ExitTree([[1, 2], [], [3], []]), 6, autoreset_mode="disabled", action_type="weights")
    agent = make_agent("gumbel", env)
    ones = torch.ones(6, len(env.network.decisions))
    agent.plan = lambda task, deterministic: (ones.long(), ones)
    with pytest.raises(ValueError, match="are for networks that are in_order; return None, so that act is asked"):
        rollout(agent, env)
