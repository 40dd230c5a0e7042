"""Wrappers that record on the device, and numpy for Gymnasium's own."""

import copy
import sys
import types

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics as NumpyStatistics
from gymnasium.wrappers.vector import RecordVideo
from toys import TREE, ExitTree, Gates, RunSkip, quick, toy_env

from routing_gym.agents import make_agent
from routing_gym.envs import RecordEpisodeStatistics, RecordRoutes, ToNumpy, core_of, evaluate, routing_map
from routing_gym.testing import legal_actions

MODES = [{}, {"autoreset_mode": "next_step"}, {"autoreset_mode": "disabled", "replay": True}]
IDS = ["same-step", "next-step", "disabled"]


def stepped(env, steps=30, seed=0):
    """Random legal actions; in mode "disabled" rows that have left are restarted every other step."""
    core, generator = core_of(env), torch.Generator().manual_seed(seed)
    env.reset(seed=seed)
    for number in range(steps):
        before = core.state
        action = legal_actions(core, generator)
        returned = env.step(action)
        yield before, action, returned
        left = ~core.state.active
        if number % 2 and bool(left.any()) and core.autoreset_mode is AutoresetMode.DISABLED:
            env.reset(options={"reset_mask": left})
        elif not core.state.waiting and core.autoreset_mode is AutoresetMode.DISABLED:
            env.reset()


@pytest.mark.parametrize("options", MODES, ids=IDS)
def test_statistics_equal_those_kept_by_hand(options):
    env = RecordEpisodeStatistics(toy_env(ExitTree(TREE), 6, k_cpt=1e-2, **options))
    returns, lengths, ends = [0.0] * 6, [0] * 6, 0
    for before, _, (_, reward, _, _, infos) in stepped(env):
        ended = before.active & infos.get("_loss", torch.zeros(6, dtype=torch.bool))
        assert ("episode" in infos) == ("loss" in infos)
        for row in range(6):
            if before.active[row]:
                returns[row] += float(reward[row])
                lengths[row] += 1
            if ended[row]:
                assert infos["_episode"][row]
                assert float(infos["episode"]["r"][row]) == pytest.approx(returns[row], rel=1e-5)
                assert int(infos["episode"]["l"][row]) == lengths[row]
                assert 0 < float(infos["episode"]["t"][row]) < 60
                returns[row], lengths[row], ends = 0.0, 0, ends + 1
            elif "episode" in infos:
                assert not infos["_episode"][row] and all(column[row] == 0 for column in infos["episode"].values())
    assert ends > 20


@pytest.mark.parametrize("options", MODES, ids=IDS)
@pytest.mark.parametrize("network", [ExitTree(TREE), Gates(3), RunSkip()], ids=["tree", "gates", "run-skip"])
def test_routes_of_finished_episodes_are_counted(network, options):
    env = RecordRoutes(toy_env(network, 6, **options), keep=True)
    counts, routes = torch.zeros_like(env.counts), []
    under_way = [[] for _ in range(6)]
    for before, action, (_, _, _, _, infos) in stepped(env):
        choosing, choices = network.choosing(before), action.view(6, -1)
        for row in before.active.nonzero().flatten().tolist():
            chosen = action[row].tolist()
            if network.num_tensors > 1:  # tensors that are not there have chosen nothing
                chosen = [choice if there else None for choice, there in zip(chosen, choosing[row], strict=True)]
            under_way[row].append((int(before.at[row]), chosen, choices[row][choosing[row]].tolist()))
            if "_loss" in infos and infos["_loss"][row]:
                task = int(before.task[row])
                for at, _, taken in under_way[row]:
                    for choice in taken:
                        counts[task, at, choice] += 1
                routes.append((task, [(at, chosen) for at, chosen, _ in under_way[row]]))
                under_way[row] = []
    assert len(routes) > 10 and env.routes == routes
    assert env.counts.dtype == torch.int64 and torch.equal(env.counts, counts)
    env.clear()
    assert not env.counts.any() and env.routes == []


def test_counted_routes_are_those_of_an_evaluation():
    env = RecordRoutes(gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=60, train=False))
    agent = make_agent("random-fixed", env)
    judged = evaluate(agent, env, split="train")
    observation, _ = env.reset()
    for _ in range(len(env.core.dataset) // 60 * 3):
        observation, *_ = env.step(agent.predict(observation, deterministic=True)[0])
    assert torch.equal(env.counts, judged.routes)
    assert np.array_equal(routing_map(env.counts), routing_map(judged.routes))


def test_weights_are_summed():
    env = RecordRoutes(toy_env(RunSkip(), 4, autoreset_mode="disabled", train=False, action_type="weights"))
    env.reset(options={"instances": [0, 1, 30, 31]})
    for _ in range(3):
        env.step(torch.tensor([[0.25, -0.5]] * 4))
    task = env.core.state.task
    expected = torch.zeros(3).index_add(0, task, torch.ones(4))
    torch.testing.assert_close(env.counts, expected.view(3, 1, 1) * torch.tensor([0.25, 0.5]).expand(3, 3, 2))


@pytest.mark.parametrize("options", MODES, ids=IDS)
def test_gymnasiums_numpy_wrapper_goes_on_top_and_agrees(options):
    env = NumpyStatistics(ToNumpy(RecordEpisodeStatistics(toy_env(ExitTree(TREE), 6, **options))), stats_key="numpy")
    observation, infos = env.reset(seed=0)
    env.action_space.seed(0)
    assert infos["action_mask"].dtype == np.int8 and env.observation_space.contains(observation)
    for _ in range(12):
        action = env.action_space.sample(mask=tuple(infos["action_mask"]))
        observation, reward, terminated, truncated, infos = env.step(action)
        assert all(isinstance(value, np.ndarray) for value in (reward, terminated, truncated, *observation.values()))
        assert env.observation_space.contains(observation)
        assert ("_numpy" in infos) == bool(terminated.any())
        if terminated.any():
            assert (infos["_episode"] == infos["_numpy"]).all()
            assert np.allclose(infos["episode"]["r"], infos["numpy"]["r"])
            assert (infos["episode"]["l"] == infos["numpy"]["l"]).all()
            if options:
                observation, infos = env.reset(options={"reset_mask": terminated})
            else:
                assert set(infos["final_obs"]["depth"][terminated]) == {4}
    assert env.episode_count > 10 and set(env.return_queue) <= {-1.0, 1.0}


@pytest.mark.filterwarnings("ignore:.*same-step")
@pytest.mark.parametrize("mode", ["same_step", "disabled"])
@pytest.mark.parametrize("first_only", [True, False])
def test_gymnasiums_videos_have_the_routing_map_of_every_row(mode, first_only, monkeypatch, tmp_path):
    clips = []

    class Clip:
        """MoviePy's, as far as it is asked for."""

        def __init__(self, frames, fps):
            clips.append(frames)

        def write_videofile(self, path, logger):
            assert path.endswith("rl-video-episode-0.mp4")

    for name in ("moviepy", "moviepy.video", "moviepy.video.io", "moviepy.video.io.ImageSequenceClip"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(ImageSequenceClip=Clip))
    core = toy_env(num_envs=4, render_mode="rgb_array", autoreset_mode=mode, train=False)
    options = {"record_first_only": first_only, "episode_trigger": lambda number: number == 0}
    env = RecordVideo(core, str(tmp_path / mode), **options)
    env.reset()
    for choice in (1, 1):  # on to column 1, then 3
        env.step(torch.full((4,), choice))
    env.close()
    (frames,), (height, width, _) = clips, core.render()[0].shape
    assert len(frames) == (3 if mode == "disabled" else 2)  # in the other mode the next episode has begun
    assert frames[0].shape == ((height, width, 3) if first_only else (2 * height, 2 * width, 3))
    assert not np.array_equal(frames[0], frames[1])
    if mode == "disabled":
        assert np.array_equal(frames[-1][-height:, -width:], core.render()[3])


def test_faces_and_agents_see_through_wrappers():
    env = ToNumpy(RecordRoutes(RecordEpisodeStatistics(gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=8))))
    agent = make_agent("wpl", env).learn(env, episodes=16)
    assert agent.env is env.unwrapped is core_of(env)
    copy.deepcopy(agent)  # nobody holds the graph of the last batch
    assert 0 <= evaluate(agent, env).accuracy <= 1


@pytest.mark.parametrize("env_id", ["routing_gym/SyntheticMTL-v0", "routing_gym/Cifar10ParallelPaths-v0"])
def test_the_mask_of_a_single_environment_goes_with_its_sample(env_id):
    env = gymnasium.make(env_id, **quick(env_id))
    _, info = env.reset(seed=0)
    for _ in range(2):
        _, _, terminated, _, info = env.step(env.action_space.sample(info["action_mask"]))
        if terminated:
            _, info = env.reset()
