"""Checkpoints: every damage is seen before anything moves, and what an environment was asked for is not overruled."""

import copy
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from damage import changed, places, reseal, same, sealed
from hypothesis import given, settings
from hypothesis import strategies as st

from routing_gym.agents import AGENTS, Agent, make_agent, needs, read
from routing_gym.envs import rollout
from routing_gym.files import WriteError

SMALL = {"num_tasks": 2, "num_classes": 2, "image_size": 2, "images_per_class": 20, "width": 3, "layers": 2}
OF_THE_RUN = {"env_id", "env_kwargs", "num_envs", "extra", "torch_generator"}
"""What a checkpoint holds for others than `Agent.load`."""


def env_of(**options):
    options = {**SMALL, "autoreset_mode": "disabled", **options}
    return gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=8, **options).unwrapped


def losses_of(agent, batches=3):
    seen = []
    agent.learn(agent.env, batches * agent.env.num_envs, lambda metrics: seen.append(metrics["loss"].item()))
    return seen


def trained_agent():
    """An agent that learns by an optimiser of its own."""
    agent = make_agent("reinforce", env_of(rho=0.1), seed=1, representation="mlp")
    return agent.learn(agent.env, 32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint."""
    path = tmp_path_factory.mktemp("saved") / "agent.pt"
    agent = trained_agent()
    agent.save(path, curve={"epoch": [1]})
    return path


@pytest.mark.parametrize("options", [{}, {"final_reward": "negative-loss", "rho": 0.1, "k_cpt": 1e-6}], ids=str)
@pytest.mark.parametrize(
    ("name", "more"),
    [("wpl", {}), ("grpo", {"representation": "mlp"}), ("em", {}), ("gumbel", {}), ("top-k", {}), ("thompson", {})],
    ids=str,
)
def test_a_pickled_agent_decides_and_is_rewarded_as_before(name, more, options):
    agent = make_agent(name, env_of(**options, **needs(name)), **more)
    agent.learn(agent.env, 16)
    again = pickle.loads(pickle.dumps(agent))
    rolled = [rollout(one, one.env, instances=torch.arange(8)) for one in (agent, again)]
    assert torch.equal(rolled[0].loss, rolled[1].loss) and torch.equal(rolled[0].reward(), rolled[1].reward())


@pytest.mark.parametrize("name", [name for name in AGENTS if name.startswith("sb3:")])
def test_agents_of_other_libraries_are_pickled_too(name):
    agent = make_agent(name, gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=8, **{**SMALL, **needs(name)}))
    observation, _ = agent.env.reset(seed=1)
    action, _ = pickle.loads(pickle.dumps(agent)).predict(observation, deterministic=True)
    assert torch.equal(torch.as_tensor(action), torch.as_tensor(agent.predict(observation, deterministic=True)[0]))


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_every_flipped_byte_and_every_truncation_is_refused(saved, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    whole = bytearray(saved.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    if cut:
        del whole[place:]
    else:
        whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    with pytest.raises(
        ValueError, match=r"damaged\.pt is not a checkpoint of routing_gym, or it is damaged"
    ) as refused:
        read(path)
    assert "weights_only" not in str(refused.value) and "\n" not in str(refused.value)


def drop(container, key):
    del container[key]


def of_another_type(value):
    def change(container, key):
        container[key] = value

    return change


def of_another_form(how):
    def change(container, key):
        value = container[key]
        container[key] = how(value) if isinstance(value, torch.Tensor) else [*value, 0] if type(value) is list else None

    return change


CHANGES = [
    drop,
    *map(of_another_type, (None, "text", 1.5, True, [], {}, [[1], 2], torch.zeros(2, 2))),
    *map(
        of_another_form, (lambda t: t.unsqueeze(0), lambda t: t.double(), lambda t: t.flatten()[:-1], lambda t: t.int())
    ),
]


@pytest.fixture(scope="module")
def env():
    """An environment in the middle of learning."""
    return trained_agent().env


@pytest.mark.long
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_what_does_not_fit_is_refused_and_changes_nothing(saved, env, tmp_path_factory, data):
    content = torch.load(saved, weights_only=True)
    damaged = tmp_path_factory.getbasetemp() / "changed.pt"
    place = data.draw(st.sampled_from(list(places(content))))
    content = changed(content, place, data.draw(st.sampled_from(CHANGES)))
    damaged.write_bytes(sealed(content))
    env.reset()
    before, generator = env.state_dict(), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a learning rate that has been changed to another
        try:
            loaded = Agent.load(damaged, env)
        except ValueError as error:
            assert str(damaged) in str(error) and "weights_only" not in str(error)
            assert same(env.state_dict(), before) and torch.equal(torch.get_rng_state(), generator)
            assert env.state.waiting  # episodes go on
            return
    # What was loaded is what the file says; one of a time that did not know an entry has its default.
    content["env"]["blocks"].setdefault("carried", 0)
    content["env"]["blocks"]["optimization"].setdefault("task_balance", None)
    loaded.save(damaged)
    again = torch.load(damaged, weights_only=True)
    assert all(same(again[key], content[key]) for key in content.keys() - OF_THE_RUN)


@pytest.mark.long
@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (("env", "blocks", "optimizer", "param_groups"), lambda c, k: c[k].append({}), "param_groups: expected 1"),
        (("env", "blocks", "optimizer", "state", 0, "exp_avg"), drop, "optimizer.state.0: 'exp_avg' is missing"),
        (
            ("env", "share"),
            of_another_form(lambda t: t[:-1]),
            "share: expected float64 of shape",
        ),
        (("env", "stream", "generator"), of_another_form(torch.zeros_like), "stream.generator: Invalid mt19937 state"),
        (("env", "stream", "pass"), of_another_form(lambda t: t + 1000), r"stream.pass: expected numbers in \[0, "),
        (("agent_state",), of_another_type({}), "agent_state: '.*' is missing"),
        (("config", "seed"), drop, "config: 'seed' is missing"),
        (("agent_optimizer",), of_another_type(None), "agent_optimizer: expected a dictionary, got NoneType"),
        (("torch_generator",), of_another_form(torch.zeros_like), "Invalid mt19937 state"),
        (("num_envs",), drop, "checkpoint: 'num_envs' is missing"),
        (("version",), of_another_type(4), "has format version 4, this release reads 5"),
        (("format",), of_another_type("other"), "is not a checkpoint of routing_gym"),
    ],
)
def test_a_refused_file_leaves_training_as_it_was(saved, tmp_path, place, change, message):
    (tmp_path / "changed.pt").write_bytes(sealed(changed(torch.load(saved, weights_only=True), place, change)))
    agents = [trained_agent() for _ in range(2)]
    with pytest.raises(ValueError, match=rf"changed\.pt .*{message}"):
        Agent.load(tmp_path / "changed.pt", agents[0].env)
    assert losses_of(agents[0]) == losses_of(agents[1])


def test_code_and_files_of_before_are_not_read(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"format": "routing_gym checkpoint", "version": 2}, path)
    for content in (path.read_bytes(), pickle.dumps(print), b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"other\.pt is not a checkpoint of routing_gym, or .*of a release before"):
            read(path)
    path.write_bytes(sealed({"format": "routing_gym checkpoint", "version": 3, "env": print}))
    with pytest.raises(ValueError, match=r"other\.pt .*holds more than tensors and values$"):
        read(path)
    with pytest.raises(ValueError, match="is a folder: name a checkpoint in it"):
        read(tmp_path)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    agent = make_agent("shared", env_of())
    with pytest.raises(ValueError, match=r"extra\.scores\.0 is of type numpy\.float64"):
        agent.save(tmp_path / "agent.pt", scores=[np.float64(1)])
    with pytest.raises(WriteError, match=r"nodir/agent\.pt was not written: there is no folder"):
        agent.save(tmp_path / "nodir" / "agent.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_state_can_be_gone_back_to_twice():
    agent = make_agent("shared", env_of(rho=0.2, collaboration="frequency"))
    losses_of(agent)
    state = agent.env.state_dict()
    kept, seen = copy.deepcopy(state), []
    for _ in range(2):
        agent.env.load_state_dict(state)
        seen.append(losses_of(agent))
        assert same(state, kept)
    assert seen[0] == seen[1]


ASKED = {"learning_rate": 0.5, "weight_decay": 0.1, "schedule": "halving", "schedule_epochs": 3}


@given(there=st.sets(st.sampled_from(sorted(ASKED))), here=st.sets(st.sampled_from(sorted(ASKED))))
@settings(max_examples=12, deadline=None)
def test_what_an_environment_was_asked_for_wins_else_what_was_saved(tmp_path_factory, there, here):
    path = tmp_path_factory.getbasetemp() / "asked.pt"
    agent = make_agent("shared", env_of(**{option: ASKED[option] for option in there}))
    losses_of(agent, 10)
    agent.save(path)
    others = {"learning_rate": 0.25, "weight_decay": 0.0, "schedule": "constant", "schedule_epochs": 7}
    env, before = env_of(**{option: others[option] for option in here}), agent.env.config
    bound = here | ({"schedule_epochs"} if "schedule" in here else set())
    expected = {option: getattr(env.config if option in bound else before, option) for option in ASKED}
    differing = [option for option in ASKED if getattr(env.config, option) != getattr(before, option)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Agent.load(path, env)
    assert {option: getattr(env.config, option) for option in ASKED} == expected
    group = env.trainer.optimizer.param_groups[0]
    assert group["weight_decay"] == expected["weight_decay"]
    if expected["schedule"] == "constant":
        assert group["lr"] == env.trainer.rate == expected["learning_rate"]
    else:
        epochs = env.trainer.instances / env.trainer.optimization.epoch / expected["schedule_epochs"]
        assert env.trainer.rate == pytest.approx(expected["learning_rate"] * 0.5**epochs)
    text = " ".join(str(warning.message) for warning in caught)
    assert len(caught) == bool(differing) and all(f"{option}=" in text for option in differing)


def test_momentum_that_was_asked_for_begins_where_none_was_saved(tmp_path):
    options = {"optimizer": "sgd", "learning_rate": 0.1}
    agent = make_agent("shared", env_of(**options))
    losses_of(agent)
    agent.save(tmp_path / "agent.pt")
    env = env_of(**options, momentum=0.9)
    with pytest.warns(UserWarning, match=r"go on with momentum=0\.9, as asked for here, instead of 0\.0, as saved"):
        loaded = Agent.load(tmp_path / "agent.pt", env)
    losses_of(loaded)
    assert len(env.trainer.optimizer.state) == len(list(env.network.parameters()))
    with pytest.raises(ValueError, match="trained with optimizer='sgd', here it is 'adam': make the environment with"):
        Agent.load(tmp_path / "agent.pt", env_of())


def test_a_group_of_another_device_or_a_plugin_that_fails_is_named(saved, tmp_path, monkeypatch):
    from routing_gym.agents import AGENTS

    def broken(self, state):
        raise KeyError("mine")

    monkeypatch.setattr(AGENTS["reinforce"], "set_extra_state", broken, raising=False)
    monkeypatch.setattr(AGENTS["reinforce"], "get_extra_state", lambda self: None, raising=False)
    path = tmp_path / "agent.pt"
    path.write_bytes(saved.read_bytes())
    reseal(path, lambda content: content["agent_state"].update(_extra_state=None))
    with pytest.raises(ValueError, match=r"agent\.pt does not fit this environment: 'mine'"):
        Agent.load(path, env_of(rho=0.1))


TWINS = {"copy": copy.deepcopy, "pickle": lambda agent: pickle.loads(pickle.dumps(agent))}


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
@pytest.mark.parametrize("name", ["wpl", "reinforce", "em", "gumbel", "soft-mixture", "top-k"])
def test_a_copy_learns_on_as_the_agent_does(name, twin):
    agent = make_agent(name, env_of(**needs(name)))
    losses_of(agent)
    again = twin(agent)
    before = copy.deepcopy(agent.env.network.state_dict())
    assert losses_of(again) and same(agent.env.network.state_dict(), before), "they share nothing"
    again = twin(agent)
    assert losses_of(again) == losses_of(agent) and same(again.state_dict(), agent.state_dict())
    assert same(again.env.network.state_dict(), agent.env.network.state_dict())


def test_a_copied_environment_trains_its_blocks_on():
    env = env_of(autoreset_mode="same_step", replay_batch=8)
    env.reset(seed=0)
    twins = env, copy.deepcopy(env)
    choices = np.random.default_rng(0).integers(2, size=(9, 8))
    for one in twins:
        for action in choices:
            one.step(torch.from_numpy(action))
    assert twins[0].trainer.instances > 0
    assert same(*(one.network.state_dict() for one in twins))
