"""Agents of Stable-Baselines3: they learn, jointly with the blocks, and are agents like the others."""

import json
import sys

import gymnasium
import numpy as np
import pytest
import torch
from damage import same
from toys import TREE, ExitTree, Gates, Planted, planted_env, toy_env

import routing_gym
from routing_gym.agents import Agent, make_agent, needs
from routing_gym.agents.parts.stable_baselines import seeded
from routing_gym.envs import Context, Known, TrainingDivergedError, rollout
from routing_gym.envs.sb3 import RoutingVecEnv
from routing_gym.experiments.cli import main

NAMES = ["sb3:PPO", "sb3:A2C", "sb3:DQN", "sb3:MaskablePPO"]
SMALL = {"representation": "mlp", "net_arch": [16]}


def small_env(num_envs=16, **options):
    defaults = {"num_tasks": 3, "num_classes": 3, "image_size": 3, "images_per_class": 30, "width": 8, "noise": 10.0}
    return gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=num_envs, **{**defaults, **options})


def replayed(env, **options):
    """A toy environment as these agents need it."""
    return env.sibling(env.num_envs, autoreset_mode="same_step", **options)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"learning_rate": 0.02}) for name in NAMES if name != "sb3:DQN"),
        *((name, {"representation": "mlp"}) for name in NAMES if name != "sb3:DQN"),
        # Of an early choice a table of one-step values learns nothing, so there is no other way for DQN.
        ("sb3:DQN", {"representation": "mlp", "learning_rate": 0.003, "batch_size": 256, "learning_starts": 200,
                     "exploration_initial_eps": 1.0, "exploration_episodes": 3000}),
    ],
)  # fmt: skip
def test_they_find_planted_routes(name, options):
    env = replayed(planted_env(32))
    agent = make_agent(name, env, **options).learn(env, 2500 if name == "sb3:DQN" else 2000)
    result = routing_gym.evaluate(agent, env)
    assert result.accuracy == 1 and result.routes.argmax(-1).tolist() == Planted.ROUTES


@pytest.mark.parametrize("name", NAMES)
def test_learning_counts_reports_and_trains_the_blocks(name):
    env = small_env(replay_batch=16)
    agent, core, seen = make_agent(name, env, **SMALL), env.unwrapped, []
    before = [value.clone() for value in (*core.network.parameters(), *agent.parameters())]
    outside = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    assert agent.learn(env, 310, seen.append) is agent
    assert torch.equal(torch.random.get_rng_state(), outside[0]) and np.array_equal(
        np.random.get_state()[1], outside[1]
    )
    assert agent.episodes == 320 and len(seen) == 20 and agent.model.num_timesteps == 960
    assert core.trainer.instances == 320
    for metrics in seen:
        assert set(metrics) == {"loss", "accuracy", "reward", "macs"} and all(v.ndim == 0 for v in metrics.values())
        assert float(metrics["reward"]) == pytest.approx(2 * float(metrics["accuracy"]) - 1, abs=1e-6)
        assert float(metrics["macs"]) == 9 * 8 + 8 * 8 + 8 * 3
    after = [*core.network.parameters(), *agent.parameters()]
    if name == "sb3:DQN":  # has not begun
        assert torch.equal(before[-1], after[-1])
        make_agent(name, env, learning_starts=0).learn(env, 16)
    assert not any(torch.equal(old, new) for old, new in zip(before[:6], after[:6], strict=True))


def test_learning_works_on_the_faces():
    for env in (gymnasium.make("routing_gym/DigitsMTL-v0", width=4), RoutingVecEnv(small_env())):
        seen = []
        agent = make_agent("sb3:A2C", env).learn(env, 4, seen.append)
        assert len(seen) == (4 if agent.env.num_envs == 1 else 1) and agent.episodes == len(seen) * agent.env.num_envs


def test_instances_that_leave_early_count_when_they_leave():
    env = toy_env(ExitTree(TREE), 8, replay_batch=8)
    agent, seen = make_agent("sb3:PPO", env, n_steps=2, **SMALL), []
    agent.learn(env, 40, seen.append)
    assert agent.episodes >= 40 and len(seen) == agent.episodes // 8
    assert agent.model.num_timesteps % 16 == 0 and agent.model.num_timesteps < 3 * agent.episodes


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_save_load_and_go_on(name, tmp_path):
    def curve(agent, env):
        losses = []
        agent.learn(env, 5 * 16, lambda metrics: losses.append(metrics["loss"].item()))
        return losses

    env = small_env(replay_batch=16, shift=1)
    agent = make_agent(name, env, seed=4, **SMALL, **({"learning_starts": 0} if name == "sb3:DQN" else {}))
    first = curve(agent, env)
    agent.save(tmp_path / "agent.pt")
    other = small_env(replay_batch=16, shift=1, seed=9)
    loaded = Agent.load(tmp_path / "agent.pt", other)
    ours, theirs = routing_gym.evaluate(agent, env), routing_gym.evaluate(loaded, other)
    assert ours.accuracy == theirs.accuracy and torch.equal(ours.routes, theirs.routes) and ours.macs == theirs.macs
    assert loaded.episodes == 80 and loaded.model.num_timesteps == 240 == agent.model.num_timesteps
    assert curve(loaded, other) == curve(agent, env)
    assert same([*agent.parameters()], [*loaded.parameters()])

    env = small_env(replay_batch=16, shift=1)
    again = make_agent(name, env, seed=4, **SMALL, **({"learning_starts": 0} if name == "sb3:DQN" else {}))
    assert curve(again, env) == first
    with pytest.raises(ValueError, match="does not fit this environment"):
        Agent.load(tmp_path / "agent.pt", small_env(width=4))


@pytest.mark.parametrize("name", NAMES)
def test_going_on_is_exact_too_where_finished_routes_wait_to_be_trained_on(name, tmp_path):
    def losses(agent):
        seen = []
        agent.learn(agent.env, 40, lambda metrics: seen.append(metrics["loss"].item()))
        return seen

    options = {**SMALL, "representation": "mlp"}
    if name == "sb3:DQN":
        options |= {"learning_starts": 0, "buffer_size": 60}  # its memory has come round
    envs = [toy_env(ExitTree(TREE), 8, replay_batch=24) for _ in range(2)]
    agent = make_agent(name, envs[0], seed=4, **options)
    losses(agent)
    agent.save(tmp_path / "agent.pt")
    assert losses(Agent.load(tmp_path / "agent.pt", envs[1])) == losses(agent)


def test_a_memory_too_large_for_a_checkpoint_is_said_to_be_lost(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr("routing_gym.agents.sb3.SAVED_MEMORY", 10_000)
    env = toy_env(ExitTree(TREE), 8)
    agent = make_agent("sb3:DQN", env, **SMALL)
    agent.save(tmp_path / "agent.pt")
    Agent.load(tmp_path / "agent.pt", env)
    assert not recwarn.list  # there was nothing to remember
    agent.learn(env, 8).save(tmp_path / "agent.pt")
    assert (tmp_path / "agent.pt").stat().st_size < 50_000
    with pytest.warns(UserWarning, match="memory of agent 'sb3:DQN' takes more than .* begins empty, so that learning"):
        assert Agent.load(tmp_path / "agent.pt", env).model.replay_buffer.size() == 0


@pytest.mark.parametrize("name", NAMES)
def test_choices_are_legal_and_those_of_the_models_own_predict(name):
    env = toy_env(ExitTree(TREE), 12)
    agent = make_agent(name, env, **SMALL)
    core = env
    for _ in range(4):  # mode "disabled" refuses what is not legal
        assert not rollout(agent, core).steps[0].action.is_floating_point()
    face = RoutingVecEnv(env)
    observation = face.reset()
    for _ in range(6):
        masks = {"action_masks": face.action_masks()} if name == "sb3:MaskablePPO" else {}
        theirs, _ = agent.model.predict(observation, deterministic=True, **masks)
        ours, _ = agent.predict(observation, deterministic=True)
        legal = face.action_masks()[np.arange(12), theirs]
        assert legal.all() or name != "sb3:MaskablePPO"
        assert np.array_equal(ours, np.where(legal, theirs, 0))  # in this tree the first choice is always legal
        observation, _, _, infos = face.step(theirs)
        assert [row["illegal_action"] for row in infos] == (~legal).tolist()


def test_maskable_ppo_makes_no_illegal_choice_while_it_learns():
    def illegal(name):
        env, seen = toy_env(ExitTree(TREE), 8), []
        agent = make_agent(name, env, **SMALL)
        step = env.step

        def watched(actions):
            result = step(actions)
            seen.append(int(result[-1]["illegal_action"].sum()))
            return result

        env.step = watched
        agent.learn(env, 200)
        return sum(seen)

    assert illegal("sb3:MaskablePPO") == 0 < illegal("sb3:PPO")


def test_sampling_follows_the_policy():
    env = small_env(3000)
    for name in NAMES:
        agent = make_agent(name, env, **SMALL)
        observation, info = env.reset(seed=0)
        observation = {key: value[:1].expand(3000, *value.shape[1:]) for key, value in observation.items()}
        mask = info["action_mask"].bool()
        mask = mask.unsqueeze(1) if agent.max_tensors is None else mask
        context = Context(Known(torch.ones(3000, dtype=torch.bool), mask))
        with torch.no_grad():
            chances = agent.probabilities(observation, context)[0].view(3)
        assert float(chances.sum()) == pytest.approx(1)
        drawn = agent.act(observation, context)
        share = torch.bincount(drawn.view(3000), minlength=3) / 3000
        assert torch.allclose(share, chances, atol=0.05)


def test_the_policys_own_cost_is_counted():
    env = small_env()
    inputs = env.unwrapped.network.observation_size + 3 + 4  # activation, task, depth
    for name in NAMES:
        agent = make_agent(name, env, representation="mlp", net_arch=[5, 7])
        assert agent.macs(0) == inputs * 5 + 5 * 7 + 7 * 3
        assert routing_gym.evaluate(agent, env).router_macs == 3 * agent.macs(0)
        assert make_agent(name, env).macs(0) == 0  # a table


def test_a_table_has_an_entry_for_each_task_and_decision():
    env = small_env()
    agent = make_agent("sb3:PPO", env)
    with torch.no_grad():
        agent.actor.action_net.weight.copy_(torch.randn(3, 3 * 4))
    for task in range(3):
        for depth in range(4):
            activation = torch.randn(1, env.unwrapped.network.observation_size)
            seen = {"activation": activation, "task": torch.tensor([task]), "depth": torch.tensor([depth])}
            context = Context(Known(torch.ones(1, dtype=torch.bool), torch.ones(1, 1, 3, dtype=torch.bool)))
            expected = agent.actor.action_net.weight[:, 4 * task + depth].softmax(0)
            torch.testing.assert_close(agent.probabilities(seen, context)[0, 0], expected)


def test_several_tensors_choose():
    env = toy_env(Gates(), 8)
    for name in ("sb3:PPO", "sb3:A2C", "sb3:MaskablePPO"):
        agent = make_agent(name, env, **SMALL).learn(env, 16)
        assert 0 <= routing_gym.evaluate(agent, env).accuracy <= 1
    with pytest.raises(ValueError, match="'sb3:DQN' chooses for 1 tensor per decision, this network has up to 2"):
        make_agent("sb3:DQN", env)


def test_what_they_cannot_do_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="'sb3:PPO' needs an environment made with autoreset_mode='same_step', got 'd"):
        make_agent("sb3:PPO", small_env(autoreset_mode="disabled"))
    with pytest.raises(ValueError, match="agent 'sb3:PPO' acts by discrete"):
        make_agent("sb3:PPO", small_env(action_type="weights"))
    env = small_env()
    with pytest.raises(ValueError, match="agent 'sb3:A2C' has no option 'clip_range'; it takes ent_coef"):
        make_agent("sb3:A2C", env, clip_range=0.1)
    with pytest.raises(ValueError, match=r"PPO: net_arch must be a list of positive integers, got \[3, 0\]"):
        make_agent("sb3:PPO", env, net_arch=[3, 0])
    with pytest.raises(ValueError, match="agent 'sb3:PPO'.*`batch_size` must be greater than 1"):
        make_agent("sb3:PPO", small_env(1), n_steps=1)
    with pytest.raises(ValueError, match="made for another environment"):
        make_agent("sb3:PPO", env, **SMALL).learn(small_env(), 10)
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ValueError, match=r"'sb3:MaskablePPO' needs sb3-contrib.*pip install 'routing-gym\[sb3-contrib"):
        make_agent("sb3:MaskablePPO", env)


def test_what_diverges_says_who_and_where(monkeypatch):
    env = small_env(replay_batch=16)
    agent = make_agent("sb3:PPO", env, **SMALL).learn(env, 32)
    with torch.no_grad():
        env.unwrapped.network.banks[1].bias[:, 0] = float("inf")
    with pytest.raises(TrainingDivergedError, match=r"agent 'sb3:PPO', batch \d+: "):
        agent.learn(env, 64)
    env = small_env()
    agent = make_agent("sb3:PPO", env, **SMALL)
    with torch.no_grad():
        agent.actor.action_net.bias[0] = float("nan")
    for validates in (True, False):  # other libraries switch PyTorch's own check off, for the whole process
        monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", validates)
        with pytest.raises(TrainingDivergedError, match="agent 'sb3:PPO', batch 1: "):
            agent.learn(env, 64)


def test_seeding_is_temporary():
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1)
    np.random.seed(1)
    with seeded(5):
        inside = torch.rand(3)
    with seeded(5):
        assert torch.equal(torch.rand(3), inside)
    assert torch.equal(torch.rand(3), expected[0]) and np.array_equal(np.random.rand(3), expected[1])


@pytest.mark.long
@pytest.mark.usefixtures("no_pictures")
def test_compare_takes_them_beside_ours(tmp_path, capsys):
    arguments = ["compare", "--env", "routing_gym/SyntheticMTL-v0", "--epochs", "2", "--batch-size", "64"]
    arguments += ["--agents", "sb3:PPO", "wpl", "--seeds", "1", "--out", str(tmp_path)]
    assert main([*arguments, "--agent-options", "sb3:PPO.n_epochs=2"]) == 0
    ours, wpl = json.loads((tmp_path / "results.json").read_text())
    assert ours["agent"] == "sb3:PPO" and (tmp_path / "sb3-PPO" / "seed-0" / "checkpoint.pt").exists()
    assert ours["env_config"]["replay_batch"] == 64 == wpl["batch_size"] and ours["config"]["n_epochs"] == 2
    assert ours["router_macs"] == 0 == wpl["router_macs"]
    checkpoint = tmp_path / "sb3-PPO" / "seed-0" / "checkpoint.pt"
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["env"]["blocks"]["instances"] == saved["episodes"]
    capsys.readouterr()
    assert main(["evaluate", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == ours["test_accuracy"]
    # Half the run, then the other half, is the whole run.
    halves = [argument if argument != str(tmp_path) else str(tmp_path / "halves") for argument in arguments]
    halves[halves.index("wpl") : halves.index("wpl") + 1] = []
    first = [*halves, "--agent-options", "sb3:PPO.n_epochs=2"]
    first[first.index("--epochs") + 1] = "1"
    assert main(first) == 0
    (tmp_path / "halves" / "sb3-PPO" / "seed-0" / "results.json").unlink()
    assert main([*halves, "--agent-options", "sb3:PPO.n_epochs=2", "--resume"]) == 0
    (whole,) = json.loads((tmp_path / "halves" / "results.json").read_text())
    assert whole["curve"]["train_loss"] == ours["curve"]["train_loss"]
    assert main([*arguments[:-1], str(tmp_path / "no"), "--env-options", "rho=0.3"]) == 2
    assert "with rho > 0, autoreset_mode='same_step' needs collaboration='frequency'" in capsys.readouterr().err


def test_it_cannot_be_captured():
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=8, capture=True, **needs("sb3:PPO"))
    with pytest.raises(ValueError, match="agent 'sb3:PPO': capture=True needs a CUDA device, got cpu"):
        make_agent("sb3:PPO", env).learn(env, 8)
