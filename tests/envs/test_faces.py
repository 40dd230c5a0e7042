"""What one sees of the environment: pictures, and the view of one instance."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from toys import toy_env

from routing_gym.networks import RoutedMLP
from routing_gym.tasks import MultiTaskDataset


def test_rendering():
    env = toy_env(RoutedMLP((1, 2, 3), 3, 3, width=4), 3, render_mode="ansi")
    env.reset(options={"instances": [0, 30, 60]})
    env.step(torch.tensor([2, 1, 0]))
    env.step(torch.tensor([0, 0, 1]))
    tasks = env.state.task.tolist()
    assert env.render()[0] == f"task {tasks[0]}: layer 1 -> 2, layer 2 -> 0"
    env.step(torch.tensor([1, 1, 1]))
    assert env.render()[2] == f"task {tasks[2]}: layer 1 -> 0, layer 2 -> 1, layer 3 -> 1"

    env = toy_env(RoutedMLP((1, 2, 3), 3, 3, width=4), 3, render_mode="rgb_array")
    env.reset(options={"instances": [0, 30, 60]})
    env.step(torch.tensor([2, 1, 0]))
    picture, *others = env.render()
    assert len(others) == 2 and all(np.array_equal(picture, other) for other in others)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    cells = {tuple(picture[14, 14 + 26 * task]) for task in env.state.task.tolist()}
    assert len(cells) == len(set(env.state.task.tolist())) and (255, 255, 255) not in cells
    assert tuple(picture[40, 14]) == (255, 255, 255)  # layer 2: nothing decided yet
    single = gymnasium.make("routing_gym/DigitsMTL-v0", render_mode="ansi")
    single.reset(seed=0)
    for choice in (1, 2, 3):
        single.step(choice)
    assert single.render().endswith("layer 1 -> 1, layer 2 -> 2, layer 3 -> 3")
    assert toy_env().render() is None


def test_single_environment_follows_the_core():
    env = gymnasium.make("routing_gym/DigitsMTL-v0", train=False)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.unwrapped.step(0)
    observation, info = env.reset(seed=3)
    core = env.unwrapped.core
    instance, label = core.state.instance.clone(), int(core.batch.label[0])
    assert info["action_mask"].dtype == np.int8 and env.unwrapped.action_masks().dtype == bool
    for choice in (4, 5, 6):
        observation, reward, terminated, truncated, info = env.step(choice)
    assert terminated and not truncated and observation["depth"] == 3 and observation["activation"].sum() == 0
    assert type(reward) is float and reward in (-1.0, 1.0) and reward == 2 * info["correct"] - 1
    assert info["label"] == label and info["macs"] == 5472
    h = core.dataset.pixels(instance).flatten(1)
    for choice, bank in zip((4, 5, 6), core.network.banks, strict=True):
        h = h @ bank.weight[choice] + bank.bias[choice]
        h = h.clamp(min=0) if bank.relu else h
    assert info["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(h, torch.tensor([label]))), rel=1e-4)
    with pytest.raises(ResetNeeded):
        env.unwrapped.step(0)


def test_single_environment_draws_the_tasks_asked_for():
    env = gymnasium.make("routing_gym/SyntheticMTL-v0", num_tasks=4, draw_tasks=(1, 3))
    assert {int(env.reset(seed=seed)[0]["task"]) for seed in range(30)} == {1, 3}
    task = torch.tensor([0] * 20 + [1])
    few = MultiTaskDataset.from_arrays(torch.zeros(21, 1, 2, 2, dtype=torch.uint8), torch.arange(21) % 2, task)
    share = {}
    for balance in (False, True):
        env = gymnasium.make("routing_gym/SyntheticMTL-v0", dataset=few, balance_tasks=balance)
        drawn = [int(env.reset(seed=0 if number == 0 else None)[0]["task"]) for number in range(200)]
        share[balance] = sum(drawn) / 200
    assert share[False] < 0.15 and 0.4 < share[True] < 0.6


def test_a_refused_reset_leaves_the_order_of_instances():
    drawn = []
    for refused in (False, True):
        env = gymnasium.make("routing_gym/SyntheticMTL-v0").unwrapped
        env.reset(seed=3)
        if refused:
            for options in ({"foo": 1}, {"instances": [10**6]}):
                with pytest.raises(ValueError):
                    env.reset(options=options)
                with pytest.raises(ValueError):
                    env.reset(seed=5, options=options)
            with pytest.raises(gymnasium.error.Error):
                env.reset(seed=-1)
        drawn.append([env.reset()[0]["activation"].tolist() for _ in range(3)])
    assert drawn[0] == drawn[1]
