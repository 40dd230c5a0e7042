"""The first network that instances leave at different depths, on every face."""

import gymnasium
import numpy as np
import pettingzoo
import pytest
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics as NumpyStatistics
from stable_baselines3.common.vec_env import VecMonitor
from toys import quick, toy_env

from routing_gym.agents import make_agent
from routing_gym.envs import RecordEpisodeStatistics, RecordRoutes, ToNumpy, evaluate, rollout, routing_map
from routing_gym.envs.sb3 import RoutingVecEnv
from routing_gym.testing import check_vector_env

HYBRID = "routing_gym/HybridEarlyExit-v0"
SMALL = quick(HYBRID)
PRICE = 1e-6
WHITE = (255, 255, 255)


def vector(num_envs, **options):
    return gymnasium.make_vec(HYBRID, num_envs=num_envs, **{**SMALL, "k_cpt": PRICE, **options})


def leaving_after(columns):
    """The choice of each row at every step, for rows that leave after so many of the three columns."""
    return [torch.tensor([int(column > number) for column in columns]) for number in (1, 2)]


@pytest.mark.parametrize("action_type", ["discrete", "weights"])
def test_a_replay_trains_as_whole_batches_do(action_type):
    """Routes that ended one after the other are one batch again, also in the statistics of batch norm."""
    networks = []
    for mode in ("disabled", "same_step"):
        core = vector(6, shift=0, flip=False, replay_batch=6, autoreset_mode=mode, action_type=action_type).unwrapped
        # Without momentum: parameters then move by exactly as much as their gradients say.
        core.trainer.optimizer = torch.optim.SGD(core.network.parameters(), lr=0.1)
        core.reset(options={"instances": [0, 70, 3, 100, 5, 120]})
        if mode == "disabled":
            for action in leaving_after([1, 3, 2, 2, 1, 3]):
                core.step(torch.nn.functional.one_hot(action, 2).float() if action_type == "weights" else action)
            core.train_blocks()
        else:
            first, second = leaving_after([1, 3, 2, 2, 1, 3])
            if action_type == "weights":
                first, second = (torch.nn.functional.one_hot(part, 2).float() for part in (first, second))
            core.step(first)
            assert core.trainer.instances == 0 and core.state.at.tolist() == [0, 1, 1, 1, 0, 1]
            # Rows 0 and 4 have begun anew; their second instances go on and are not replayed yet.
            onward = torch.tensor([0.0, 1.0]) if action_type == "weights" else torch.tensor(1)
            second[0], second[4] = onward, onward
            core.step(second)
            assert core.trainer.instances == core.config.replay_batch
        networks.append(core.network.state_dict())
    torch.testing.assert_close(*networks)


def test_an_agent_of_many_instances_leaves_with_the_last_of_them():
    env = pettingzoo.make("parallel", HYBRID, instances_per_agent=4, **SMALL, k_cpt=PRICE)
    observations, _ = env.reset(seed=0)
    earned = np.zeros(4)
    for choices, left in (([0, 1, 1, 0], [True, False, False, True]), ([1, 0, 1, 0], [True] * 4)):
        assert env.agents == ["task_0"]
        observations, rewards, terminations, _, infos = env.step({"task_0": np.array(choices)})
        earned += rewards["task_0"]
        assert (observations["task_0"]["observation"]["depth"] == 2).tolist() == left
        assert env.observation_space("task_0").contains(observations["task_0"])
    assert terminations == {"task_0": True} and env.agents == []
    assert rewards["task_0"][[0, 3]].tolist() == [0, 0]  # these had left before
    info, stem = infos["task_0"], env.unwrapped.core.network.stem_macs
    assert np.allclose(earned, -info["loss"] - PRICE * (info["macs"] - stem), rtol=1e-5)
    assert np.allclose(info["final_reward"], -info["loss"]) and len(set(info["macs"].tolist())) == 3


def test_the_dispatcher_of_one_task_picks_among_as_many_as_one_likes():
    env = pettingzoo.make("aec", HYBRID, num_agents=3, **SMALL)
    for length, picked in ((1, 2), (2, 0)):
        env.reset(seed=0)
        env.step(picked)
        for number in range(length):
            assert env.agent_selection == f"agent_{picked}"
            env.step(int(number + 1 < length))
        assert all(env.terminations.values()) and env.infos["dispatcher"]["correct"] in (0.0, 1.0)
        assert env.rewards["dispatcher"] == pytest.approx(env.unwrapped._sum)


def test_routes_in_words_and_pictures():
    ways = {1: "column 1 -> 0", 2: "column 1 -> 1, column 2 -> 0", 3: "column 1 -> 1, column 2 -> 1"}
    env = vector(3, render_mode="ansi", autoreset_mode="disabled")
    env.reset()
    for action in leaving_after([1, 2, 3]):
        env.step(action)
    assert env.render() == tuple(f"task 0: {ways[columns]}" for columns in (1, 2, 3))

    env = vector(2, render_mode="rgb_array", autoreset_mode="disabled")
    env.reset()
    env.step(torch.tensor([0, 0]))
    picture = env.render()[0]
    assert tuple(picture[14, 14]) != WHITE and tuple(picture[40, 14]) == WHITE  # nobody came to the second decision

    for kind, moves in (("parallel", [{"task_0": 1}, {"task_0": 0}]), ("aec", [0, 1, 0])):
        env = pettingzoo.make(kind, HYBRID, render_mode="ansi", **SMALL)
        env.reset(seed=0)
        for move in moves:
            env.step(move)
        assert env.render() == f"task 0: {ways[2]}"
    env = gymnasium.make(HYBRID, render_mode="ansi", **SMALL)
    env.reset(seed=0)
    assert env.step(0)[2] and env.render() == f"task 0: {ways[1]}"


def test_of_a_row_that_is_shared_out_pictures_count_what_comes_by():
    env = RecordRoutes(vector(4, render_mode="rgb_array", autoreset_mode="disabled", action_type="weights"))
    env.reset()
    for _ in range(2):
        env.step(torch.tensor([[0.25, 0.75]] * 4))
    expected = 4 * torch.tensor([[[0.25, 0.75], [0.75 * 0.25, 0.75 * 0.75]]])
    torch.testing.assert_close(env.counts, expected)
    assert np.array_equal(env.render()[0], routing_map(expected))
    torch.testing.assert_close(env.core.pictures.taken[:, :-1], expected)


@pytest.mark.parametrize("options", [{}, {"autoreset_mode": "disabled", "replay": True}], ids=["same-step", "disabled"])
def test_wrappers_agree_on_episodes_of_unequal_length(options):
    recorder = RecordRoutes(RecordEpisodeStatistics(vector(5, replay_batch=8, **options)), keep=True)
    env = NumpyStatistics(ToNumpy(recorder), stats_key="numpy")
    _, infos = env.reset(seed=0)
    env.action_space.seed(0)
    lengths = []
    for _ in range(12):
        _, _, terminated, _, infos = env.step(env.action_space.sample(mask=tuple(infos["action_mask"])))
        if terminated.any():
            assert np.allclose(infos["episode"]["r"], infos["numpy"]["r"], rtol=1e-5)
            assert (infos["episode"]["l"] == infos["numpy"]["l"]).all()
            lengths += infos["episode"]["l"][infos["_episode"]].tolist()
            if options:
                _, infos = env.reset(options={"reset_mask": terminated})
    assert set(lengths) == {1, 2} and recorder.core.trainer.instances == len(lengths) // 8 * 8
    assert sorted(len(route) for _, route in recorder.routes) == sorted(lengths)
    assert recorder.counts[0].sum(1).tolist() == [len(lengths), lengths.count(2)]


def test_stable_baselines3_is_told_what_every_episode_earned():
    face = VecMonitor(RoutingVecEnv(HYBRID, num_envs=4, k_cpt=PRICE, train=False, **SMALL))
    face.reset()
    choices, lengths = np.random.default_rng(0), set()
    for _ in range(8):
        _, _, dones, infos = face.step(choices.integers(2, size=4))
        for row in np.flatnonzero(dones):
            paid = PRICE * (infos[row]["macs"] - face.venv.core.network.stem_macs)
            assert infos[row]["episode"]["r"] == pytest.approx(-infos[row]["loss"] - paid, rel=1e-4)
            assert infos[row]["terminal_observation"]["depth"] == 2
            lengths.add(infos[row]["episode"]["l"])
    assert lengths == {1, 2}


def test_a_dispatcher_is_asked_when_an_instance_begins_and_at_no_other_time():
    """Rows begin at different steps; who routes an instance stays the same to its end."""
    env = vector(8, train=False)
    agent = make_agent("reinforce", env, arrangement="dispatched", num_agents=5, representation="mlp")
    observation, _ = env.reset(seed=0)
    state, starts, seen, other = None, np.ones(8, dtype=bool), None, 0
    for _ in range(10):
        action, state = agent.predict(observation, state, torch.as_tensor(starts))
        if seen is not None:
            assert torch.equal(state[~starts], seen[~starts])
            other += int((state[starts] != seen[starts]).sum())
        seen = state.clone()
        observation, _, terminated, _, _ = env.step(action)
        starts = terminated.numpy()
    assert other > 3


def test_evaluation_counts_only_those_that_came_to_a_decision():
    env = vector(7)
    agent = make_agent("random", env, seed=1)
    judged = evaluate(agent, env, batch_size=11)
    (counts,) = judged.routes.tolist()
    first, second = map(sum, counts)
    assert first == len(env.unwrapped.datasets["test"]) and second == counts[0][1] and judged.paths == 3
    network = env.unwrapped.network
    spent = network.stem_macs * first + sum(
        count * cost
        for decision, row in zip(network.decisions, counts, strict=True)
        for count, cost in zip(row, decision.macs, strict=True)
    )
    assert judged.macs == pytest.approx(spent / first)
    core = env.unwrapped
    batch = rollout(agent, core)
    assert torch.equal(batch.steps[1].active, batch.steps[0].action.view(-1) == 1)


def test_the_checker_knows_that_choices_are_counted_across_resets():
    check_vector_env(toy_env(rho=0.3, collaboration="frequency"))
