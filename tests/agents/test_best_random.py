"""Random search over fixed routes against a slow loop, which makes everything anew for every draw; and resuming it."""

import gymnasium
import pytest
import torch

import routing_gym
from routing_gym.agents import Agent, add_task, make_agent

DRAWS, PASSES, BATCH = 4, 2, 24
OPTIONS = {"draws": DRAWS, "passes": PASSES, "seed": 3}


def env_of(**options):
    options = {"num_tasks": 6, "num_blocks": 3, "width": 8, "autoreset_mode": "disabled", **options}
    return gymnasium.make_vec("routing_gym/HiddenGroups-v0", num_envs=BATCH, seed=1, **options)


def blocks(env):
    return {name: value.clone() for name, value in env.unwrapped.network.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def by_hand(rest, **options):
    """Routes and accuracies of all draws, number of the best, and its blocks when trained on for some passes."""
    drawing = make_agent("random-fixed", env_of(**options), seed=OPTIONS["seed"])
    epoch = drawing.env.trainer.optimization.epoch
    all_routes = [drawing.routes, *(drawing.choose(drawing.env.network.masks).squeeze(2) for _ in range(DRAWS - 1))]
    tried, accuracies = [], []
    for number, routes in enumerate(all_routes):
        env = env_of(**options)
        env.unwrapped.stream.draw(number * PASSES * epoch)  # instances come in the order of one run
        agent = make_agent("fixed-routes", env, routes=routes.tolist()).learn(env, PASSES * epoch)
        tried.append((agent, env))
        accuracies.append(routing_gym.evaluate(agent, env, split="validation").accuracy)
    best = max(range(DRAWS), key=accuracies.__getitem__)
    agent, env = tried[best]
    env.unwrapped.stream.load_state_dict(tried[-1][1].unwrapped.stream.state_dict())
    before = blocks(env)
    agent.learn(env, rest * epoch)
    return all_routes, accuracies, best, before, blocks(env)


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "schedule_epochs": 6, "learning_rate": 0.1}],
)
def test_it_does_what_a_loop_does_by_hand(options):
    env = env_of(**options)
    agent = make_agent("best-random", env, **OPTIONS)
    routes, accuracies, best, before, after = by_hand(3, **options)
    assert len({tuple(of.flatten().tolist()) for of in routes}) == DRAWS and len(set(accuracies)) > 1
    epoch = agent.env.trainer.optimization.epoch
    agent.learn(env, DRAWS * PASSES * epoch)
    assert torch.equal(agent.routes, routes[best]) and same(blocks(env), before)
    agent.learn(env, 3 * epoch)
    assert torch.equal(agent.routes, routes[best]) and same(blocks(env), after)
    assert agent.env.trainer.instances == (PASSES + 3) * epoch


def test_the_best_so_far_counts_wherever_training_ends():
    env = env_of()
    agent = make_agent("best-random", env, **OPTIONS)
    routes, accuracies, best, _, after = by_hand(3)
    epoch = agent.env.trainer.optimization.epoch
    agent.learn(env, BATCH)
    assert torch.equal(agent.routes, routes[0])  # nothing has been judged
    agent.learn(env, PASSES * epoch - BATCH)
    for batches in range(1, (DRAWS - 1) * PASSES * epoch // BATCH + 1):
        agent.learn(env, BATCH)
        judged = accuracies[: 1 + batches * BATCH // (PASSES * epoch)]
        so_far = judged.index(max(judged))
        assert torch.equal(agent.routes, routes[so_far])
        assert routing_gym.evaluate(agent, env, split="validation").accuracy == judged[so_far]
    agent.learn(env, 3 * epoch)
    assert so_far == best and same(blocks(env), after)


def test_it_goes_on_bit_for_bit_from_every_batch(tmp_path):
    env = env_of()
    whole = make_agent("best-random", env, **OPTIONS)
    batches = (DRAWS * PASSES + 1) * whole.env.trainer.optimization.epoch // BATCH
    whole.learn(env, batches * BATCH)
    agent = make_agent("best-random", env_of(), **OPTIONS)
    for _ in range(batches):
        agent.save(tmp_path / "agent.pt")
        agent = Agent.load(tmp_path / "agent.pt", env_of(width=8))
        agent.learn(agent.env, BATCH)
    assert same(blocks(agent.env), blocks(env)) and torch.equal(agent.routes, whole.routes)
    assert agent.episodes == whole.episodes and agent.first is agent.best is agent.trial is None


def test_tasks_are_added_when_the_search_is_over():
    env, other = env_of(), env_of(data_seed=1).unwrapped.datasets
    agent = make_agent("best-random", env, draws=2, passes=1)
    epoch, new = agent.env.trainer.optimization.epoch, {name: of.select_tasks([0]) for name, of in other.items()}
    agent.learn(env, epoch)
    with pytest.raises(ValueError, match="'best-random' is still searching: tasks can be added when all draws"):
        add_task(agent, new)
    agent.learn(env, epoch)
    grown = add_task(agent, new)
    assert torch.equal(grown.routes[:6], agent.routes) and grown.num_tasks == 7
    grown.learn(grown.env, BATCH)


def test_it_wants_something_to_judge_by():
    data = env_of().unwrapped.datasets
    env = gymnasium.make_vec("routing_gym/HiddenGroups-v0", dataset={name: data[name] for name in ("train", "test")})
    with pytest.raises(ValueError, match="'best-random' judges its draws on a validation split, .* has only train, te"):
        make_agent("best-random", env)
    with pytest.raises(ValueError, match="draws must be an integer of at least 1"):
        make_agent("best-random", env_of(), draws=0)
