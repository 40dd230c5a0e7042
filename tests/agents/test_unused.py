"""What nobody asked in a batch does not move: approximators, tables, embeddings and readouts of absent tasks."""

import gymnasium
import pytest
import torch

import routing_gym
from routing_gym.agents import add_task, make_agent, needs

LEARNERS = {
    "reinforce": {"representation": "mlp"},
    "reinforce, table": {},
    "actor-critic": {"representation": "mlp"},
    "q-learning": {"representation": "mlp"},
    "wpl": {"representation": "mlp"},
    "gumbel": {"representation": "mlp"},
    "top-k": {"arrangement": "per_task", "task_embedding": 4},
}


def make(name, tasks, **options):
    options = {"optimizer": "adam", "weight_decay": 0.01, "num_blocks": 3, **needs(name), **options}
    return gymnasium.make_vec(
        "routing_gym/SyntheticMTL-v0", num_envs=32, num_tasks=4, draw_tasks=tasks, **options
    ).unwrapped


@pytest.mark.parametrize("label", LEARNERS)
def test_agents_of_tasks_without_instances_stay_as_they_are(label):
    name = label.split(",")[0]
    env = make(name, (0, 1, 2, 3))
    agent = make_agent(name, env, **LEARNERS[label]).learn(env, episodes=128)
    state = agent.optimizer.state_dict()
    partly = make(name, (0, 1))  # the same agent among instances of two of its tasks
    fresh = make_agent(name, partly, **LEARNERS[label])
    fresh.load_state_dict(agent.state_dict())
    fresh.optimizer.load_state_dict(state)
    before = {key: value.clone() for key, value in fresh.named_parameters()}
    fresh.learn(partly, episodes=64)
    moved = 0
    for key, value in fresh.named_parameters():
        old, new = (stack.detach().view(4, -1) for stack in (before[key], value))  # four tasks, one after the other
        assert torch.equal(old[2:], new[2:]), key
        moved += not torch.equal(old[:2], new[:2])
    assert moved


def test_readouts_of_tasks_without_instances_stay_as_they_are():
    options = {"network": "omniglot-diverse", "width": 8, "expert_mid": 8, "layers": 2, "image_size": 16}
    env = make("random", (1, 3), num_blocks=None, **options)
    weight = env.network.readouts.weight
    before = weight.detach().clone()
    make_agent("random", env).learn(env, episodes=96)
    assert torch.equal(weight[[0, 2]], before[[0, 2]])
    assert not (weight[[1, 3]] == before[[1, 3]]).any(-1).any()


def test_blocks_that_never_run_keep_all_of_their_norm():
    env = make("fixed-routes", None, weight_decay=0.01, learning_rate=0.01, layers=2)
    agent = make_agent("fixed-routes", env, routes=[[0, 1]] * 4)
    before = [bank.weight.detach().clone() for bank in env.network.banks]
    agent.learn(env, episodes=640)
    for bank, old, taken in zip(env.network.banks, before, (0, 1), strict=True):
        kept = [block for block in range(3) if block != taken]
        assert torch.equal(bank.weight[kept], old[kept])
        assert bank.weight[taken].norm() != old[taken].norm()


def test_old_tasks_do_not_change_to_the_last_digit_while_a_new_one_takes_other_blocks():
    """Adam with decay and a block rate of 1 made agents forget, without a single instance of an old task."""
    options = {"num_tasks": 4, "num_blocks": 5, "weight_decay": 0.01, "learning_rate": 0.01}
    env = gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=64, autoreset_mode="disabled", **options).unwrapped
    agent = make_agent("task-specific-all", env).learn(env, episodes=640)
    images, tasks = env.datasets["test"].images[:96], torch.arange(96) % 4
    before = agent.classify(images, tasks)
    new = {split: part.select_tasks([3]) for split, part in env.datasets.items()}
    grown = add_task(agent, new, block_rate=1.0)
    grown.learn(grown.env, episodes=640)
    assert torch.equal(grown.classify(images, tasks), before)
    assert routing_gym.evaluate(grown, grown.env).task_accuracy[4] > 0.85
