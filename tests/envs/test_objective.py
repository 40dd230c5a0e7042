"""What blocks are trained on: weights of classes and tasks, smoothed labels, clipped gradients, balanced tasks."""

import gymnasium
import numpy as np
import pytest
import torch
from damage import same
from resuming import assert_goes_on
from torch.nn import functional

import routing_gym
from routing_gym.agents import make_agent, needs
from routing_gym.envs import rollout
from routing_gym.tasks import BalancedStream, MultiTaskDataset
from routing_gym.tasks.sampling import PhasedStream

ENV = "routing_gym/SyntheticMTL-v0"
CLASS_WEIGHTS, TASK_WEIGHTS = (1.0, 0.0, 2.5), (1.0, 3.0, 0.5, 2.0)


def made(name="wpl", num_envs=32, **options):
    env = gymnasium.make_vec(ENV, num_envs=num_envs, autoreset_mode="disabled", **options)
    return env, make_agent(name, env)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("classes", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("tasks", [None, TASK_WEIGHTS])
def test_the_loss_is_a_loop_over_instances(smoothing, classes, tasks):
    env, agent = made(label_smoothing=smoothing, class_weights=classes, task_weights=tasks)
    trajectory = rollout(agent, env.unwrapped)
    (exit,) = trajectory.exits
    total, weights = 0.0, 0.0
    rows = range(32) if exit.rows is None else exit.rows
    for logits, row in zip(exit.logits.detach(), rows, strict=True):
        label, task = trajectory.label[row], trajectory.task[row]
        target = torch.full((3,), smoothing / 3)
        target[label] += 1 - smoothing
        weight = (1.0 if classes is None else classes[label]) * (1.0 if tasks is None else tasks[task])
        total += weight * float(-(target * logits.log_softmax(0)).sum())
        weights += weight
    assert float(env.unwrapped.train_blocks()) == pytest.approx(total / weights, rel=1e-5)
    plain = functional.cross_entropy(exit.logits, trajectory.label[torch.as_tensor(rows)], reduction="none")
    torch.testing.assert_close(trajectory.loss[torch.as_tensor(rows)], plain.detach())  # what is seen stays as it was


def test_replayed_routes_are_trained_on_the_same_loss():
    options = {"label_smoothing": 0.1, "class_weights": CLASS_WEIGHTS, "task_weights": TASK_WEIGHTS, "optimizer": "sgd"}
    steps = {}
    for replay in (False, True):
        env, agent = made("task-specific-all", replay=replay, replay_batch=32, **options)
        agent.learn(env, 32)
        steps[replay] = [parameter.detach().clone() for parameter in env.unwrapped.network.parameters()]
    torch.testing.assert_close(*steps.values())


def test_a_class_of_weight_0_is_not_learned():
    env, agent = made("task-specific-all", class_weights=(1.0, 1.0, 0.0), learning_rate=0.01)
    agent.learn(env, 3000)
    judged = routing_gym.evaluate(agent, env)
    right = judged.exits.sum((0, 1))
    assert right[2, 1] == 0 and right[:2, 1].sum() > right[:2, 0].sum()


@pytest.mark.parametrize("largest", [1e-4, 1e3])
def test_gradients_are_scaled_down_to_their_largest_norm(largest):
    norms = {}
    for option in (None, largest):
        env, agent = made("task-specific-all", optimizer="sgd", learning_rate=1.0, max_grad_norm=option)
        before = [parameter.detach().clone() for parameter in env.unwrapped.network.parameters()]
        agent.learn(env, 32)
        moves = [after.detach() - old for after, old in zip(env.unwrapped.network.parameters(), before, strict=True)]
        norms[option] = float(torch.cat([move.flatten() for move in moves]).norm())
    assert norms[largest] == pytest.approx(min(largest, norms[None]), rel=1e-2)


WEIGHTED = [
    ("task-specific-last", {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1}),
    ("gumbel", {"optimizer": "adamw", "weight_decay": 0.1, "label_smoothing": 0.1}),
    ("wpl", {"optimizer": "sgd", "momentum": 0.9, "block_gradient": "rows", "max_grad_norm": 0.1}),
    ("soft-mixture", {"talr": True, "optimizer": "sgd", "momentum": 0.9}),
    ("shared", {"task_balance": "uncertainty", "optimizer": "sgd", "momentum": 0.9}),
    ("gumbel", {"task_balance": "uncertainty", "schedule": "cosine"}),
    ("task-specific-last", {"task_balance": "pcgrad", "optimizer": "sgd", "momentum": 0.9}),
    ("reinforce", {"dense_backward": True}),
]


def standing(trainer):
    """Blocks, moments, and variances of tasks with theirs; without the rate, which goes with time."""
    state = trainer.state_dict()
    balance = state["balance"]
    moments = [of["state"] for of in (state["optimizer"], balance.get("optimizer")) if of]
    return [state["network"], moments, balance.get("log_variance", 0)]


@pytest.mark.parametrize(("name", "options"), WEIGHTED)
def test_a_batch_that_weighs_nothing_is_no_step(name, options):
    options = {"num_tasks": 4, "task_weights": (1.0, 0.0, 2.0, 0.0), "learning_rate": 0.1, **options, **needs(name)}
    env = gymnasium.make_vec(ENV, num_envs=4, **options).unwrapped
    agent, idle = make_agent(name, env), torch.isin(env.dataset.task, torch.tensor([1, 3])).nonzero().flatten()
    mixed = torch.arange(0, len(env.dataset), len(env.dataset) // 4)[:4]
    for rows in (mixed, idle[::5][:4], idle[::7][:4], idle[:4], mixed):
        before, nothing = standing(env.trainer), bool(torch.isin(rows, idle).all())
        rollout(agent, env, instances=rows)
        assert (float(env.train_blocks()) == 0) == nothing
        assert same(before, standing(env.trainer)) == nothing
    assert env.trainer.instances == 20  # the schedule and the data's time go on


@pytest.mark.parametrize("num_envs", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{"class_weights": (1.0, 0.0, 1.0)}, {"task_weights": (1.0, 0.0, 0.0, 0.0)}], ids=str
)
def test_small_batches_are_trained_as_if_those_that_weigh_nothing_were_left_out(num_envs, options):
    options = {"optimizer": "sgd", "momentum": 0.9, **options}
    (env, agent), (other, again) = (made("random", num_envs, **options) for _ in range(2))
    losses = []
    agent.learn(env, 60, lambda metrics: losses.append(float(metrics["loss"])))
    assert np.isfinite(losses).all()
    for _ in range(60 // num_envs):
        trajectory = rollout(again, other.unwrapped)
        of_class, of_task = options.get("class_weights", (1,) * 3), options.get("task_weights", (1,) * 4)
        if any(of_class[y] * of_task[t] for y, t in zip(trajectory.label, trajectory.task, strict=True)):
            other.unwrapped.train_blocks()
    assert same(env.unwrapped.network.state_dict(), other.unwrapped.network.state_dict())
    replaying = gymnasium.make_vec(ENV, num_envs=num_envs, replay_batch=num_envs, **options)
    replaying.reset()
    for _ in range(60):
        replaying.step(torch.zeros(num_envs, dtype=torch.int64))
    assert replaying.unwrapped.trainer.instances >= 15


def test_auxiliary_losses_of_a_batch_that_weighs_nothing_are_descended():
    """A penalty on the weights, in a loop by hand, whether gradients of tasks are balanced, by rows, or not."""
    for options in ({}, {"block_gradient": "rows"}, {"task_balance": "pcgrad"}, {"task_balance": "uncertainty"}):
        env, agent = made("shared", 4, optimizer="sgd", learning_rate=0.1, task_weights=(1.0, 0.0, 1.0, 1.0), **options)
        agent.learn(env, 4)
        before = [parameter.detach().clone() for parameter in env.unwrapped.network.parameters()]
        rows = (env.unwrapped.dataset.task == 1).nonzero().flatten()[:4]
        rollout(agent, env.unwrapped, instances=rows)
        env.unwrapped.train_blocks(sum(p.square().sum() / 2 for p in env.unwrapped.network.parameters()))
        for old, new in zip(before, env.unwrapped.network.parameters(), strict=True):
            torch.testing.assert_close(new.detach()[0], 0.9 * old[0])


def unequal():
    """A task with 90 instances, one with 9, one with 1."""
    task = np.repeat([0, 1, 2], [90, 9, 1])
    return MultiTaskDataset.from_arrays(np.zeros((100, 1, 2, 2), np.uint8), np.zeros(100, int), task)


def test_balanced_tasks_come_equally_often_and_every_instance_once_per_pass():
    env = gymnasium.make_vec(ENV, num_envs=30, dataset=unequal(), balance_tasks=True, autoreset_mode="disabled")
    agent = make_agent("random", env)
    count, seen = torch.zeros(3), torch.zeros(100, dtype=torch.int64)
    for _ in range(9):
        trajectory = rollout(agent, env.unwrapped)
        count += torch.bincount(trajectory.task, minlength=3)
        seen += torch.bincount(trajectory.instance, minlength=100)
    assert count.tolist() == [90, 90, 90] and (seen[:90] == 1).all() and (seen[90:99] == 10).all()
    some = gymnasium.make_vec(
        ENV, num_envs=30, dataset=unequal(), balance_tasks=True, draw_tasks=(0, 2), autoreset_mode="disabled"
    )
    drawn = rollout(make_agent("random", some), some.unwrapped).task
    assert torch.bincount(drawn, minlength=3).tolist() == [15, 0, 15]


def test_a_balanced_stream_goes_on_where_it_stopped():
    groups = [torch.arange(5), torch.arange(5, 7)]
    stream, other = BalancedStream(groups, seed=3), BalancedStream(groups, seed=4)
    stream.draw(7)
    other.load_state_dict(stream.state_dict())
    assert torch.equal(stream.draw(50), other.draw(50))
    assert not torch.equal(BalancedStream(groups, 0).draw(20), BalancedStream(groups, 1).draw(20))
    assert len(BalancedStream(groups, 2**64 - 1).draw(20)) == 20
    assert len(PhasedStream([(0.0, BalancedStream(groups)), (1.0, BalancedStream(groups))], 2**63).draw(20)) == 20
    for wrong in (BalancedStream(groups[:1]).state_dict(), BalancedStream(groups[::-1]).state_dict(), {}):
        before = stream.state_dict()
        with pytest.raises(ValueError, match="stream"):
            stream.load_state_dict(wrong)
        assert str(stream.state_dict()) == str(before)


def test_learning_goes_on_bit_for_bit(tmp_path):
    options = {"balance_tasks": True, "task_weights": TASK_WEIGHTS, "label_smoothing": 0.1, "max_grad_norm": 0.5}
    assert_goes_on(lambda: made(**options)[1], (3, 3), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": (1.0, 2.0)}, "class_weights must hold 3 numbers for .*, got 2"),
        ({"task_weights": (1.0,) * 5}, "task_weights must hold 4 numbers for .*, got 5"),
        ({"class_weights": (0.0, 0.0, 0.0)}, "class_weights must be numbers of at least 0, not all 0"),
        ({"class_weights": (1.0, -1.0, 0.0)}, "class_weights must be numbers of at least 0"),
        ({"task_weights": ("a",) * 4}, "task_weights must be numbers"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive and finite, got 0.0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)
