"""Rows that may be drawn during a part of training only: which are drawn when, and going on exactly after a stop."""

import dataclasses
import itertools
import math

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import routing_gym
from routing_gym.agents import Agent, add_task, make_agent, needs
from routing_gym.envs import rollout
from routing_gym.envs.pettingzoo import RoutingParallelEnv
from routing_gym.experiments.engine.metrics import METRICS, Judged
from routing_gym.experiments.engine.training import few_of
from routing_gym.tasks import MultiTaskDataset, ShuffledStream, hidden_groups
from routing_gym.tasks.planted.parts import moved_groups
from routing_gym.tasks.sampling import PhasedStream

GROUPS = "routing_gym/HiddenGroups-v0"
DRIFT = {"num_tasks": 6, "images_per_task": 8, "drift_at": 0.5, "passes": 4}
LATE = {"num_tasks": 6, "images_per_task": 8, "late_images": 5, "late_at": 0.5, "passes": 4}


def split_of(during, task=None):
    """Rows of these times, each with an image of its own."""
    images = np.zeros((len(during), 1, 2, 2), np.uint8)
    plain = MultiTaskDataset.from_arrays(images, np.zeros(len(during), int), task)
    return dataclasses.replace(plain, during=torch.tensor(during))


TIMES = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 6)).map(lambda of: (of[0] / 2, (of[0] + of[1]) / 2)), max_size=12
)


@given(during=TIMES, draws=st.lists(st.tuples(st.integers(0, 7), st.floats(0, 8)), max_size=8), seed=st.integers(0, 9))
def test_only_rows_in_force_are_drawn_and_each_once_before_any_twice(during, draws, seed):
    during = [(0.0, math.inf), *during]
    split = split_of(during)
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=1).unwrapped
    stream = dataclasses.replace(env.config, seed=seed).stream(split, 1)
    seen: dict[tuple[int, ...], list[int]] = {}
    for count, passes in sorted(draws, key=lambda of: of[1]):
        rows = tuple(row for row, (begin, end) in enumerate(during) if begin <= passes < end)
        assert split.rows_at(passes).tolist() == list(rows)
        drawn = stream.draw(count, passes).tolist()
        assert set(drawn) <= set(rows)
        phase = next(begin for begin, _ in reversed(split.phases) if begin <= passes)
        seen.setdefault((phase, *rows), []).extend(drawn)
    for (_, *rows), drawn in seen.items():
        times = [drawn.count(row) for row in rows]
        assert max(times) - min(times) <= 1
    assert split.rows_per_pass == max(len(rows) for _, rows in split.phases)


@given(st.integers(0, 20), st.floats(0, 3), st.lists(st.floats(0, 3), min_size=1, max_size=5))
def test_streams_that_take_turns_go_on_where_they_stopped(count, before, after):
    def made(seed):
        return PhasedStream([(0.0, ShuffledStream(5)), (1.0, ShuffledStream(torch.tensor([7, 8, 9])))], seed)

    one, other = made(3), made(4)
    one.draw(count, before)
    other.load_state_dict(one.state_dict())
    for passes in after:
        assert torch.equal(one.draw(4, passes), other.draw(4, passes))
    for wrong in ({}, {"phases": []}, {"phases": one.state_dict()["phases"][::-1]}):
        kept = str(one.state_dict())
        with pytest.raises(ValueError, match="stream"):
            one.load_state_dict(wrong)
        assert str(one.state_dict()) == kept


@pytest.mark.parametrize("options", [DRIFT, LATE], ids=["drift", "late"])
@pytest.mark.parametrize(
    "more", [{}, {"balance_tasks": True}, {"draw_tasks": (0, 2, 3)}], ids=["all", "balanced", "some"]
)
def test_training_goes_on_bit_for_bit_across_the_change(options, more, tmp_path):
    def made(seed):
        options_of_env = {**options, **more, **needs("reinforce")}
        env = gymnasium.make_vec(GROUPS, num_envs=16, seed=seed, **options_of_env)
        return env, make_agent("reinforce", env, seed=3)

    drawn = {}
    env, agent = made(1)
    drawn["whole"] = watched(agent, env, 10)
    env, agent = made(1)
    first = watched(agent, env, 4)
    agent.save(tmp_path / "half.pt")
    env, _ = made(9)
    drawn["halves"] = first + watched(Agent.load(tmp_path / "half.pt", env), env, 6)
    assert drawn["whole"] == drawn["halves"]
    split = env.unwrapped.dataset
    for number, (rows, _) in enumerate(drawn["whole"]):
        passes = number * 16 / env.unwrapped.trainer.optimization.epoch
        assert set(rows) <= set(split.rows_at(passes).tolist())
    assert {passes >= 2 for passes, _ in split.phases} == {False, True}


@pytest.mark.parametrize(
    ("name", "asked"), [("best-random", {"draws": 3, "passes": 1}), ("one-shot", {"draws": 2, "passes": 2})]
)
def test_a_search_that_begins_anew_does_not_put_the_clock_of_the_data_back(name, asked, tmp_path):
    def rows_of(name, again=False, **asked):
        env = gymnasium.make_vec(GROUPS, num_envs=16, seed=1, **DRIFT, **needs(name))
        agent, seen = make_agent(name, env, **asked), []
        for number in range(12):
            if again and number in (4, 8):
                agent.save(tmp_path / "agent.pt")
                env = gymnasium.make_vec(GROUPS, num_envs=16, seed=2, **DRIFT, **needs(name))
                agent = Agent.load(tmp_path / "agent.pt", env)
            seen.append(watched(agent, env, 1)[0][0])
        return seen, env.unwrapped

    seen, env = rows_of(name, **asked)
    assert seen == rows_of("random-fixed")[0] == rows_of(name, again=True, **asked)[0]
    trainer = env.trainer
    assert trainer.passes == 12 * 16 / trainer.optimization.epoch and trainer.carried > 0
    for number, rows in enumerate(seen):
        assert set(rows) <= set(env.dataset.rows_at(number * 16 / trainer.optimization.epoch).tolist())


def test_blocks_go_back_and_their_schedule_with_them_and_old_states_are_still_taken():
    options = {**needs("shared"), "schedule": "halving", "schedule_epochs": 1, "learning_rate": 1.0}
    env = gymnasium.make_vec(GROUPS, num_envs=16, **options).unwrapped
    agent, trainer, epoch = make_agent("shared", env), env.trainer, env.trainer.optimization.epoch
    held = agent.learn(env, epoch).env.trainer.state_dict()
    for passes in (3, 5):
        agent.learn(env, 2 * epoch)
        assert trainer.rate == 1 / 8
        trainer.take_back(held)
        assert trainer.instances == epoch and trainer.passes == passes and trainer.rate == 1 / 2
    old = env.state_dict()
    del old["blocks"]["carried"]
    env.load_state_dict(old)
    assert trainer.passes == trainer.instances / epoch


def test_time_goes_on_where_tasks_are_added():
    env = gymnasium.make_vec(GROUPS, num_envs=16, **DRIFT, **needs("oracle"))
    agent = make_agent("oracle", env).learn(env, 16 * 8)
    others = hidden_groups(num_tasks=6, images_per_task=8, data_seed=1)
    new = {name: split.select_tasks([0]) for name, split in others.items()}
    grown = add_task(agent, new)
    assert grown.env.trainer.passes == pytest.approx(8 / 3, abs=1 / 56)  # to the nearest instance
    grown.learn(grown.env, 16)
    assert torch.equal(grown.routes[:6], agent.routes)


def watched(agent, env, batches):
    """Rows and loss of some batches."""
    seen = []
    for _ in range(batches):
        agent.learn(
            env, 16, lambda metrics: seen.append((env.unwrapped.state.instance.tolist(), float(metrics["loss"])))
        )
    return seen


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_outside_agents_see_the_change_and_go_on_exactly(mode):
    def made(seed):
        options = {**DRIFT, "autoreset_mode": mode, "replay_batch": 8}
        return gymnasium.make_vec(GROUPS, num_envs=8, seed=seed, **options)

    def played(env, steps, generator):
        rows = []
        env.reset()
        for _ in range(steps):
            env.step(torch.randint(3, (8,), generator=generator))
            assert set(env.unwrapped.state.instance.tolist()) <= in_force(env)
            rows.append(env.unwrapped.state.instance.tolist())
        return rows, env.unwrapped.network.state_dict()

    def in_force(env):  # a row drawn just before the change may still be under way
        passes, split = env.unwrapped.trainer.passes, env.unwrapped.dataset
        return {row for at in (passes, passes - 24 / 48) for row in split.rows_at(max(0.0, at)).tolist()}

    one, other = made(1), made(2)
    played(one, 36, torch.Generator().manual_seed(0))
    assert 0 < one.unwrapped.trainer.passes < 4
    one.unwrapped.load_state_dict(one.unwrapped.state_dict())  # what is under way is given up in both
    other.unwrapped.load_state_dict(one.unwrapped.state_dict())
    ours, theirs = (played(env, 60, torch.Generator().manual_seed(1)) for env in (one, other))
    assert ours[0] == theirs[0]
    assert all(torch.equal(value, theirs[1][name]) for name, value in ours[1].items())
    assert one.unwrapped.trainer.passes > 2 and set(ours[0][-1]) <= set(range(48, 96))


def test_one_instance_at_a_time_is_drawn_of_those_in_force():
    env = gymnasium.make(GROUPS, **{**DRIFT, "passes": 2, "replay_batch": 1, "images_per_task": 5})
    rows = []
    for number in range(60):
        env.reset(seed=number)
        rows.append(int(env.unwrapped.core.state.instance))
        ended = False
        while not ended:
            ended = env.step(0)[2]
    assert set(rows[:30]) <= set(range(30)) and set(rows[30:]) <= set(range(30, 60))


def test_tasks_that_are_agents_need_instances_all_the_time():
    with pytest.raises(ValueError, match="instances of hidden groups come and go"):
        RoutingParallelEnv(gymnasium.make_vec(GROUPS, **DRIFT))
    with pytest.raises(ValueError, match="during a part of training they have no instances"):
        late = hidden_groups(**LATE)["train"].late_task
        gymnasium.make_vec(GROUPS, **LATE, draw_tasks=(late,))


WRONG = [
    ([(0.0, 1.0, 2.0)] * 2, r"of shape \(2, 2\), got shape \(2, 3\)"),
    ([(0.0, 1.0), (1.0, 1.0)], "0 <= begin < end"),
    ([(-1.0, 1.0), (0.0, 2.0)], "values from -1.0 to 2.0"),
    ([(0.0, math.nan), (0.0, 2.0)], "0 <= begin < end"),
    ([(0.0, 1.0), (2.0, math.inf)], "no row that may be drawn from pass 1 on"),
    ([(1.0, math.inf), (2.0, math.inf)], "no row that may be drawn from pass 0 on"),
    ([(0.0, 5.0), (2.0, 4.0)], "no row that may be drawn from pass 5 on"),
]


@pytest.mark.parametrize("during, message", WRONG)
def test_wrong_times_are_refused(during, message):
    with pytest.raises(ValueError, match=message):
        split_of(during)


def test_times_and_the_late_task_are_carried_along():
    split = hidden_groups(**LATE)["train"]
    late = split.late_task
    with pytest.raises(ValueError, match="late_task must be a task, 0 to 5, got 6"):
        dataclasses.replace(split, late_task=6)
    other = (late + 1) % 6
    some = split.select_tasks([other, late])
    assert some.late_task == 1 and some.during[some.task == 1, 0].tolist() == [2.0] * 5
    assert split.select_tasks([other]).late_task is None
    plain = hidden_groups(num_tasks=3)["train"]
    for joined in (split.with_tasks(plain), plain.with_tasks(split)):
        assert sorted(joined.during[:, 0].unique().tolist()) == [0.0, 2.0] and len(joined.during) == len(joined)
    assert plain.with_tasks(plain).during is None
    assert len(few_of(split).during) == len(few_of(split))
    assert plain.rows_per_pass == len(plain) and split.rows_per_pass == len(split) == 45


def group_of(split, rows):
    group = torch.full((split.num_tasks,), -1)
    group[split.task[rows]] = split.planted[rows, 0]
    assert torch.equal(group[split.task[rows]], split.planted[rows, 0])
    return group


def test_every_task_moves_to_another_group_in_mid_training():
    before, splits = hidden_groups(num_tasks=6, images_per_task=8), hidden_groups(**DRIFT)
    train, still = splits["train"], before["train"]
    assert [begin for begin, _ in train.phases] == [0.0, 2.0] and train.rows_per_pass == len(still) == 48
    old, new = (rows for _, rows in train.phases)
    for column in ("image", "task", "label", "planted"):
        assert torch.equal(getattr(train, column)[old], getattr(still, column))
    assert torch.equal(train.image[old], train.image[new]) and torch.equal(train.task[old], train.task[new])
    groups = [group_of(train, rows) for rows in (old, new)]
    assert (groups[0] != groups[1]).all() and len(groups[1].unique()) == 3
    # Groups ask for what they asked for: a block that has learned one is right for those that come.
    known = {}
    for split in (still, before["test"], splits["test"]):
        images = [split.images[number].numpy().tobytes() for number in split.image.tolist()]
        for image, group, label in zip(images, split.planted[:, 0].tolist(), split.label.tolist(), strict=True):
            assert known.setdefault((image, group), label) == label
    for name in ("validation", "test"):
        assert torch.equal(group_of(splits[name], torch.arange(len(splits[name]))), groups[1])
        assert splits[name].during is None
    never = hidden_groups(**{**DRIFT, "drift_at": 1.0})["train"]
    assert never.during is None and torch.equal(never.planted, still.planted)
    at_once = hidden_groups(**{**DRIFT, "drift_at": 0.0})["train"]
    assert at_once.during is None and torch.equal(group_of(at_once, torch.arange(48)), groups[1])


@given(st.integers(2, 6).flatmap(lambda groups: st.tuples(st.just(groups), st.integers(groups, 30))), st.integers(0, 9))
def test_tasks_that_move_leave_no_group_empty(of, seed):
    groups, tasks = of
    generator = torch.Generator().manual_seed(seed)
    group = (torch.arange(tasks) % groups)[torch.randperm(tasks, generator=generator)]
    moved = moved_groups(group, groups, generator)
    assert (moved != group).all() and moved.min() >= 0 and len(moved.unique()) == groups == int(moved.max()) + 1
    # Those of a group part, as equally as can be.
    counts = torch.stack([torch.bincount(moved[group == g], minlength=groups) for g in range(groups)])
    apart = counts[~torch.eye(groups, dtype=torch.bool)].view(groups, -1)
    assert (apart.amax(1) - apart.amin(1) <= 1).all()


def test_the_late_task_has_a_relative_and_no_rows_before_its_time():
    numbers = set()
    for data_seed in range(8):
        splits = hidden_groups(**LATE, data_seed=data_seed)
        train, late = splits["train"], splits["test"].late_task
        numbers.add(late)
        group = group_of(train, torch.arange(len(train)))
        assert (group == group[late]).sum() > 1
        early, whole = (rows for _, rows in train.phases)
        assert [begin for begin, _ in train.phases] == [0.0, 2.0]
        assert late not in train.task[early] and len(whole) == 45 and len(early) == 40
        assert torch.bincount(train.task).tolist() == [5 if task == late else 8 for task in range(6)]
        assert all(split.late_task == late for split in splits.values())
    assert len(numbers) > 2
    assert hidden_groups(num_tasks=4)["train"].late_task is None


REFUSED = [
    ({"drift_at": 1.5}, r"drift_at must lie in \[0, 1\], got 1.5"),
    ({"drift_at": True}, "drift_at must lie"),
    ({"drift_at": 0.5, "num_groups": 1}, "num_groups=1 has none"),
    ({"late_images": 4}, "5 classes, late_images must be at least as many, got 4"),
    ({"late_images": 5.0}, "late_images must be an integer"),
    ({"late_images": 2000}, "2000 training images"),
    ({"late_images": 5, "late_at": 1.0}, r"late_at must lie in \[0, 1\)"),
    ({"late_images": 5, "num_tasks": 3}, "needs a relative"),
    ({"late_images": 5, "drift_at": 0.5}, "no drift_at"),
    ({"passes": 0}, "passes must be an integer of at least 1"),
]


@pytest.mark.parametrize("options, message", REFUSED)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        hidden_groups(**options)


def test_the_oracle_follows_what_is_planted(tmp_path):
    env = gymnasium.make_vec(GROUPS, num_envs=16, **DRIFT, **needs("oracle"))
    agent, train = make_agent("oracle", env), env.unwrapped.dataset
    old, new = (group_of(train, rows).unsqueeze(1).expand(-1, 2) for _, rows in train.phases)
    assert torch.equal(agent.routes, old)
    for expected in [old] * 5 + [new] * 3:  # three batches a pass, the drift after two
        agent.learn(env, 16)
        assert torch.equal(agent.routes, expected)
        agent.save(tmp_path / "agent.pt")
        again = gymnasium.make_vec(GROUPS, num_envs=16, **DRIFT, **needs("oracle"))
        assert torch.equal(Agent.load(tmp_path / "agent.pt", again).routes, expected)
    env = gymnasium.make_vec(GROUPS, num_envs=16, **LATE, **needs("oracle"))
    late = env.unwrapped.dataset
    wanted = group_of(late, torch.arange(len(late))).unsqueeze(1).expand(-1, 2)
    assert torch.equal(make_agent("oracle", env).routes, wanted)


def test_a_reward_for_often_taken_blocks_asks_no_probabilities_of_the_oracle():
    env = gymnasium.make_vec(GROUPS, num_envs=16, num_tasks=6, rho=0.5, **needs("oracle"))
    make_agent("oracle", env).learn(env, 16)


def test_the_accuracy_of_the_late_task_is_a_metric():
    for options, there in ((LATE, True), ({"num_tasks": 6}, False)):
        env = gymnasium.make_vec(GROUPS, num_envs=16, **options, **needs("shared"))
        agent = make_agent("shared", env)
        evaluation = routing_gym.evaluate(agent, env)
        value = METRICS["late_task"].measure(Judged(agent, evaluation, 1.0, 1.0))
        split = env.unwrapped.datasets["test"]
        assert value == (evaluation.task_accuracy[split.late_task] if there else None)


def test_batches_before_the_change_are_full_of_rows_in_force():
    """Of an agent's own loop: the blocks' clock says which rows are in force when a batch begins."""
    env = gymnasium.make_vec(GROUPS, num_envs=20, **LATE, **needs("random"))
    agent, late = make_agent("random", env), env.unwrapped.dataset.late_task
    seen = []
    for _ in range(12):  # 60 instances a pass, 45 rows rounded up
        agent.learn(env, 20)
        seen.append(late in env.unwrapped.state.task)
    assert not any(seen[:6]) and all(any(pair) for pair in itertools.pairwise(seen[6:]))
    assert len(rollout(agent, env.unwrapped)) == 20
