"""Hash routing: routes that are dealt out evenly, by task or by what is seen, and never change."""

import pytest
import torch
from scipy import stats
from toys import MaskedColumns, of_family, small_env

import routing_gym
from routing_gym.agents import Agent, make_agent
from routing_gym.envs import rollout
from routing_gym.networks import RoutedMLP, make_network
from routing_gym.networks.state import legal_table
from routing_gym.tasks import synthetic_mtl


def hash_env(blocks=3, layers=2, num_envs=60, masks=None, **options):
    network = RoutedMLP((1, 2, 3), 3, blocks, width=4, layers=layers)
    if masks is not None:
        network._masks, network.nothing_masked = legal_table(network.decisions, masks), False
    return small_env(network, num_envs, **options)


def two_masks():
    masks = torch.ones(2, 1, 5, dtype=torch.bool)
    masks[0, 0, [0, 3]] = False
    return masks


@pytest.mark.parametrize("tasks", [2, 7, 12])
def test_every_legal_choice_gets_as_many_tasks_as_any_other(tasks):
    env = hash_env(5, masks=two_masks(), num_tasks=tasks)
    agent = make_agent("hash", env)
    routes = agent.plan(torch.arange(tasks), False)
    for number, legal in enumerate(([1, 2, 4], [0, 1, 2, 3, 4])):
        counts = torch.bincount(routes[:, number], minlength=5)
        assert int(counts.sum() - counts[legal].sum()) == 0 and int(counts[legal].max() - counts[legal].min()) <= 1
    trajectory = rollout(agent, env)
    agent.plan = lambda task, deterministic: None
    for one in (trajectory, rollout(agent, env)):
        for number, step in enumerate(one.steps):
            assert torch.equal(step.action.view(-1), routes[one.task, number])


def test_every_decision_deals_anew_and_every_seed():
    env = hash_env(3, layers=8, num_tasks=6)
    routes = [make_agent("hash", env, seed=seed).plan(torch.arange(6), True) for seed in (0, 0, 1)]
    assert torch.equal(routes[0], routes[1]) and not torch.equal(routes[0], routes[2])
    assert len(routes[0].unique(dim=1).T) > 4


def test_an_image_goes_one_way_whoever_else_is_there():
    env = hash_env(3, layers=3)
    agent, ways = make_agent("hash", env, by="instance"), {}
    for number in range(6):
        trajectory = rollout(agent, env, deterministic=number % 2 == 1)
        route = torch.stack([step.action.view(-1) for step in trajectory.steps], 1)
        for image, way in zip(env.dataset.image[trajectory.instance].tolist(), route.tolist(), strict=True):
            assert ways.setdefault(image, way) == way
    assert len(ways) == 24 and len({tuple(way) for way in ways.values()}) > 12
    agent.learn(env, 180)
    everyone = torch.arange(len(env.dataset))
    counted = torch.zeros(3, 3)
    for image in env.dataset.image.tolist():
        for depth, choice in enumerate(ways[image]):
            counted[depth, choice] += 1
    judged = routing_gym.evaluate(agent, env, split="train")
    torch.testing.assert_close(judged.routes.sum(0).float(), counted)
    pixels = env.dataset.pixels(everyone).flatten(1)
    for row in (0, 5, 30):  # one at a time, with the state that predict gives back
        seen, state = {"activation": pixels[row].numpy(), "task": 0, "depth": 0}, None
        for depth, choice in enumerate(ways[int(env.dataset.image[row])]):
            action, state = agent.predict({**seen, "depth": depth}, state)
            assert int(action) == choice
            seen["activation"] = seen["activation"] * 0  # what comes later does not matter


def test_rows_that_begin_anew_are_hashed_anew():
    env = hash_env()
    agent = make_agent("hash", env, by="instance")
    seen = env.reset()[0]
    first, code = agent.predict(seen)
    other = {**seen, "activation": seen["activation"].flip(0)}
    begins = torch.arange(60) < 30
    then, _ = agent.predict(other, code, begins)
    assert torch.equal(then[30:], first[30:]) and torch.equal(then[:30], first.flip(0)[:30])


def test_instances_are_spread_evenly_and_independently():
    env = hash_env(5, masks=two_masks())
    agent = make_agent("hash", env, by="instance")
    seen = torch.rand(20_000, 6, generator=torch.Generator().manual_seed(0))
    task, choices, code = torch.zeros(len(seen), dtype=torch.int64), [], None
    for depth in range(2):
        action, code = agent.predict({"activation": seen, "task": task, "depth": task + depth}, code)
        choices.append(action)
    first = torch.tensor([-1, 0, 1, -1, 2])[choices[0]]
    assert bool((first >= 0).all())
    table = torch.bincount(first * 5 + choices[1], minlength=15)
    assert stats.chisquare(table.numpy()).pvalue > 1e-4
    near = seen.clone()  # the last bit of one pixel
    near[:, 3] = torch.nextafter(near[:, 3], torch.tensor(2.0))
    moved, _ = agent.predict({"activation": near, "task": task, "depth": task})
    assert stats.binomtest(int((moved != choices[0]).sum()), len(seen), 2 / 3).pvalue > 1e-4


@pytest.mark.parametrize("by", ["task", "instance"])
def test_a_checkpoint_keeps_the_routes_of_its_seed(by, tmp_path):
    env = hash_env(num_tasks=5)
    agent = make_agent("hash", env, by=by, seed=3)
    agent.learn(env, 60)
    agent.save(tmp_path / "agent.pt")
    other = hash_env(num_tasks=5, seed=8)
    ours, theirs = (routing_gym.evaluate(a, a.env) for a in (agent, Agent.load(tmp_path / "agent.pt", other)))
    assert torch.equal(ours.routes, theirs.routes) and ours.accuracy == theirs.accuracy


def test_what_it_cannot_do_is_said():
    data = synthetic_mtl(num_tasks=2, image_size=16)
    trunk = make_network("simple-convnet", input_shape=(1, 16, 16), num_tasks=2, num_classes=10, num_blocks=2, width=4)
    env = routing_gym.envs.RoutingVectorEnv(trunk, data, 4, autoreset_mode="disabled")
    make_agent("hash", env)
    with pytest.raises(ValueError, match="'hash': this network computes .* by parameters that learn.*: take by='task'"):
        make_agent("hash", env, by="instance")
    with pytest.raises(ValueError, match="'hash' chooses for 1 tensor"):
        make_agent("hash", small_env(MaskedColumns()))
    tree = small_env(of_family("tree"))
    routing_gym.evaluate(make_agent("hash", tree), tree)
