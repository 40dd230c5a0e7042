"""How the blocks' optimiser goes on: schedules, momentum, weight decay, also after a resume."""

import dataclasses
import math

import pytest
import torch
from damage import same
from toys import ExitTree, small_env

from routing_gym.agents import Agent, make_agent


def rates(env, agent, batches):
    seen = []
    for _ in range(batches):
        agent.learn(env, env.num_envs)
        seen.append(env.trainer.optimizer.param_groups[0]["lr"])
    return seen


def test_the_rate_falls_by_passes_over_the_split():
    """72 rows in batches of 12 are 6 steps to an epoch; the first step is taken at the full rate."""
    env = small_env(optimizer="sgd", learning_rate=0.1, momentum=0.9, schedule="step", schedule_epochs=2)
    assert len(env.dataset) == 72
    assert rates(env, make_agent("shared", env), 30) == pytest.approx([0.1] * 12 + [0.01] * 12 + [0.001] * 6)
    env = small_env(learning_rate=0.1, schedule="step", schedule_epochs=(0.5, 2))
    assert rates(env, make_agent("shared", env), 14) == pytest.approx([0.1] * 3 + [0.01] * 9 + [0.001] * 2)
    env = small_env(num_envs=2, learning_rate=0.1, schedule="step", schedule_epochs=0.1)
    env.trainer.optimization = dataclasses.replace(env.trainer.optimization, epoch=20)  # 0.3 / 0.1 is 2.99... in floats
    assert rates(env, make_agent("shared", env), 5) == pytest.approx([0.1, 0.01, 0.001, 1e-4, 1e-5])
    env = small_env(learning_rate=0.1, schedule="cosine", schedule_epochs=4)
    expected = [0.05 * (1 + math.cos(math.pi * step / 24)) for step in range(24)] + [0.0] * 3
    assert rates(env, make_agent("shared", env), 27) == pytest.approx(expected, abs=1e-9)


def test_a_resumed_run_goes_on_with_its_rate(tmp_path):
    options = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "schedule": "cosine", "schedule_epochs": 3}
    env = small_env(**options)
    agent = make_agent("wpl", env)
    rates(env, agent, 5)
    agent.save(tmp_path / "c.pt")
    whole = rates(env, agent, 4)
    again = small_env(**options)
    assert rates(again, Agent.load(tmp_path / "c.pt", again), 4) == whole
    assert same([*env.network.parameters()], [*again.network.parameters()])


def test_same_step_counts_what_is_replayed():
    env = small_env(schedule="step", schedule_epochs=1, learning_rate=0.1)
    same = env.sibling(4, autoreset_mode="same_step", replay_batch=8)
    same.reset(seed=0)
    while same.trainer.instances < 80:
        same.step(torch.zeros(4, dtype=torch.int64))
    assert same.trainer.instances == 80
    assert same.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)  # 72 rows are 9 steps


def test_momentum_begins_for_a_block_when_it_is_first_used():
    """Plain SGD of PyTorch, one parameter at a time, on the gradients of routes that part later and later."""
    env = small_env(ExitTree([[1], [2], []]), 4, optimizer="sgd", learning_rate=0.1, momentum=0.9)
    named = dict(env.network.named_parameters())
    plain = {name: parameter.detach().clone().requires_grad_() for name, parameter in named.items()}
    slow = torch.optim.SGD(plain.values(), lr=0.1, momentum=0.9, foreach=False)
    for length in (0, 1, 2, 0, 2):
        env.reset()
        for step in range(min(length + 1, 2)):
            env.step(torch.full((4,), int(step < length)))
        env.train_blocks()
        for name, parameter in named.items():
            plain[name].grad = None if parameter.grad is None else parameter.grad.clone()
        slow.step()
        torch.testing.assert_close(named, plain)


def test_weight_decay_shrinks_what_has_been_used_and_nothing_else():
    env = small_env(optimizer="sgd", learning_rate=0.1, weight_decay=0.5)
    agent = make_agent("shared", env)
    weight = env.network.bank(0).weight
    before = weight.detach().clone()
    (used,) = agent.plan(torch.zeros(1, dtype=torch.int64), True)[:, 0, 0].tolist()
    env.reset()
    agent.learn(env, 12)
    gradient = weight.grad[used]
    torch.testing.assert_close(weight[used], 0.95 * before[used] - 0.1 * gradient)
    others = [block for block in range(len(weight)) if block != used]
    assert torch.equal(weight[others], before[others])


def test_an_epoch_is_whole_batches():
    env = small_env(num_envs=50, schedule="cosine", schedule_epochs=2)  # 72 rows: two batches of 50
    assert rates(env, make_agent("shared", env), 4) == pytest.approx([1e-3, 1e-3 * (0.5 + 0.5**1.5), 5e-4,
                                                                      1e-3 * (0.5 - 0.5**1.5)])  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draw_tasks": 3}, "draw_tasks must be of type tuple.int, .... or None, got 3"),
        ({"draw_tasks": ()}, "draw_tasks must be a tuple of task numbers"),
        ({"draw_tasks": (0.5,)}, "draw_tasks must be a tuple of task numbers"),
        ({"momentum": 0.9}, "momentum is for optimizer='sgd', got 'adam'"),
        ({"optimizer": "sgd", "momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0 and finite, got -1.0"),
        ({"schedule": "linear"}, "schedule must be 'constant' or 'step' or 'halving' or 'cosine', got 'linear'"),
        ({"schedule_epochs": 0}, "schedule_epochs must be positive and finite, got 0"),
        ({"schedule": "step", "schedule_epochs": ()}, "schedule_epochs must be positive and finite, got ()"),
        ({"schedule": "step", "schedule_epochs": (1, "x")}, "schedule_epochs must be positive and finite, got"),
        ({"schedule": "cosine", "schedule_epochs": (1, 2)}, "several schedule_epochs are for schedule='step', got"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_env(**options)
