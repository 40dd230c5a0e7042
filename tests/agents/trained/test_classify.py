"""`Agent.classify` against the logits of a rollout, and what it leaves as it was."""

import copy
from unittest import mock

import pytest
import torch
from toys import TREE, ExitTree, small_env, toy_env

from routing_gym.agents import agent_class, make_agent, train_batch
from routing_gym.agents.trained.classify import route_out
from routing_gym.envs import RoutingVectorEnv, rollout
from routing_gym.experiments.benchmarks.steps import stand_in_images
from routing_gym.networks import RoutedPyramid

BATCH = 24


def pyramid(columns=4, junctions=0):
    torch.manual_seed(0)
    return RoutedPyramid((3, 32, 32), 10, width=2, columns=columns, junctions=junctions)


def env_for(kind, name, **options):
    """An environment over one of the networks, in the form an agent needs."""
    cls = agent_class(name)
    options = {"autoreset_mode": "disabled", "action_type": cls.action_type, **cls.env_kwargs, **options}
    if kind == "mlp":
        return small_env(num_envs=BATCH, **options)
    if kind == "exit tree":
        torch.manual_seed(0)
        return toy_env(ExitTree(TREE), BATCH, **options)
    network = pyramid() if kind == "pyramid" else pyramid(3, 2)
    return RoutingVectorEnv(network, {"train": stand_in_images(1, 10, per_class=6)}, BATCH, **options)


def trained(kind, name, settings=None, **options):
    """An agent whose scores are no longer all alike: where it looks at images, these take several ways."""
    env = env_for(kind, name, **options)
    agent = make_agent(name, env, **(settings or {}))
    for _ in range(2):
        train_batch(agent, env)
    learned = agent.state_dict()
    for seed in range(50):
        numbers = torch.Generator().manual_seed(seed)
        disturbed = {
            key: value + torch.randn(value.shape, generator=numbers) if value.is_floating_point() else value
            for key, value in learned.items()
            if "running" not in key
        }
        agent.load_state_dict(disturbed, strict=False)
        if kind == "mlp" or name not in ("actor", "reinforce") or env.config.price or len(ways_taken(agent)) > 1:
            return agent
    raise AssertionError("all images take one way")


def ways_taken(agent):
    """Where the images of the data set leave."""
    return {(exit.decision, exit.choice) for exit in routed(agent, torch.arange(BATCH)).exits}


def outcome(trajectory):
    """The logits of a rollout, weighted over its exits."""
    logits = torch.zeros(len(trajectory), trajectory.exits[0].logits.shape[1])
    for exit in trajectory.exits:
        rows = torch.arange(len(trajectory)) if exit.rows is None else exit.rows
        logits.index_add_(0, rows, (exit.weight.unsqueeze(1) * exit.logits).detach())
    return logits


def routed(agent, rows):
    """What a rollout in eval mode makes of rows of the data set."""
    env = agent.env.sibling(len(rows), train=False, autoreset_mode="disabled")
    agent.eval()
    with torch.no_grad():
        return rollout(agent, env, instances=rows, deterministic=True)


CASES = [
    ("exit tree", "actor", {}),
    ("exit tree", "reinforce", {"representation": "mlp", "arrangement": "single"}),
    ("exit tree", "wpl", {}),
    ("exit tree", "gumbel", {"estimator": "soft", "representation": "mlp"}),
    ("exit tree", "top-k", {"k": 2}),
    ("exit tree", "fixed-routes", {"routes": [[1, 0, 2, 1], [2, 0, 1, 0], [0, 1, 1, 1]]}),
    ("mlp", "reinforce", {"representation": "mlp"}),
    ("mlp", "wpl", {}),
    ("mlp", "gumbel", {"estimator": "soft"}),
    ("mlp", "wpl", {"arrangement": "dispatched", "num_agents": 2}),
    ("mlp", "fixed-routes", {"routes": [[0, 1], [2, 1], [1, 1]]}),
    ("pyramid", "actor", {}),
    ("pyramid", "pragmatic-critic", {}),
    ("pyramid", "reinforce", {"representation": "mlp"}),
    ("pyramid", "reinforce", {"representation": "mlp", "arrangement": "dispatched", "num_agents": 3}),
    ("pyramid", "gumbel", {"estimator": "soft", "representation": "mlp"}),
    ("pyramid", "fixed-routes", {"routes": [[1, 0, 1]]}),
    ("pyramid tree", "actor", {}),
    ("pyramid tree", "reinforce", {"representation": "mlp"}),
    ("pyramid tree", "gumbel", {"estimator": "soft"}),
]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "name", "settings"), CASES, ids=str)
def test_logits_are_those_of_a_rollout(kind, name, settings):
    agent = trained(kind, name, settings)
    data = agent.env.dataset
    rows = torch.arange(BATCH)
    trajectory = routed(agent, rows)
    expected, task = outcome(trajectory), data.task[rows]
    images = data.images[data.image[rows]]
    assert images.dtype == torch.uint8
    for given in (images, data.pixels(rows)):
        found = agent.classify(given, task)
        assert found.dtype == torch.float32 and not found.requires_grad
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(agent.classify(images[:1], task[:1]), expected[:1], rtol=1e-4, atol=1e-5)

    macs, weight = torch.zeros(BATCH), torch.zeros(BATCH)
    for state in route_out(agent, images, task):
        assert state.exits and not state.waiting
        for exit in state.exits:
            at = state.instance if exit.rows is None else state.instance[exit.rows]
            weight[at] += exit.weight
            macs[at] = state.macs if exit.rows is None else state.macs[exit.rows]
    torch.testing.assert_close(weight, torch.ones(BATCH))
    assert torch.equal(macs, trajectory.macs)


def test_rows_that_have_left_are_not_looked_at():
    """And rows that come to a decision by several ways decide together."""
    agent = trained("exit tree", "actor")
    seen, act = [], agent.act
    with mock.patch.object(agent, "act", lambda o, c: seen.append((o["depth"], c.active, c.mask)) or act(o, c)):
        trajectory = routed(agent, torch.arange(BATCH))
        seen.clear()
        agent.classify(agent.env.dataset.images[:BATCH])
    assert all(bool(active.all()) and len(active) == len(depth) == len(mask) for depth, active, mask in seen)
    asked = [(int(depth[0]), len(depth)) for depth, _, _ in seen if len(set(depth.tolist())) == 1]
    arrived = {number: 0 for number in range(agent.num_decisions)}
    for step in trajectory.steps:
        for number in step.decision[step.active].tolist():
            arrived[number] += 1
    assert asked == [(number, count) for number, count in arrived.items() if count]


def noting(forward, modes):
    """A module's forward that notes the mode it is called in."""

    def noted(module, *inputs, **options):
        modes.append(module.training)
        return forward(module, *inputs, **options)

    return noted


def test_nothing_else_is_touched():
    """Modes, random numbers, episodes under way, parameters; also after an error."""
    env = env_for("pyramid", "reinforce")
    agent = make_agent("reinforce", env, representation="mlp")
    env.reset(seed=3)
    env.step(torch.ones(BATCH, dtype=torch.int64))
    part = env.network.columns[1]
    env.network.train()
    agent.train()
    part.eval()
    state, weights = env.state, copy.deepcopy(env.network.state_dict())
    modes = [module.training for module in [*env.network.modules(), *agent.modules()]]
    numbers, everyones = agent.generator.get_state(), torch.get_rng_state()
    seen = []
    with mock.patch.object(type(part), "forward", noting(type(part).forward, seen)):
        images = env.dataset.images[:4]
        logits = agent.classify(images)
        with pytest.raises(ValueError, match="expected images of shape"):
            agent.classify(images[:, :, :8])
    assert seen and not any(seen) and logits.shape == (4, 10)
    assert [module.training for module in [*env.network.modules(), *agent.modules()]] == modes
    assert env.state is state and env.state.sole == 1
    assert torch.equal(agent.generator.get_state(), numbers) and torch.equal(torch.get_rng_state(), everyones)
    assert all(torch.equal(value, weights[key]) for key, value in env.network.state_dict().items())
    assert agent.episodes == 0


@pytest.mark.parametrize("kind", ["exit tree", "mlp", "pyramid"])
def test_no_images(kind):
    agent = make_agent("reinforce", env_for(kind, "reinforce"))
    images = agent.env.dataset.images[:0]
    classes = agent.env.network.num_classes
    for given in (images, images.float()):
        assert agent.classify(given).shape == agent.classify(given, torch.zeros(0, dtype=torch.int64)).shape
        assert agent.classify(given).shape == (0, classes) and not any(map(len, route_out(agent, given)))


def test_tasks_decide():
    agent = trained("mlp", "fixed-routes", {"routes": [[0, 1], [2, 1], [1, 1]]})
    images = agent.env.dataset.images[:1].repeat(3, 1, 1, 1)
    logits = agent.classify(images, torch.arange(3))
    assert len({tuple(row) for row in logits.tolist()}) == 3
    assert torch.equal(agent.classify(images), agent.classify(images, torch.zeros(3, dtype=torch.int64)))


def test_a_price_that_rises_lets_more_leave():
    agent = make_agent("actor", env_for("pyramid", "actor", price=True, k_cpt=(0.0, 1e-7)))
    first = agent.scores.of[0]
    with torch.no_grad():
        for layer in (first[0], first[3], first[6]):
            layer.weight.zero_()
            layer.bias.zero_()
        first[0].weight[0, 0] = first[3].weight[0, 0] = 1.0  # the price, which is the first input
        first[6].weight[0, 0], first[6].bias[1] = 1.0, 0.5
    for router in agent.scores.of:
        router[6].bias.data[1] += 0.5  # go on, where the price says nothing
    images = agent.env.dataset.images[:6]

    def ways(k_cpt):
        return {exit.decision for state in route_out(agent, images, k_cpt=k_cpt) for exit in state.exits}

    assert 0 not in ways(0.0) and ways(1e-5) == {0}
    assert not torch.equal(agent.classify(images, k_cpt=0.0), agent.classify(images, k_cpt=1e-5))


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({}, {"k_cpt": 1e-9}, "agent 'actor' was made for an environment without price=True"),
        ({"price": True}, {}, "agent 'actor' decides by the price"),
        ({"price": True}, {"k_cpt": -1.0}, "k_cpt must be at least 0 and finite, got -1.0"),
        ({}, {"task": torch.tensor([0, 1])}, r"tasks are 0 to 0, got \[0, 1\]"),
        ({}, {"task": torch.tensor([0, -1])}, r"tasks are 0 to 0, got \[-1, 0\]"),
        ({}, {"task": torch.tensor([0])}, r"\(B,\) tasks, got \(2, 3, 32, 32\) and \(1,\)"),
        ({}, {"images": torch.zeros(2, 3, 16, 16)}, r"expected images of shape \(B, 3, 32, 32\)"),
        ({}, {"images": torch.zeros(3, 32, 32)}, r"expected images of shape \(B, 3, 32, 32\)"),
    ],
)
def test_what_cannot_be_classified_is_refused(options, call, message):
    agent = make_agent("actor", env_for("pyramid", "actor", **options))
    with pytest.raises(ValueError, match=message):
        agent.classify(call.pop("images", torch.zeros(2, 3, 32, 32)), **call)
