"""Annealed EM against its equations, one instance at a time."""

import copy

import gymnasium
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from resuming import assert_goes_on
from torch.nn import functional
from toys import small_env

import routing_gym
from routing_gym.agents import Agent, add_task, make_agent, needs, train_batch
from routing_gym.agents.parts.losses import annealed_posterior
from routing_gym.envs import rollout


def share_of(q, legal):
    """Mean entropy of the rows that have a choice, each divided by its largest."""
    counts = legal.sum(-1)
    rows = [
        sum(-p * torch.log(p) for p in row[own] if p > 0) / torch.log(number.to(q.dtype))
        for row, own, number in zip(q, legal, counts, strict=True)
        if number > 1
    ]
    return float(sum(rows) / len(rows))


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.1, 0.98), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 10**4))
def test_the_posterior_has_the_entropy_asked_for_at_one_temperature(share, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    cost = scale * torch.rand(6, 4, generator=generator)
    legal = torch.rand(6, 4, generator=generator) < 0.7
    legal[:, 0] = True
    legal[0] = True
    q = annealed_posterior(cost, legal, share)
    assert (q[~legal] == 0).all()
    torch.testing.assert_close(q.sum(-1), torch.ones(6))
    assert share_of(q, legal) == pytest.approx(share, abs=0.02)
    # log q(a) - log q(b) = (cost(b) - cost(a)) / tau, with the same tau in every row
    row = q.topk(2).values[:, 1].argmax()  # where the second is not too unlikely
    a, b = q[row].topk(2).indices
    temperature = (cost[row, b] - cost[row, a]) / (q[row, a] / q[row, b]).log()
    expected = (-cost / temperature).masked_fill(~legal, -torch.inf).softmax(-1)
    torch.testing.assert_close(q, expected, rtol=1e-2, atol=1e-3)


def test_the_ends_of_annealing_are_uniform_and_certain():
    cost = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0]])
    legal = torch.tensor([[True, True, True], [False, True, True]])
    uniform = annealed_posterior(cost, legal, 1.0)
    torch.testing.assert_close(uniform, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0, 0.5, 0.5]]), atol=2e-3, rtol=0)
    assert annealed_posterior(cost, legal, 0.0).tolist() == [[0, 1, 0], [0, 1, 0]]
    equal = annealed_posterior(torch.zeros(2, 3), legal, 0.3)
    torch.testing.assert_close(equal, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0, 0.5, 0.5]]))


def test_an_e_step_adds_up_the_cross_entropy_of_every_choice():
    env = small_env(k_cpt=1e-4)
    agent = make_agent("annealed-em", env, memory=0.5)
    trajectory, _, _ = train_batch(agent, env)
    # The blocks have taken their step; what follows is what the next E-step would see.
    drawn, cost, weight = agent.generator.get_state(), agent.cost.clone(), agent.weight.clone()
    routes = agent.plan(trajectory.task, deterministic=False)
    agent.generator.set_state(drawn)
    number = 1
    agent._fade(len(trajectory))
    batch = agent._judge.begin(trajectory.instance)
    batch.keeps_exits = False
    agent._observe(batch, trajectory.task, number)
    kept = 0.5 ** (len(trajectory) / env.trainer.optimization.epoch / 0.5)
    cost, weight = kept * cost, kept * weight
    env.network.eval()
    for row in range(len(trajectory)):
        task, label = int(trajectory.task[row]), trajectory.label[row : row + 1]
        for choice in agent.legal[number].nonzero().flatten().tolist():
            state = env.network.start(
                env.dataset.pixels(trajectory.instance[row : row + 1]), trajectory.task[row : row + 1]
            )
            for at in range(agent.num_decisions):
                state = env.network.advance(state, torch.tensor([[choice if at == number else int(routes[row, at])]]))
            loss = functional.cross_entropy(state.exits[0].logits, label)
            cost[task, number, choice] += float(loss.detach()) + 1e-4 * float(state.macs - env.network.stem_macs)
            weight[task, number, choice] += 1
    torch.testing.assert_close(agent.cost, cost)
    torch.testing.assert_close(agent.weight, weight)


def test_an_e_step_leaves_batch_norms_alone():
    env = gymnasium.make_vec(
        "routing_gym/SyntheticMTL-v0", num_envs=12, image_size=16, network="simple-convnet", routed_stages=1,
        **needs("annealed-em"),
    ).unwrapped  # fmt: skip
    agent, network = make_agent("annealed-em", env), env.network
    trajectory = rollout(agent, env)
    before = {name: value.clone() for name, value in network.named_buffers()}
    agent.receive(trajectory)
    assert float(agent.weight.sum()) > 0 and network.training
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("towards", ["zero", "start"])
def test_the_penalty_is_that_of_the_blocks_and_ends_with_the_annealing(towards):
    env = small_env()
    agent = make_agent("annealed-em", env, annealing=4, weight_decay=0.2, towards=towards)
    start = [
        parameter.detach().clone() if towards == "start" else torch.zeros(()) for parameter in env.network.parameters()
    ]
    for left in (1.0, 0.75, 0.5, 0.25):
        moved = zip(env.network.parameters(), start, strict=True)
        size = sum(float((parameter.detach() - first).square().sum()) for parameter, first in moved)
        assert agent.auxiliary_loss(None).item() == pytest.approx(0.1 * left * size, rel=1e-4)
        train_batch(agent, env)
    assert agent.auxiliary_loss(None) is None
    q = agent.policy().clone()
    assert ((q == 0) | (q == 1)).all()
    train_batch(agent, env)
    assert torch.equal(agent.policy(), q)


@pytest.mark.parametrize("annealing", [3, 7, 11, 12])
def test_the_last_e_step_settles_what_costs_the_same(annealing):
    env = small_env()
    agent = make_agent("annealed-em", env, annealing=annealing)
    agent._cost = lambda batch, routes: torch.zeros(len(routes))
    for _ in range(annealing):
        assert agent.open
        train_batch(agent, env)
    assert agent.open == 0 and torch.equal(agent.policy(), functional.one_hot(torch.zeros(3, 2, dtype=int), 3).float())


def test_a_task_that_comes_late_has_an_annealing_of_its_own(tmp_path):
    """Counted by a loop over batches: from its first instance on, for as many batches as the others had."""
    options = {"num_tasks": 6, "images_per_task": 8, "late_images": 5, "late_at": 0.5, "passes": 4, **needs("wpl")}
    make = lambda seed: gymnasium.make_vec("routing_gym/HiddenGroups-v0", num_envs=15, seed=seed, **options)  # noqa: E731
    agent, annealing, begun, settled = make_agent("annealed-em", make(0), annealing=5, weight_decay=0.0), 5, None, None
    late = agent.env.dataset.late_task
    others = [task for task in range(6) if task != late]
    for number in range(20):
        if number == 8:
            agent.save(tmp_path / "agent.pt")
            agent = Agent.load(tmp_path / "agent.pt", make(1))
        trajectory, _, _ = train_batch(agent, agent.env)
        begun = number if begun is None and late in trajectory.task else begun
        left = max(0.0, 1 - (number + 1 - begun) / annealing) if begun is not None else 1.0
        q, first = agent.policy(), max(0.0, 1 - (number + 1) / annealing)
        shares = [share_of(q[task], agent.legal[:-1]) for task in (late, *others)]
        assert shares[0] == pytest.approx(left, abs=0.03)
        together = shares[1:] if first == 0 else shares  # at one temperature, at which the late task's is 1
        assert sum(together) / len(together) == pytest.approx(first, abs=0.03)
        assert agent.open == pytest.approx((5 * first + (left if begun is not None else first)) / 6)
        settled = q[others].clone() if number + 1 == annealing else settled
        assert settled is None or torch.equal(q[others], settled)
    assert begun > annealing and not agent.open and set(q.flatten().tolist()) == {0.0, 1.0}


def test_tasks_that_are_added_and_rare_ones_are_annealed_too():
    agent = make_agent("annealed-em", small_env(), annealing=8)
    agent.learn(agent.env, 12 * 10)
    before, data = agent.policy().clone(), agent.env.datasets
    grown = add_task(agent, {split: part.select_tasks([1]) for split, part in data.items()})
    for left in range(8, 0, -1):
        assert grown.open == pytest.approx(left / 8 / 4 if left < 8 else 0.0)
        grown.learn(grown.env, 12)
    assert not grown.open and torch.equal(grown.policy()[:3], before)
    assert set(grown.policy()[3].flatten().tolist()) == {0.0, 1.0}

    rare = make_agent("annealed-em", small_env(), annealing=2)  # ends before the first pass does
    common, last = ((rare.env.dataset.task == 2).eq(is_last).nonzero().flatten()[::4] for is_last in (False, True))
    for instances in (common, common, common, last.repeat(2), last.repeat(2)):
        rare.receive(rollout(rare, rare.env, instances=instances))
        rare.episodes += 12
    assert rare.passes < 1 and set(rare.policy().flatten().tolist()) == {0.0, 1.0}


def test_tasks_that_label_alike_find_each_other():
    options = {"num_blocks": 2, "num_groups": 2, "num_tasks": 8, "images_per_task": 20, "learning_rate": 3e-3}
    env = gymnasium.make_vec("routing_gym/HiddenGroups-v0", num_envs=160, **options, **needs("annealed-em"))
    agent = make_agent("annealed-em", env, annealing=120).learn(env, 160 * 150)
    group = torch.zeros(8, dtype=torch.int64)
    group[env.unwrapped.dataset.task] = env.unwrapped.dataset.planted[:, 0]
    routes = [tuple(route) for route in agent.policy().argmax(-1).tolist()]
    assert len({(route, int(own)) for route, own in zip(routes, group, strict=True)}) == len(set(routes))
    assert routing_gym.evaluate(agent, env).accuracy > 0.75


@pytest.mark.parametrize("towards", ["zero", "start"])
def test_learning_goes_on_where_it_stopped(towards, tmp_path):
    assert_goes_on(lambda: make_agent("annealed-em", small_env(), annealing=8, towards=towards), (3, 3), tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"rho": 0.1, "collaboration": "frequency"}, {"rho": 0.1, "collaboration": "task-frequency"},
     {"k_cpt": (0.0, 1e-3, 1.0)}],
    ids=["frequency", "task-frequency", "prices"],
)  # fmt: skip
def test_what_is_tried_has_shares_and_prices_of_the_batch_and_goes_on_from_a_checkpoint(options, tmp_path):
    half, _, _ = assert_goes_on(lambda: make_agent("annealed-em", small_env(**options), annealing=8), (3, 3), tmp_path)
    env, tried = half.env, []
    half._cost = lambda batch, routes: tried.append(batch.state.price) or torch.zeros(len(routes))
    learned = float(env.rewards.share.total.sum())
    trajectory, _, _ = train_batch(half, env)
    assert all(torch.equal(price, trajectory.price) for price in tried) and tried
    counted = len(trajectory) * half.num_decisions if env.rewards.share.total[:-1].any() else 0
    assert float(env.rewards.share.total.sum()) == learned + counted


def test_shares_of_what_is_tried_are_those_of_training():
    env = small_env(rho=1.0, collaboration="frequency")
    agent = make_agent("annealed-em", env)
    trajectory, _, _ = train_batch(agent, env)
    routes = torch.zeros(len(trajectory), agent.num_decisions, dtype=torch.int64)
    batch = agent._judge.begin(trajectory.instance)
    first, again = (agent._cost(copy.copy(batch), routes) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    total = env.rewards.share.total[: agent.num_decisions]
    reward = (total[:, 0] / total.sum(1)).sum().float()
    loss = rollout(make_agent("shared", env), env, instances=trajectory.instance).loss
    torch.testing.assert_close(first, loss - reward)
