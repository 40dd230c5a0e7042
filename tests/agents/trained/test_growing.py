"""One more task for an agent that is trained already."""

import gymnasium
import pytest
import torch
from toys import OF_OTHER_NETWORKS, small_env, toy_data

import routing_gym
from routing_gym.agents import AGENTS, add_task, make_agent, prune
from routing_gym.envs import RoutingVectorEnv, rollout
from routing_gym.networks import ColumnsMLP, RoutedMLP

OPTIONS = {"num_classes": 3, "image_size": 3, "images_per_class": 30, "width": 16, "noise": 10.0, "seed": 2}


def parts(first, rest):
    """An environment of the first tasks, and the rest by split."""
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=32, num_tasks=4, num_blocks=5, **OPTIONS).unwrapped
    old = {name: split.select_tasks(first) for name, split in env.datasets.items()}
    new = {name: split.select_tasks(rest) for name, split in env.datasets.items()}
    return env.sibling(32, autoreset_mode="disabled"), old, new


def trained(name, **options):
    env, old, new = parts([0, 1, 2], [3])
    env = type(env)(env.network, old, 32, autoreset_mode="disabled", learning_rate=3e-3)
    return make_agent(name, env, **options).learn(env, 40 * len(env.dataset)), new


@pytest.mark.long
def test_a_new_task_is_learned_and_the_old_ones_are_kept():
    agent, new = trained("wpl", policy_rate=0.02)
    before = routing_gym.evaluate(agent, agent.env)
    assert before.accuracy > 0.95
    grown = add_task(agent, new, block_rate=0.2)
    first = routing_gym.evaluate(grown, grown.env)
    assert first.task_accuracy[:3] == before.task_accuracy and first.task_accuracy[3] < 0.6
    torch.testing.assert_close(grown.table[:3], agent.table)
    torch.testing.assert_close(grown.table[3], torch.full((3, 5), 0.2))
    assert set(rollout(grown, grown.env).task.tolist()) == {3}
    grown.learn(grown.env, 3000)
    after = routing_gym.evaluate(grown, grown.env)
    assert after.task_accuracy[3] > 0.9 and min(after.task_accuracy[:3]) > 0.9
    assert grown.env.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(6e-4)
    assert grown.env.network is agent.env.network
    torch.testing.assert_close(grown.table[:3], agent.table)


LEARNERS = ["wpl", "reinforce", "actor-critic", "q-learning", "sarsa"]
NOT_GROWN = {"shared-with-task", "cross-stitch", "one-shot"}
"""Agents that need a network of their own, or have a test of it of their own."""
KINDS = [
    *((name, {}) for name in sorted(set(AGENTS) - NOT_GROWN - OF_OTHER_NETWORKS)),
    *((name, {"arrangement": kind, "representation": ("table", "mlp")[(number + place) % 2]})  # every pair
      for number, name in enumerate(LEARNERS) for place, kind in enumerate(("single", "per_task", "dispatched"))),
    ("gumbel", {"arrangement": "single", "representation": "mlp"}),
    ("gumbel", {"representation": "mlp"}),
    ("soft-mixture", {"conditioned": True}),
    ("sb3:PPO", {"representation": "mlp"}),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("name", "options"), KINDS)
def test_every_agent_grows_and_decides_as_before_for_the_old_tasks(name, options):
    torch.manual_seed(0)
    data = toy_data()
    needs = {**AGENTS[name].env_kwargs, "action_type": AGENTS[name].action_type}
    env = small_env(RoutedMLP((1, 2, 3), 3, 4, width=4, layers=2), 24, **needs)
    agent = make_agent(name, env, **options).learn(env, 24 * 5)
    before = rollout(agent, env, deterministic=True, instances=torch.arange(24))
    # What changes the blocks before the comparison would blur it.
    grown = add_task(agent, {split: part.select_tasks([1]) for split, part in data.items()})
    assert grown.num_tasks == 4
    after = rollout(grown, grown.env, deterministic=True, instances=torch.arange(24))
    if name != "random":
        for old, new in zip(before.steps, after.steps, strict=True):
            torch.testing.assert_close(old.action, new.action)
    grown.learn(grown.env, 24 * 3)


def test_schedules_stand_where_they_stood_also_in_a_checkpoint(tmp_path):
    """120 of 72 instances to a pass are 160 of 96."""
    data = {split: part.select_tasks([1]) for split, part in toy_data().items()}
    for name, options, schedule in (
        ("top-k", {"balance_epochs": 2.0}, "balance"),
        ("gumbel", {"temperature_episodes": 300}, "temperature"),
        ("q-learning", {"epsilon_episodes": 300}, "exploration"),
    ):
        env = small_env(None, 24, action_type=AGENTS[name].action_type)
        agent = make_agent(name, env, **options).learn(env, 120)
        grown = add_task(agent, data)
        grown.save(tmp_path / "grown.pt")
        loaded = AGENTS[name].load(tmp_path / "grown.pt", add_task(agent, data).env)
        for later in (grown, loaded):
            assert later.episodes == 120 and later.passes == 160 / 96 == agent.passes
            assert getattr(later, schedule) == getattr(agent, schedule) != getattr(make_agent(name, env), schedule)


def test_what_does_not_fit_is_refused():
    agent, new = trained("shared")
    with pytest.raises(ValueError, match="the new tasks have no split 'train'; they need"):
        add_task(agent, {"test": new["test"]})
    with pytest.raises(ValueError, match=r"was given a route for each of its tasks, .* the agent that it was pruned"):
        add_task(prune(trained("random-fixed")[0]), new)
    other = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", image_size=4).unwrapped.datasets
    with pytest.raises(ValueError, match=r"has images of shape \(1, 3, 3\), .* \(1, 4, 4\)"):
        add_task(agent, other)
    more = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", **{**OPTIONS, "num_classes": 6}).unwrapped.datasets
    with pytest.raises(ValueError, match="has 6 classes, but the network gives logits for 3"):
        add_task(agent, more)
    for rate in (0.0, "a"):
        with pytest.raises(ValueError, match=f"block_rate must be positive and finite, got {rate}"):
            add_task(agent, new, block_rate=rate)
    env, old, new = parts([0, 1, 2], [3])
    full = type(env)(RoutedMLP((1, 3, 3), 3, 3), old, 32, autoreset_mode="disabled")
    with pytest.raises(ValueError, match="needs a block for each of the 4 tasks"):
        add_task(make_agent("task-specific-all", full), new)
    with pytest.raises(ValueError, match="told the task as input"):
        told = type(env)(RoutedMLP((1, 3, 3), 3, 3, task_input=True, num_tasks=3), old, 32, autoreset_mode="disabled")
        add_task(make_agent("shared-with-task", told), new)


def test_columns_need_one_to_spare():
    data = toy_data()
    new = {split: part.select_tasks([1]) for split, part in data.items()}
    for columns, fits in ((3, False), (4, True)):
        network = ColumnsMLP((1, 2, 3), 3, columns, width=4, layers=2, num_tasks=3)
        agent = make_agent("cross-stitch", small_env(network, 24, action_type="weights"))
        if not fits:
            with pytest.raises(ValueError, match="a column for each of the 4 tasks, this network has 3"):
                add_task(agent, new)
            continue
        grown = add_task(agent, new)
        torch.testing.assert_close(grown.weight, agent.weight)
        grown.learn(grown.env, 24 * 3)


def test_tasks_are_selected_and_joined():
    data = toy_data()["train"]
    some = data.select_tasks([2, 0])
    assert some.num_tasks == 2 and len(some) == int(((data.task == 2) | (data.task == 0)).sum())
    rows = (data.task == 2).nonzero().flatten()
    torch.testing.assert_close(some.image[some.task == 0], data.image[rows])
    torch.testing.assert_close(some.label[some.task == 0], data.label[rows])
    joined = some.with_tasks(data.select_tasks([1]))
    assert joined.images is some.images and joined.num_tasks == 3
    torch.testing.assert_close(joined.label[joined.task == 2], data.label[data.task == 1])
    for wrong in ([], [0, 0], [3]):
        with pytest.raises(ValueError, match="has the tasks 0 to 2, asked for are"):
            data.select_tasks(wrong)
    with pytest.raises(ValueError, match="draw_tasks names task 5"):
        small_env(draw_tasks=(5,))


def test_schedule_and_weights_of_the_old_tasks_are_no_hindrance():
    options = {"schedule": "step", "schedule_epochs": (1, 2), "task_weights": (1.0, 2.0, 3.0)}
    env = small_env(**options)
    split = env.datasets["train"].select_tasks([0])
    env = RoutingVectorEnv(env.network, {"train": env.dataset}, 12, autoreset_mode="disabled", **options)
    grown = add_task(make_agent("reinforce", env), split)
    assert grown.env.config.task_weights == (1.0, 2.0, 3.0, 1.0) and grown.env.config.schedule == "constant"
    grown.learn(grown.env, 24)
    with pytest.raises(ValueError, match="the new tasks must be splits by name, or one split"):
        add_task(grown, [split])
