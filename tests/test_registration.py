"""Ids: what stands in them, and that what `make` is given comes before it."""

from contextlib import nullcontext

import gymnasium
import pettingzoo
import pytest
from gymnasium.envs.registration import EnvSpec
from toys import quick

import routing_gym
from routing_gym.agents import agent_class, make_agent, needs, register_agent
from routing_gym.envs import core_of
from routing_gym.envs.make import known_options
from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.settings import TrainingSettings, build_agent
from routing_gym.networks import ways_out
from routing_gym.registration import ENV_IDS

EARLY = [env_id for env_id in routing_gym.env_ids() if "EarlyExit" in env_id]
SMALL = {"columns": 2, "width": 1}


def makers(env_id, **options):
    """The core of every kind of environment that an id makes."""
    yield core_of(gymnasium.make(env_id, **options))
    yield core_of(gymnasium.make_vec(env_id, num_envs=2, **options))
    yield core_of(pettingzoo.make("parallel", env_id, **options))
    yield core_of(pettingzoo.make("aec", env_id, **options))


@pytest.mark.parametrize("env_id", EARLY)
def test_early_exits_cost_something_unless_one_says_otherwise(env_id):
    for core in makers(env_id, **SMALL):
        assert (core.config.final_reward, core.config.k_cpt) == ("negative-loss", 4e-9)
        assert core.dataset.num_tasks == 1
        assert len(ways_out(core.network.decisions)) == 2
    for core in makers(env_id, k_cpt=1e-8, final_reward="correctness", **SMALL):
        assert (core.config.final_reward, core.config.k_cpt) == ("correctness", 1e-8)
    env = gymnasium.make_vec(env_id, num_envs=3, k_cpt=1e-8, **SMALL)
    again = gymnasium.make_vec(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.config == env.unwrapped.config and again.num_envs == 3


def test_the_networks_are_as_wide_and_deep_as_the_papers():
    network = gymnasium.make_vec("routing_gym/HybridEarlyExit-v0", num_envs=1).unwrapped.network
    assert len(network.decisions) == 7 and network.observation_size == 4 * 4 * 128


def test_ids_of_ones_own_take_options():
    routing_gym.register_env("mine/Costly-v0", dataset="synthetic", network="mlp", k_cpt=1e-3, width=5, num_tasks=2)
    for core in makers("mine/Costly-v0"):
        assert core.config.k_cpt == 1e-3 and core.network.banks[0].weight.shape[-1] == 5 and core.dataset.num_tasks == 2
    for core in makers("mine/Costly-v0", width=6):
        assert core.network.banks[0].weight.shape[-1] == 6
    routing_gym.register_env("mine/Costly-v0", dataset="synthetic", network="mlp", k_cpt=1e-3, width=5, num_tasks=2)
    with pytest.raises(ValueError, match="'mine/Costly-v0' belongs to another environment already"):
        routing_gym.register_env("mine/Costly-v0", dataset="synthetic", network="mlp", k_cpt=1e-2)


def test_an_id_that_is_refused_changes_nothing():
    routing_gym.register_env("mine/Foo", dataset="synthetic", network="mlp")
    before = dict(ENV_IDS), dict(gymnasium.registry)
    for env_id in ("mine/Foo bar-v0", "mine/Foo-v0"):
        with pytest.raises(ValueError, match=f"{env_id!r} cannot be an id, take 'namespace/Name-v0': "):
            routing_gym.register_env(env_id, dataset="synthetic", network="mlp")
        assert (dict(ENV_IDS), dict(gymnasium.registry)) == before
    routing_gym.register_env("mine/Other-v0", dataset="synthetic", network="mlp")
    assert core_of(gymnasium.make("mine/Other-v0")).network


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 3}, "unexpected keyword argument 'widht' .did you mean 'width'.*it takes .*width"),
        ({"num_envs": 3}, "unexpected keyword argument 'num_envs'"),
        ({"width": {3}}, r"width must be a plain value, .*, got \{3\}"),
        ({"k_cpt": -1.0}, "k_cpt must be at least 0 and finite, or a tuple of such numbers, got -1.0"),
        ({"k_cpt": "much"}, r"k_cpt must be of type float or tuple\[float, ...\], got 'much'"),
    ],
)
def test_options_that_do_not_fit_an_id_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        routing_gym.register_env("mine/Wrong-v0", dataset="synthetic", network="mlp", **options)
    assert "mine/Wrong-v0" not in ENV_IDS and "mine/Wrong-v0" not in gymnasium.registry


@pytest.mark.parametrize("name", ["shared-with-task", "cross-stitch"])
@pytest.mark.parametrize("env_id", ["routing_gym/DigitsMTL-v0", "routing_gym/OmniglotDiverse-v0",
                                    "routing_gym/MnistExperts-v0", "routing_gym/Cifar10ParallelPaths-v0"])  # fmt: skip
def test_an_agent_is_refused_by_python_where_the_command_refuses_it(env_id, name):
    """`task_input` is an option of networks, not what any network that knows the task can be said to have."""
    given = quick(env_id)
    has_options = set(agent_class(name).env_kwargs) <= known_options(
        ENV_IDS[env_id]["dataset"], ENV_IDS[env_id]["network"]
    )
    wanted = needs(name) if has_options else {"action_type": agent_class(name).action_type}
    env = gymnasium.make_vec(env_id, num_envs=4, **given, **wanted)
    training = TrainingSettings(env=env_id, batch_size=4, env_options=tuple(f"{k}={v}" for k, v in given.items()))
    for door, refusal in (
        (lambda: make_agent(name, env), ValueError),
        (lambda: build_agent(name, training.make_env(name, 0), 0, ()), UsageError),
    ):
        with nullcontext() if has_options else pytest.raises(refusal, match=f"{name!r} needs an environment made with"):
            door()


def test_list_shows_the_defaults_of_an_id(capsys):
    def row(option):
        (line,) = [line for line in printed.splitlines() if line.startswith(f"│ {option} ")]
        return line.split("│")[2].strip()

    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("k_cpt=4e-09") == len(EARLY)
    assert main(["list", EARLY[0]]) == 0
    printed = capsys.readouterr().out
    assert (row("network"), row("k_cpt"), row("final_reward")) == ("'pyramid-chain'", "4e-09", "'negative-loss'")
    assert (row("columns"), row("rho"), row("num_envs")) == ("8", "0.0", "1")
    assert main(["list", "routing_gym/DigitsMTL-v0"]) == 0
    printed = capsys.readouterr().out
    assert (row("network"), row("k_cpt"), row("final_reward")) == ("'mlp'", "0.0", "'correctness'")


def test_functions_that_make_no_data_are_told_so():
    with pytest.raises(ValueError, match=r"by name: write \*, before 'noise' in that of data set 'positional'"):
        routing_gym.register_dataset("positional", lambda noise=0.1: {})
    routing_gym.register_dataset("a-pair", lambda: ((), ()))
    routing_gym.register_env("mine/Pair-v0", dataset="a-pair", network="mlp")
    with pytest.raises(ValueError, match="data set 'a-pair' must be splits by name, .* got 'tuple'"):
        gymnasium.make_vec("mine/Pair-v0")
    splits = core_of(gymnasium.make("routing_gym/SyntheticMTL-v0")).datasets
    routing_gym.register_dataset("misnamed", lambda: {"training": splits["train"], "test": splits["test"]})
    routing_gym.register_env("mine/Misnamed-v0", dataset="misnamed", network="mlp")
    with pytest.raises(ValueError, match="got 'train': instances are drawn from the one called 'train'"):
        gymnasium.make_vec("mine/Misnamed-v0")


def test_an_agent_that_cannot_be_made_is_not_registered():
    class Alone(agent_class("shared")):
        def __init__(self, env):
            super().__init__(env)

    with pytest.raises(ValueError, match=r"Alone.__init__ must take \(self, env, config=None\), and hand both on"):
        register_agent("alone", Alone)
