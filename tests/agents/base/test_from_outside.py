"""What other code hands over: NumPy's numbers as options, observations in any form, inference mode."""

import gymnasium
import numpy as np
import pytest
import torch

from routing_gym import evaluate
from routing_gym.agents import AGENTS, Agent, add_task, agent_class, extract, make_agent, needs, read
from routing_gym.agents.base.checkpoint import check_kept
from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.plugins import load_plugin
from routing_gym.registration import register_env

ID = "routing_gym/SyntheticMTL-v0"


def made(name="wpl", options=(), **of_env):
    return make_agent(name, gymnasium.make_vec(ID, num_envs=8, **{**needs(name), **of_env}), **dict(options))


NUMBERS = [
    {"learning_rate": np.float64(1e-3), "num_tasks": np.int64(3)},
    {"learning_rate": np.float32(1e-3), "class_weights": list(np.array([1.0, 2.0, 3.0])), "task_weights": (1.0,) * 4},
    {"task_weights": tuple(np.ones(4)), "k_cpt": (np.float64(0.0), np.float32(1e-6)), "price": np.bool_(True)},
    {"schedule": "step", "schedule_epochs": tuple(np.array([1.0, 2.0])), "seed": np.uint8(3)},
]


@pytest.mark.parametrize("of_env", NUMBERS, ids=range(4))
def test_numbers_of_numpy_are_saved_as_pythons(of_env, tmp_path):
    agent = made(options={"policy_rate": np.float64(0.1), "seed": np.int64(1)}, **of_env)
    agent.learn(agent.env, 16).save(tmp_path / "agent.pt")
    content = read(tmp_path / "agent.pt")
    assert content["env_id"] == ID and content["config"]["policy_rate"] == 0.1
    assert set(of_env) <= set(content["env_kwargs"])
    again = gymnasium.make_vec(content["env_id"], **content["env_kwargs"])
    assert evaluate(Agent.load(tmp_path / "agent.pt", again), again).accuracy == evaluate(agent, agent.env).accuracy


def test_so_are_those_of_other_calls(tmp_path):
    agent = made("reinforce", {"representation": "mlp"}, price=True, k_cpt=(0.0, 1e-6))
    assert evaluate(agent, agent.env, k_cpt=np.float32(1e-6)).macs == evaluate(agent, agent.env, k_cpt=1e-6).macs
    old = made()
    data = gymnasium.make_vec(ID, num_envs=2, data_seed=5).unwrapped.datasets
    add_task(old, data, block_rate=np.float64(0.1)).save(tmp_path / "grown.pt")
    register_env("tests/OfNumPy-v0", dataset="synthetic", network="mlp", learning_rate=np.float64(2e-3))
    agent = make_agent("wpl", gymnasium.make_vec("tests/OfNumPy-v0", num_envs=8, **needs("wpl")))
    agent.save(tmp_path / "agent.pt")
    assert read(tmp_path / "agent.pt")["env_id"] == "tests/OfNumPy-v0" and agent.env.config.learning_rate == 2e-3


def test_what_a_checkpoint_cannot_hold_is_known_before_the_first_epoch(tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "import numpy as np\nfrom routing_gym.agents import Shared, register_agent\n"
        "class Own(Shared):\n"
        "    def get_extra_state(self):\n        return {'seen': np.zeros(3)}\n"
        "    def set_extra_state(self, state):\n        pass\n"
        "register_agent('of-arrays', Own)\n"
    )
    command = ["train", "--env", ID, "--agent", "of-arrays", "--plugin", str(tmp_path / "own.py"), "--epochs", "1"]
    assert main([*command, "--out", str(tmp_path / "run")]) != 0
    told = capsys.readouterr()
    assert "is of type numpy.ndarray" in " ".join(told.err.split()) and "epoch 1/1" not in told.out


GROWING = """
import torch
from routing_gym.agents import Shared, register_agent
class Own(Shared):
    def __init__(self, env, config=None):
        super().__init__(env, config)
        self.seen = {}
        self.register_buffer("hist", torch.zeros(0))
        self.opt = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    def update(self, trajectory):
        self.seen[len(self.seen)] = trajectory.task
        %s
class Telling(Own):
    def get_extra_state(self):
        return self.seen
    def set_extra_state(self, state):
        self.seen = dict(state)
register_agent("growing", Own)
register_agent("telling", Telling)
"""


def test_what_grows_is_saved_by_the_hook_or_refused_before_the_first_epoch(tmp_path, capsys):
    (tmp_path / "kept.py").write_text(GROWING % "pass")
    (tmp_path / "lost.py").write_text(GROWING % "self.hist = torch.cat([self.hist, trajectory.final_reward])")
    command = ["train", "--env", ID, "--epochs", "1", "--agent", "growing"]
    assert main([*command, "--plugin", str(tmp_path / "lost.py"), "--out", str(tmp_path / "run")]) != 0
    told = " ".join((printed := capsys.readouterr()).err.split())
    assert "a checkpoint of agent 'growing' could not be loaded: agent_state.hist: expected float32 of shape" in told
    assert "epoch 1/1" not in printed.out
    AGENTS.pop("growing"), AGENTS.pop("telling")
    load_plugin(tmp_path / "kept.py")
    agent = made("telling")
    agent.learn(agent.env, 16).save(tmp_path / "agent.pt")
    check_kept(agent)
    assert sorted(Agent.load(tmp_path / "agent.pt", made("telling").env).seen) == [0, 1]
    agent = made("growing")
    with pytest.warns(UserWarning, match=r"'growing': no checkpoint holds the state of self.opt \(Adam\)") as warned:
        agent.save(tmp_path / "agent.pt")
        agent.save(tmp_path / "agent.pt")
    assert len(warned) == 1


@pytest.mark.parametrize("extra", [{"n": {np.int64(1): 2}}, {"n": {(1, 2): {3}}}, {"n": type("Own", (dict,), {})()}])
def test_what_could_not_be_read_is_not_written(extra, tmp_path):
    with pytest.raises(ValueError, match=r"a checkpoint holds tensors and plain values.* is of type "):
        made().save(tmp_path / "agent.pt", **extra)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wpl", "reinforce", "gumbel", "q-learning", "top-k", "random"])
def test_inference_mode_is_as_good_as_no_gradients(name):
    options = {"representation": "mlp"} if hasattr(agent_class(name).Config(), "representation") else {}
    agent = made(name, options, rewards="negative-loss" if name == "wpl" else ())
    images, task = agent.env.dataset.images[:4], torch.tensor([0, 1, 2, 3])
    judged = evaluate(agent, agent.env).accuracy
    expected = None if name == "random" else agent.classify(images, task)
    with torch.inference_mode():
        assert evaluate(agent, agent.env).accuracy == judged or name == "random"
        if expected is not None:
            torch.testing.assert_close(agent.classify(images, task), expected)
            torch.testing.assert_close(extract(agent)(images, task), expected)
    agent.learn(agent.env, 16)


def observation(rows=2, **other):
    zeros = np.zeros(rows, np.int64)
    seen = np.random.default_rng(0).normal(size=(rows, 48)).astype(np.float32)
    return {"activation": seen, "task": zeros, "depth": zeros, **other}


def test_observations_are_taken_in_any_form():
    agent = made("reinforce", {"representation": "mlp"})
    seen = observation()
    expected, _ = agent.predict(seen, deterministic=True)
    other = np.ascontiguousarray(seen["activation"][::-1])[::-1]
    for given in (
        {**seen, "activation": seen["activation"].astype(np.float64)},
        {**seen, "activation": other},
        {**seen, "depth": np.zeros(2, np.uint8), "task": np.zeros(2, ">i4")},
        {key: value.tolist() for key, value in seen.items()},
    ):
        np.testing.assert_array_equal(agent.predict(given, deterministic=True)[0], expected)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"task": np.zeros(2)}, r"task must be integers of shape \(R,\), got torch.float64"),
        ({"depth": np.zeros((2, 1), int)}, r"depth must be integers of shape \(R,\)"),
        ({"activation": np.zeros((2, 47))}, r"activation must hold 48 numbers for each instance, got shape \(2, 47\)"),
        ({"activation": np.zeros(2)}, r"activation must hold 48 numbers for each instance, got shape \(2,\)"),
        ({"task": np.ma.masked_array([0, 1], [0, 1])}, "task must be numbers, got a masked array"),
    ],
)
def test_other_observations_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        made("reinforce", {"representation": "mlp"}).predict(observation(**other))


@pytest.mark.parametrize("name", ["wpl", "top-k", "dselect-k", "sb3:PPO"])
def test_judging_is_exact_whatever_autocast_is_on(name):
    agent = made(name)
    expected = evaluate(agent, agent.env).loss
    with torch.autocast("cpu"):
        assert evaluate(agent, agent.env).loss == expected


def test_an_agent_that_was_made_for_one_instance_tells_where(tmp_path):
    env = gymnasium.make(ID, num_tasks=2)
    make_agent("sb3:PPO", env).save(tmp_path / "agent.pt")
    content = read(tmp_path / "agent.pt")
    assert (content["env_id"], content["num_envs"]) == (ID, 1) and content["env_kwargs"]["num_tasks"] == 2


@pytest.mark.parametrize("name", ["actor-critic", "relax", "ppo"])
def test_the_largest_seed_is_one(name):
    assert made(name, {"seed": 2**64 - 1}).config.seed == 2**64 - 1


def test_a_device_may_be_given_as_one():
    assert made(device=torch.device("cpu")).env.config.device == "cpu"
    with pytest.raises(ValueError, match=r"schedule_epochs must rise, got \(20, 10\)"):
        made(schedule="step", schedule_epochs=(20, 10))
