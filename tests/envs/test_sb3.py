"""The face for Stable-Baselines3: row by row what the core gives, in numpy."""

import numpy as np
import pytest
import torch
from damage import same
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor
from toys import Gates, planted_env, toy_env

import routing_gym
from routing_gym.agents import make_agent
from routing_gym.envs import core_of
from routing_gym.envs.sb3 import RoutingVecEnv

SYNTHETIC = "routing_gym/SyntheticMTL-v0"


@pytest.mark.parametrize("options", [{"train": False}, {"replay_batch": 4}])
@pytest.mark.parametrize("network", [None, Gates()], ids=["tree", "gates"])
def test_every_row_is_the_cores(network, options):
    network = None if network is None else Gates()
    core = toy_env(network, 5, seed=3, **options)
    torch.manual_seed(7)
    other = toy_env(None if network is None else Gates(), 5, seed=3, **options)
    other.network.load_state_dict(core.network.state_dict())
    face = RoutingVecEnv(other)
    face.seed(11)
    expected, info = core.reset(seed=11)
    got = face.reset()
    shape = (5,) if network is None else (5, 2)
    choices = np.random.default_rng(0)
    left = 0
    for _ in range(12):
        for key, value in expected.items():
            assert type(got[key]) is np.ndarray and np.array_equal(got[key], value.numpy())
        assert np.array_equal(face.action_masks(), info["action_mask"].reshape(5, -1).numpy())
        assert np.array_equal(np.stack(face.env_method("action_masks", indices=[3, 1])), face.action_masks()[[3, 1]])
        action = choices.integers(core.network.num_choices, size=shape)
        expected, reward, terminated, _, info = core.step(torch.as_tensor(action))
        got, rewards, dones, infos = face.step(action)
        assert rewards.dtype == np.float32 and np.array_equal(rewards, reward.numpy())
        assert dones.dtype == bool and np.array_equal(dones, terminated.numpy())
        for row in range(5):
            assert infos[row]["illegal_action"] == int(info["illegal_action"][row])
            assert ("terminal_observation" in infos[row]) == bool(terminated[row])
            if terminated[row]:
                left += 1
                for key, value in infos[row]["terminal_observation"].items():
                    assert np.array_equal(value, info["final_obs"][key][row].numpy())
                for key, value in info["final_info"].items():
                    assert infos[row][key] == value[row].item()
                assert infos[row]["TimeLimit.truncated"] is False
    assert left > 10 and core.trainer.instances == other.trainer.instances > 0 or not core.config.train
    assert same([*core.network.parameters()], [*other.network.parameters()])


def test_attributes_seeds_and_options():
    face = RoutingVecEnv(SYNTHETIC, num_envs=4, width=8, render_mode="ansi")
    assert face.num_envs == 4 and face.core.network.banks[0].weight.shape[-1] == 8 and core_of(face) is face.core
    assert core_of(VecMonitor(face)) is face.core and face.spec.id == SYNTHETIC
    assert face.get_attr("network", [0, 2]) == [face.core.network] * 2 and face.get_attr("render_mode", 1) == ["ansi"]
    assert (
        face.has_attr("action_masks")
        and not face.has_attr("nothing")
        and face.env_is_wrapped(VecMonitor) == [False] * 4
    )
    face.set_attr("illegal", "raise")
    assert face.core.illegal == "raise"
    with pytest.raises(ValueError, match="rows have no attributes of their own: set 'illegal' for all"):
        face.set_attr("illegal", "first_legal", indices=[1])
    with pytest.raises(AttributeError, match="rows have the methods 'action_masks' and 'render', got 'step'"):
        face.env_method("step")
    face.seed(5)
    first = face.reset()
    assert not np.array_equal(face.reset()["activation"], first["activation"])  # a seed is for one reset
    face.seed(5)
    assert np.array_equal(face.reset()["activation"], first["activation"])
    face.set_options({"instances": [3, 2, 1, 0]})
    face.reset()
    assert face.core.state.instance.tolist() == [3, 2, 1, 0]
    with pytest.raises(ValueError, match="one dictionary for all rows, got list"):
        face.set_options([{}] * 4)
    face.step(np.array([1, 2, 0, 1]))
    lines = face.env_method("render")
    assert face.render() is None and len(lines) == 4 and lines[1].endswith("layer 1 -> 2")
    assert face.env_method("render", indices=1) == lines[1:2]
    face.close()

    face = RoutingVecEnv(SYNTHETIC, num_envs=2, render_mode="rgb_array")
    face.reset()
    assert face.render().shape == face.core.render()[0].shape and len(face.env_method("render")) == 2
    assert RoutingVecEnv(SYNTHETIC).num_envs == 1


def test_what_is_no_environment_for_it_is_refused():
    with pytest.raises(ValueError, match="made with autoreset_mode='same_step', got 'disabled'"):
        RoutingVecEnv(SYNTHETIC, autoreset_mode="disabled")
    with pytest.raises(ValueError, match="RoutingVecEnv is for action_type='discrete', got 'weights'"):
        RoutingVecEnv("routing_gym/SyntheticMTL-v0", num_envs=2, action_type="weights")
    with pytest.raises(ValueError, match="num_envs and options are for ids"):
        RoutingVecEnv(toy_env(), num_envs=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'widht'"):
        RoutingVecEnv(SYNTHETIC, widht=3)


def test_episode_statistics():
    face = VecMonitor(RoutingVecEnv(toy_env(None, 6, k_cpt=1e-4, train=False)), info_keywords=("correct",))
    face.reset()
    earned, length = np.zeros(6), np.zeros(6)
    for step in range(9):
        _, rewards, dones, infos = face.step(np.array([0, 1, 1, 2, 2, 2]) * (step % 3 > 0))
        earned, length = earned + rewards, length + 1
        for row in np.flatnonzero(dones):
            episode = infos[row]["episode"]
            assert episode["r"] == pytest.approx(earned[row]) and episode["l"] == length[row]
            assert episode["correct"] == infos[row]["correct"]
            earned[row] = length[row] = 0
    assert face.episode_count > 6


def test_our_agents_are_judged_by_evaluate_policy():
    """The mean reward Stable-Baselines3 finds over the whole split is the accuracy `evaluate` finds."""
    env = planted_env(9)
    env = env.sibling(9, autoreset_mode="same_step")
    agent = make_agent("wpl", env)
    face = VecMonitor(RoutingVecEnv(env.sibling(9, split="test", train=False)))
    reward, _ = evaluate_policy(agent, face, n_eval_episodes=9, deterministic=True)
    assert (reward + 1) / 2 == pytest.approx(routing_gym.evaluate(agent, env).accuracy)

    class Counter(type(agent)):
        """Carries how many decisions an instance has made."""

        def act(self, observation, context):
            carry = torch.zeros_like(observation["depth"]) if context.carry is None else context.carry
            assert torch.equal(carry, observation["depth"])
            context.carry = carry + 1
            return torch.as_tensor(env.network.ROUTES)[observation["task"], observation["depth"]]

    reward, spread = evaluate_policy(Counter(env), face, n_eval_episodes=27)
    assert reward == 1 and spread == 0


@pytest.mark.long
@pytest.mark.filterwarnings("error")  # of theirs, about environments that are no good for judging
@pytest.mark.parametrize("options", [{}, {"rho": 0.3, "collaboration": "frequency", "seed": 3}], ids=["plain", "rho"])
def test_a_model_is_judged_on_the_network_it_was_trained_with(options):
    """The usual way: EvalCallback while learning, `evaluate_policy` afterwards, both without training the blocks."""
    core = planted_env(12).sibling(12, autoreset_mode="same_step", **options)
    envs = VecMonitor(RoutingVecEnv(core))
    agent = make_agent("sb3:PPO", core)
    judged, whole = envs.eval_env(split="train"), len(core.dataset)
    model = PPO("MultiInputPolicy", envs, 0.1, 6, batch_size=72, seed=0, policy_kwargs=agent.model.policy_kwargs)
    callback = EvalCallback(judged, n_eval_episodes=whole, eval_freq=60, verbose=0, warn=True)
    model.learn(12 * 240, callback=callback)
    agent.model, agent.actor = model, model.policy
    blocks = {name: value.clone() for name, value in core.network.state_dict().items()}
    found = routing_gym.evaluate(agent, core, split="train").accuracy
    for _ in range(2):  # each begins the split anew
        reward, _ = evaluate_policy(model, judged, n_eval_episodes=whole)
        assert reward == pytest.approx(2 * found - 1)
    assert (
        found > 0.9
        and callback.last_mean_reward > 0.8
        and core.trainer.instances > 0
        and judged.core.trainer.instances == 0
    )
    for name, value in core.network.state_dict().items():
        assert torch.equal(value, blocks[name]), name
    reward, _ = evaluate_policy(model, envs.eval_env(num_envs=5), n_eval_episodes=10)
    assert -1 <= reward <= 1
    with pytest.raises(ValueError, match=r"split must be one of \['test', 'train'\], got 'valid'"):
        envs.eval_env(split="valid")


def test_every_instance_is_judged_once_also_where_tasks_were_drawn_equally_often():
    env = planted_env(12).sibling(12, autoreset_mode="same_step", balance_tasks=True)
    judged = RoutingVecEnv(env).eval_env("test", num_envs=3)
    judged.reset()
    drawn = judged.core.stream.draw(len(judged.core.dataset) - 3).tolist() + judged.core.state.instance.tolist()
    assert sorted(drawn) == list(range(len(judged.core.dataset)))
