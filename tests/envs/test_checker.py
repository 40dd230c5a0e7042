"""Every environment there is passes every checker, and broken ones do not."""

import copy
from functools import partial

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from toys import TREE, ExitTree, Gates, RunSkip, quick, toy_data, toy_env

import routing_gym
from routing_gym.envs import RoutingVectorEnv
from routing_gym.networks import RoutedMLP
from routing_gym.registration import ENV_IDS
from routing_gym.testing import check_vector_env


@pytest.mark.long
@pytest.mark.parametrize("env_id", routing_gym.env_ids())
def test_every_id_passes_every_checker(env_id, monkeypatch):
    monkeypatch.setattr("routing_gym.testing.MIN_STEPS", 16)  # two episodes of the deepest, of most several
    small = quick(env_id)
    env = gymnasium.make_vec(env_id, num_envs=5, autoreset_mode="same_step", **small)
    check_vector_env(env)
    single = gymnasium.make(env_id, **small).unwrapped
    check_env(single)
    check_env_sb3(single)


@pytest.mark.long
@pytest.mark.parametrize("env_id", {options["network"]: env_id for env_id, options in ENV_IDS.items()}.values())
def test_the_network_of_every_id_passes_with_weights(env_id):
    options = {"autoreset_mode": "disabled", "action_type": "weights"}
    network = gymnasium.make_vec(env_id, num_envs=5, **quick(env_id), **options).unwrapped.network
    data = {option: value for option, value in quick(env_id).items() if option in ("num_tasks", "alphabets", "size")}
    # Around the same network: what is built by name is checked above.
    make = partial(gymnasium.make_vec, env_id, num_envs=5, network=network, **data, **options)
    check_vector_env(make(), lambda: make().unwrapped)


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("action_type", ["discrete", "weights"])
@pytest.mark.parametrize("mode", ["same_step", "disabled"])
def test_every_mode_and_action_type_passes_the_checker(mode, action_type, replay):
    options = {"autoreset_mode": mode, "action_type": action_type, "replay": replay}
    check_vector_env(gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=5, **options))


@pytest.mark.parametrize("action_type", ["discrete", "weights"])
@pytest.mark.parametrize("network", [ExitTree(TREE), RunSkip(), Gates(3)], ids=["tree", "run-skip", "gates"])
def test_every_family_passes_the_checker(network, action_type):
    check_vector_env(toy_env(copy.deepcopy(network), action_type=action_type))


class NumpyRewards(RoutingVectorEnv):
    def step(self, actions):
        observation, reward, *rest = super().step(actions)
        return observation, reward.numpy(), *rest


class WrongMode(RoutingVectorEnv):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.metadata = {**self.metadata, "autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}


class ForgetsSeed(RoutingVectorEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(options=options)


class LeaksGradient(RoutingVectorEnv):
    def observe(self):
        observation = super().observe()
        if self.keeps_graph:
            observation["activation"] = self.network.observe(self.state)
        return observation


class RowsMix(RoutingVectorEnv):
    def observe(self):
        observation = super().observe()
        return {**observation, "activation": observation["activation"] - observation["activation"].mean(0)}


class NoFinalObs(RoutingVectorEnv):
    def step(self, actions):
        *rest, infos = super().step(actions)
        infos.pop("final_obs", None)
        return *rest, infos


class TakesAnything(RoutingVectorEnv):
    def step(self, actions):
        wrong = actions.dtype != torch.int64 or actions.shape != (self.num_envs,)
        return super().step(torch.zeros(self.num_envs, dtype=torch.int64) if wrong else actions)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (NumpyRewards, "reward must be a torch tensor"),
        (WrongMode, "NEXT_STEP"),
        (ForgetsSeed, "same seed"),
        (LeaksGradient, "carry gradients although"),
        (RowsMix, "differs from the same instance alone"),
        (NoFinalObs, "final_obs"),
        (TakesAnything, "must be refused"),
    ],
)
def test_the_checker_catches_broken_environments(broken, complaint):
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=complaint):
        check_vector_env(broken(RoutedMLP((1, 2, 3), 3, 3, width=4), toy_data(), 4))
