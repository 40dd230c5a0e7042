"""The oracle: routes that are planted, what it refuses, and that nothing trained by hand does better."""

import dataclasses

import gymnasium
import pytest
import torch
from torch import nn
from torch.nn import functional

import routing_gym
from routing_gym.agents import make_agent, needs
from routing_gym.tasks import hidden_groups


def env_of(name, oracle="oracle", **options):
    return gymnasium.make_vec(f"routing_gym/{name}-v0", num_envs=32, **{**needs(oracle), **options})


def test_it_takes_the_planted_block_and_the_last_one_further_on():
    env = env_of("HiddenGroups", layers=3, num_tasks=6)
    data, agent = env.unwrapped.dataset, make_agent("oracle", env)
    for task in range(6):
        (group,) = data.planted[data.task == task].unique().tolist()
        assert agent.routes[task].tolist() == [group] * 3
    env = env_of("Compositions", length=3)
    data, agent = env.unwrapped.dataset, make_agent("oracle", env)
    for row in range(0, len(data), 7):
        assert agent.routes[data.task[row]].tolist() == data.planted[row].tolist()
    assert make_agent("oracle", env_of("Budget", told=True)).routes.tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("name", ["Clusters", "Budget"])
def test_what_differs_within_a_task_is_refused_unless_told(name):
    with pytest.raises(ValueError, match="planted in .* differs within one: make the environment with told=True"):
        make_agent("oracle", env_of(name))
    assert len(make_agent("oracle", env_of(name, told=True)).routes.unique(dim=0)) > 1


def test_data_without_anything_planted_and_too_few_blocks_are_refused():
    with pytest.raises(ValueError, match=r"best routing is known \(MultiTaskDataset.planted\), DIGITS-MTL has none"):
        make_agent("oracle", env_of("DigitsMTL"))
    with pytest.raises(ValueError, match=r"needs 3 blocks, .* decision 1 \('layer 2'\) has no block 2"):
        make_agent("oracle", env_of("HiddenGroups", num_blocks=[3, 2]))


def test_it_reaches_what_a_network_for_each_group_does():
    """A network per group, written down and trained here, on the same images."""
    options = {"num_tasks": 6, "num_groups": 2, "images_per_task": 30}
    env = env_of("HiddenGroups", **options)
    core, agent = env.unwrapped, make_agent("oracle", env)
    agent.learn(env, 60 * core.trainer.optimization.epoch)
    splits, right = hidden_groups(**options), 0
    torch.manual_seed(0)
    for group in range(2):
        x, y = {}, {}
        for name, split in splits.items():
            rows = (split.planted[:, 0] == group).nonzero().flatten()
            x[name], y[name] = split.pixels(rows).flatten(1), split.label[rows]
        net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(200):
            optimizer.zero_grad()
            functional.cross_entropy(net(x["train"]), y["train"]).backward()
            optimizer.step()
        right += int((net(x["test"]).argmax(1) == y["test"]).sum())
    by_hand = right / len(splits["test"])
    accuracy = routing_gym.evaluate(agent, env).accuracy
    assert by_hand > 0.75 and abs(accuracy - by_hand) < 0.05

    mixed = env_of("HiddenGroups", "shared", **options)
    shared = make_agent("shared", mixed)
    shared.learn(mixed, 60 * core.trainer.optimization.epoch)
    assert routing_gym.evaluate(shared, mixed).accuracy < accuracy - 0.2


def test_a_task_that_is_added_is_routed_as_planted():
    splits = hidden_groups(num_tasks=6)
    joined = {name: split.select_tasks([0, 1]).with_tasks(split.select_tasks([5])) for name, split in splits.items()}
    env = gymnasium.make_vec("routing_gym/HiddenGroups-v0", num_envs=8, dataset=joined, num_blocks=3, **needs("oracle"))
    routes = make_agent("oracle", env).routes[:, 0].tolist()
    train = splits["train"]
    assert routes == [int(train.planted[train.task == task][0]) for task in (0, 1, 5)]
    bare = {name: dataclasses.replace(split, planted=None) for name, split in joined.items()}
    with pytest.raises(ValueError, match="has none"):
        make_agent("oracle", gymnasium.make_vec("routing_gym/HiddenGroups-v0", dataset=bare, **needs("oracle")))
