"""The game of many: one PettingZoo agent per task."""

import importlib
import re
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pettingzoo
import pytest
import torch
from gymnasium.error import ResetNeeded
from namespaces import python_in_namespace
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test
from pettingzoo.utils.conversions import parallel_to_aec
from toys import TREE, ExitTree, Gates, Planted, planted_env, quick, toy_env

import routing_gym
from routing_gym.envs import core_of
from routing_gym.envs.pettingzoo import RoutingParallelEnv
from routing_gym.networks import RoutedMLP
from routing_gym.registration import register_with_pettingzoo

# PettingZoo warns that observations are dicts, and that images of zeros are all zeros.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.long
@pytest.mark.parametrize("env_id", routing_gym.env_ids())
def test_every_id_passes_every_test(env_id):
    def make(**options):
        return pettingzoo.make("parallel", env_id, **quick(env_id), **options)

    parallel_api_test(make(), num_cycles=10)
    parallel_api_test(make(instances_per_agent=2), num_cycles=10)
    parallel_seed_test(make)
    api_test(parallel_to_aec(make()), num_cycles=10)


@pytest.mark.parametrize("network", [ExitTree(TREE), Gates(3), RoutedMLP((1, 2, 3), 3, 3, width=4)])
@pytest.mark.parametrize("instances", [None, 1, 3])
def test_every_family_passes(network, instances):
    parallel_api_test(RoutingParallelEnv(toy_env(network), instances), num_cycles=10)


def play(env, generator):
    """One round of random legal choices: what every agent earned, and its last info."""
    observations, _ = env.reset()
    earned, last = {}, {}
    while env.agents:
        actions = {agent: generator.choice(np.flatnonzero(observations[agent]["action_mask"])) for agent in env.agents}
        observations, rewards, terminations, truncations, infos = env.step(actions)
        assert not any(truncations.values())
        for agent, reward in rewards.items():
            earned[agent] = earned.get(agent, 0.0) + reward
            last[agent] = infos[agent] if terminations[agent] else last.get(agent)
    return earned, last


def test_every_agent_routes_instances_of_its_own_task_and_leaves_with_them():
    env = RoutingParallelEnv(toy_env(k_cpt=1e-3))
    generator, seen, rounds_of = np.random.default_rng(0), set(), []
    for _ in range(24):
        earned, last = play(env, generator)
        core = env.core
        assert core.state.task.tolist() == [0, 1, 2] and not env.agents
        seen.update(core.state.instance.tolist())
        for row, agent in enumerate(env.possible_agents):
            info = last[agent]
            assert info["correct"] == float(core.batch.correct[row]) and info["label"] == int(core.batch.label[row])
            paid = 1e-3 * (info["macs"] - core.network.stem_macs)
            assert earned[agent] == pytest.approx(2 * info["correct"] - 1 - paid, rel=1e-5)
        rounds_of.append(core.state.instance % 24)
    assert len(seen) == len(core.dataset)  # 24 instances of each task: all, without repetition
    assert not all(len(set(instances.tolist())) == 1 for instances in rounds_of)  # each task in an order of its own


def test_agents_of_a_tree_leave_one_by_one():
    env = RoutingParallelEnv(toy_env(train=False))
    assert env.agents == []
    with pytest.raises(ResetNeeded):
        env.step({})
    observations, _ = env.reset(seed=0)
    assert all(observations[agent]["observation"]["depth"] == 0 for agent in env.agents)
    observations, rewards, terminations, _, infos = env.step({"task_0": 0, "task_1": 1, "task_2": 2})
    assert terminations == {"task_0": True, "task_1": False, "task_2": False}
    assert env.agents == ["task_1", "task_2"] and rewards["task_0"] in (-1.0, 1.0) and rewards["task_1"] == 0
    assert "loss" in infos["task_0"] and "loss" not in infos["task_1"]
    assert observations["task_2"]["observation"]["depth"] == 2
    observations, rewards, _, _, _ = env.step({"task_0": 1, "task_1": 0, "task_2": 2})  # task_0 has left: ignored
    assert set(observations) == {"task_1", "task_2"} == set(rewards)
    before = env.core.state
    for actions, message in (
        ({}, r"an action of each of \['task_2'\], got \[\]"),
        (None, "expected a mapping from agents to actions, got None"),
        ({"task_2": 0, "task_7": 0}, "task_7"),
        ({"task_2": 0.5}, "task_2: expected integers"),
        ({"task_2": [0, 0]}, r"task_2: expected integers of shape \(\)"),
        ({"task_2": 99}, "99"),
    ):
        with pytest.raises(ValueError, match=message):
            env.step(actions)
        assert env.core.state is before and env.agents == ["task_2"]
    assert list(env.reset()[0]) == env.possible_agents


def test_many_instances_per_agent():
    env = RoutingParallelEnv(toy_env(train=False), 4)
    space = env.observation_space("task_1")
    assert space is env.observation_space("task_1") and space is not env.observation_space("task_2")
    assert env.action_space("task_1") == gymnasium.spaces.MultiDiscrete([3] * 4)
    observations, _ = env.reset(seed=1)
    assert env.core.num_envs == 12 and env.core.state.task.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert observations["task_1"]["observation"]["activation"].shape == (4, 4)
    choice = {"task_0": np.array([0, 1, 2, 0]), "task_1": np.zeros(4, int), "task_2": np.ones(4, int)}
    observations, rewards, terminations, _, infos = env.step(choice)
    assert terminations == {"task_0": False, "task_1": True, "task_2": False}
    assert (rewards["task_0"] != 0).tolist() == [True, False, False, True]
    assert infos["task_1"]["loss"].shape == (4,) and "loss" not in infos["task_0"]
    assert observations["task_2"]["observation"]["depth"].tolist() == [1] * 4
    assert env.observation_space("task_2").contains(observations["task_2"])


def test_finished_routes_train_the_blocks():
    env = RoutingParallelEnv(toy_env(RoutedMLP((1, 2, 3), 3, 3, width=4), replay_batch=6))
    generator = np.random.default_rng(0)
    before = [parameter.detach().clone() for parameter in env.core.network.parameters()]
    play(env, generator)
    assert env.core.trainer.instances == 0
    play(env, generator)
    assert env.core.trainer.instances == env.core.config.replay_batch
    after = env.core.network.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert core_of(env) is env.core is core_of(parallel_to_aec(env))


def test_independent_learners_from_outside_each_learn_their_task():
    """A table per agent, written against PettingZoo's interface alone; one route in 16 is right for each task."""
    env = RoutingParallelEnv(planted_env())
    generator = np.random.default_rng(0)
    value = {agent: np.zeros((2, Planted.BLOCKS)) for agent in env.possible_agents}

    def game(explore):
        observations, _ = env.reset()
        took, total = {agent: [] for agent in env.agents}, dict.fromkeys(env.agents, 0.0)
        while env.agents:
            actions = {}
            for agent in env.agents:
                depth = observations[agent]["observation"]["depth"]
                greedy = generator.random() >= explore
                actions[agent] = value[agent][depth].argmax() if greedy else env.action_space(agent).sample()
                took[agent].append((depth, actions[agent]))
            observations, rewards, *_ = env.step(actions)
            for agent, reward in rewards.items():
                total[agent] += reward
        for agent, cells in took.items():
            for cell in cells:
                value[agent][cell] += 0.1 * (total[agent] - value[agent][cell])
        return total

    env.reset(seed=0)
    for number, agent in enumerate(env.possible_agents):
        env.action_space(agent).seed(number)
    for _ in range(400):
        game(explore=0.4)
    assert all(reward == 1 for _ in range(3) for reward in game(explore=0).values())
    learned = [[int(row.argmax()) for row in value[agent]] for agent in env.possible_agents]
    assert learned == Planted.ROUTES


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="action_type='discrete', got 'weights'"):
        RoutingParallelEnv(toy_env(action_type="weights"))
    with pytest.raises(ValueError, match="instances_per_agent must be an integer of at least 1, got 0"):
        RoutingParallelEnv(toy_env(), 0)
    with pytest.raises(ValueError, match="replay=True needs collaboration='frequency'"):
        RoutingParallelEnv(toy_env(rho=0.1, autoreset_mode="disabled"))
    with pytest.raises(
        TypeError, match="unexpected keyword argument 'num_block' .did you mean 'num_blocks'.*; it takes .*num_blocks"
    ):
        pettingzoo.make("parallel", "routing_gym/SyntheticMTL-v0", num_block=3)
    for kind, instead in (("parallel", "instances_per_agent=n"), ("aec", "one instance .* num_agents=n")):
        with pytest.raises(TypeError, match=f"unexpected keyword argument 'num_envs': {instead}"):
            pettingzoo.make(kind, "routing_gym/SyntheticMTL-v0", num_envs=4)
    assert RoutingParallelEnv(toy_env(draw_tasks=(2, 0))).possible_agents == ["task_0", "task_2"]


def test_rendering():
    env = pettingzoo.make("parallel", "routing_gym/SyntheticMTL-v0", render_mode="ansi")
    env.reset(seed=0)
    env.step(dict.fromkeys(env.agents, 1))
    assert env.render() == "\n".join(f"task {number}: layer 1 -> 1" for number in range(4))
    env = pettingzoo.make("parallel", "routing_gym/SyntheticMTL-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().ndim == 3
    env.close()


def test_routing_gym_can_do_without_pettingzoo(monkeypatch):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    register_with_pettingzoo()
    gymnasium.make("routing_gym/SyntheticMTL-v0").reset()
    monkeypatch.delitem(sys.modules, "routing_gym.envs.pettingzoo", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'routing_gym\[pettingzoo\]'"):
        importlib.import_module("routing_gym.envs.pettingzoo")


RLLIB = """
config = config.training(train_batch_size_per_learner=60, minibatch_size=60, num_epochs=1)
import ray
ray.init(num_cpus=1, include_dashboard=False)
algorithm = config.build_algo()
assert -10 <= algorithm.train()["env_runners"]["episode_return_mean"] <= 10
algorithm.stop()
ray.shutdown()
"""


@pytest.mark.long
def test_rllib_trains_by_the_recipe_of_the_guide(tmp_path):
    """A round of PPO over the flattened observations."""
    pytest.importorskip("ray.rllib", reason="RLlib is not installed", exc_type=ImportError)
    guide = (Path(__file__).parents[2] / "docs/howto/other-libraries.md").read_text()
    (recipe,) = [code for code in re.findall(r"```py\n(.*?)```", guide, flags=re.S) if "rllib" in code]
    script = tmp_path / "recipe.py"
    script.write_text(recipe.replace("config.build_algo().train()", RLLIB))
    python_in_namespace(script)
