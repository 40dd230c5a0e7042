"""The game of two moves: a dispatcher picks who routes."""

import numpy as np
import pettingzoo
import pytest
from gymnasium.error import ResetNeeded
from pettingzoo.test import api_test, seed_test
from toys import TREE, ExitTree, Gates, Planted, planted_env, quick, toy_env

import routing_gym
from routing_gym.envs import core_of
from routing_gym.envs.pettingzoo import RoutingAECEnv

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.long
@pytest.mark.parametrize("env_id", routing_gym.env_ids())
def test_every_id_passes_every_test(env_id):
    def make(**options):
        return pettingzoo.make("aec", env_id, **quick(env_id), **options)

    api_test(make(), num_cycles=10)
    api_test(make(num_agents=2), num_cycles=10)
    seed_test(make)


@pytest.mark.parametrize("network", [ExitTree(TREE), Gates(3)])
def test_every_family_passes(network):
    api_test(RoutingAECEnv(toy_env(network)), num_cycles=10)


def test_the_dispatcher_moves_first_and_earns_what_the_agent_it_picked_earns():
    env = RoutingAECEnv(toy_env(ExitTree([[1], [2], []]), k_cpt=1e-3), num_agents=2)
    assert env.possible_agents == ["dispatcher", "agent_0", "agent_1"] and core_of(env) is env.core
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    assert env.agent_selection == "dispatcher" and env.action_space("dispatcher").n == 2
    assert env.last()[0]["action_mask"].tolist() == [1, 1]
    instance = env.core.state.instance.clone()
    for wrong in (2, -1, 0.5, None):
        with pytest.raises(ValueError, match=r"an integer in \[0, 2\)"):
            env.step(wrong)
    env.step(1)
    for depth in range(2):
        assert env.agent_selection == "agent_1"
        observation, _, terminated, _, _ = env.last()
        assert observation["observation"]["depth"] == depth and not terminated
        assert env.rewards["dispatcher"] == 0 and env.core.state.instance == instance
        env.step(1 if depth == 0 else 0)
    final = float(env.core.batch.final_reward)
    total = final - 1e-3 * float(env.core.state.macs - env.core.network.stem_macs)
    assert all(env.terminations.values()) and set(env.agents) == set(env.possible_agents)
    assert env._cumulative_rewards["dispatcher"] == pytest.approx(total, rel=1e-5)
    assert env.rewards["agent_0"] == 0 and final < env.rewards["agent_1"] + 1
    assert env.infos["dispatcher"]["correct"] == (final + 1) / 2
    earned = {}
    for agent in env.agent_iter():
        _, earned[agent], terminated, _, _ = env.last()
        assert terminated
        env.step(None)
    assert earned["dispatcher"] == pytest.approx(total, rel=1e-5) and earned["agent_0"] == 0
    assert not env.agents


def test_a_dispatcher_from_outside_learns_whom_to_pick():
    """Agent k walks task k's planted route; one in three picks is right."""
    env, generator = RoutingAECEnv(planted_env()), np.random.default_rng(0)
    value = np.zeros((3, 3))

    def game(explore):
        env.reset()
        task, picked = int(env.last()[0]["observation"]["task"]), 0
        for agent in env.agent_iter():
            observation, reward, terminated, _, _ = env.last()
            if agent == "dispatcher" and terminated:
                value[task, picked] += 0.2 * (reward - value[task, picked])
                right = reward == 1
            elif agent == "dispatcher":
                picked = value[task].argmax() if generator.random() >= explore else generator.integers(3)
            depth = int(observation["observation"]["depth"])
            choice = picked if agent == "dispatcher" else None if terminated else Planted.ROUTES[picked][depth]
            env.step(None if terminated else choice)
        return right

    env.reset(seed=0)
    for _ in range(150):
        game(explore=0.5)
    assert all(game(explore=0) for _ in range(9)) and value.argmax(1).tolist() == [0, 1, 2]


def test_rendering_and_refusals():
    env = pettingzoo.make("aec", "routing_gym/SyntheticMTL-v0", render_mode="ansi")
    env.reset(seed=0)
    env.step(0)
    env.step(1)
    assert env.render().endswith(": layer 1 -> 1")
    env.close()
    with pytest.raises(ValueError, match="num_agents must be an integer of at least 1, got 0"):
        RoutingAECEnv(toy_env(), num_agents=0)
