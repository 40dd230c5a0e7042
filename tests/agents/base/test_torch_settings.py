"""What PyTorch has for all of a process: gradients off, inference mode, default types and devices, threads."""

import contextlib
import dataclasses
import threading

import gymnasium
import pytest
import torch
from torch import nn

import routing_gym
from routing_gym import evaluate
from routing_gym.agents import AGENTS, Agent, Population, extract, make_agent, needs, prune
from routing_gym.envs import ToNumpy
from routing_gym.networks import route
from routing_gym.testing import check_vector_env

ID = "routing_gym/SyntheticMTL-v0"


def made(name="wpl", options=(), **of_env):
    return make_agent(name, gymnasium.make_vec(ID, num_envs=24, **{**needs(name), **of_env}), **dict(options))


def weights(agent):
    return torch.cat([parameter.detach().flatten() for parameter in agent.env.network.parameters()])


OFF = pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])


@OFF
@pytest.mark.parametrize("name", ["wpl", "gumbel", "reinforce", "top-k", "sb3:PPO"])
def test_what_learns_learns_where_gradients_are_off(name, off):
    expected, agent = made(name, {"seed": 1}), made(name, {"seed": 1})
    expected.learn(expected.env, 96)
    with off():
        agent.learn(agent.env, 96)
    torch.testing.assert_close(weights(agent), weights(expected), rtol=0, atol=0)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(agent.state_dict()[key], value, rtol=0, atol=0)


@OFF
def test_so_do_many_side_by_side(off):
    agents = [made(options={"seed": seed}, seed=seed) for seed in (0, 1)]
    before = weights(agents[0])
    with off():
        Population(agents).learn(48)
    assert not torch.equal(weights(agents[0]), before)


def test_blocks_learn_at_the_end_of_a_loop_without_gradients():
    env = gymnasium.make_vec(ID, num_envs=24, autoreset_mode="disabled").unwrapped
    before = torch.cat([parameter.detach().flatten() for parameter in env.network.parameters()])
    with torch.no_grad():
        env.reset(seed=0)
        while env.state.waiting:
            env.step(torch.zeros(24, dtype=torch.int64))
        env.train_blocks()
    assert not torch.equal(torch.cat([parameter.detach().flatten() for parameter in env.network.parameters()]), before)


@OFF
def test_routes_of_outside_agents_are_replayed_where_gradients_are_off(off):
    env = gymnasium.make_vec(ID, num_envs=24, replay_batch=24).unwrapped
    with off():
        env.reset(seed=0)
        for _ in range(6):
            env.step(torch.zeros(24, dtype=torch.int64))
    assert env.trainer.instances == 48


def test_what_is_made_in_inference_mode_is_used_outside():
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.inference_mode():
        network = route(module, ["1"], 2)
        agent = made(network=network, num_classes=3)
        smaller = prune(agent)
        plain = extract(agent, 0)
    agent.learn(agent.env, 24)
    smaller.learn(smaller.env, 24)
    plain(agent.env.dataset.images[:2]).sum().backward()


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["wpl", "gumbel", "top-k", "task-clustering", "actor-critic"])
def test_float64_is_saved_and_loaded(name, tmp_path):
    agent = made(name)
    agent.learn(agent.env, 96).save(tmp_path / "agent.pt")
    again = Agent.load(tmp_path / "agent.pt", made(name).env)
    assert evaluate(again, again.env).accuracy == evaluate(agent, agent.env).accuracy


@pytest.mark.usefixtures("float64")
def test_libraries_that_compute_in_float32_alone_say_so():
    with pytest.raises(ValueError, match="Stable-Baselines3 computes in float32, PyTorch's default is torch.float64"):
        made("sb3:PPO")


@pytest.mark.usefixtures("float64")
def test_spaces_hold_in_float64_too():
    env = ToNumpy(gymnasium.make_vec(ID, num_envs=4))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    check_vector_env(gymnasium.make_vec(ID, num_envs=4))


@contextlib.contextmanager
def by_default(device):
    before = torch.get_default_device()
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None if before.type == "cpu" else before)


@pytest.mark.parametrize("name", ["wpl", "reinforce", "gumbel", "top-k", "q-learning", "shared", "random"])
def test_another_default_device_changes_nothing(name):
    """Here one that holds nothing: whatever landed there could not be computed with."""
    of_env = {"price": True, "k_cpt": (0.0, 1e-6), "shift": 1}
    expected = made(name, **of_env)
    expected.learn(expected.env, 72)
    with by_default("meta"):
        agent = made(name, **of_env)
        agent.learn(agent.env, 72)
        judged = evaluate(agent, agent.env)
    torch.testing.assert_close(weights(agent), weights(expected), rtol=0, atol=0)
    assert judged.accuracy == evaluate(expected, expected.env).accuracy


def test_nor_for_outside_agents():
    with by_default("meta"):
        env = ToNumpy(gymnasium.make_vec(ID, num_envs=4))
        env.reset(seed=0)
        for _ in range(4):
            env.step(env.action_space.sample())
        single = gymnasium.make(ID)
        single.reset(seed=0)
        single.step(0)


def test_threads_may_route_while_others_train():
    failures = []

    def job(count):
        try:
            for _ in range(count):
                module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
                agent = made(network=route(module, ["1"], 2), num_classes=3)
                agent.learn(agent.env, 48)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=job, args=(4,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert torch.backends.mha.get_fastpath_enabled()
    assert nn.Linear(2, 2)(torch.zeros(1, 2)).shape == (1, 2)


def test_observations_and_infos_are_the_callers():
    def judged(spoil):
        env = routing_gym.envs.core_of(gymnasium.make_vec(ID, num_envs=24, autoreset_mode="disabled", train=False))
        observation, _ = env.reset(seed=0)
        while env.state.waiting:
            if spoil:
                observation["activation"].fill_(0.0)
            observation, _, _, _, infos = env.step(torch.zeros(24, dtype=torch.int64))
        expected = infos["macs"].clone()
        infos["macs"].zero_()
        assert torch.equal(env.state.macs, expected)
        return infos["loss"]

    torch.testing.assert_close(judged(True), judged(False), rtol=0, atol=0)


def test_a_scheduler_of_pytorch_may_set_the_rate(tmp_path):
    agent = made()
    scheduler = torch.optim.lr_scheduler.StepLR(agent.env.trainer.optimizer, 1, 0.1)
    agent.learn(agent.env, 48, lambda metrics: scheduler.step()).save(tmp_path / "agent.pt")
    again = Agent.load(tmp_path / "agent.pt", made().env)
    assert again.env.trainer.rate == pytest.approx(1e-5)


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1


def test_options_that_no_checkpoint_can_hold_are_refused_when_it_is_written(tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Config(AGENTS["random"].Config):
        inner: Inner = dataclasses.field(default_factory=Inner)

    own = type("Own", (AGENTS["random"],), {"Config": Config})
    monkeypatch.setitem(AGENTS, "of-parts", own)
    with pytest.raises(ValueError, match="inner"):
        made("of-parts").save(tmp_path / "agent.pt")
    assert not (tmp_path / "agent.pt").exists()


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_a_plan_may_hold_any_integers(kind, monkeypatch):
    def plan(self, task, deterministic):
        return torch.zeros(len(task), self.num_decisions, dtype=kind)

    monkeypatch.setitem(AGENTS, "planned", type("Planned", (AGENTS["random"],), {"plan": plan}))
    agent = made("planned")
    agent.learn(agent.env, 24)
    assert evaluate(agent, agent.env).routes[..., 0].sum() > 0


def test_observations_to_predict_on_are_looked_at():
    agent = made("reinforce", {"representation": "mlp"}, price=True, k_cpt=(0.0, 1e-6))
    seen, _ = agent.env.reset(seed=0)
    expected, _ = agent.predict(seen, deterministic=True)
    for changed in ({"price": seen["price"][:, 0]}, {"activation": seen["activation"].unsqueeze(1)}):
        assert torch.equal(agent.predict({**seen, **changed}, deterministic=True)[0], expected)
    for changed, message in (({"price": seen["price"][:3]}, "got shape"), ({"price": None}, "got none")):
        given = {key: value for key, value in {**seen, **changed}.items() if value is not None}
        with pytest.raises(ValueError, match=f"price must hold a number for each of 24 activations, {message}"):
            agent.predict(given)
