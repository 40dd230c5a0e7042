"""Data and networks that are there already, in place of names."""

import dataclasses
import inspect

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

import routing_gym
from routing_gym import MultiTaskDataset
from routing_gym.agents import Agent, make_agent
from routing_gym.envs import RoutingVectorEnv
from routing_gym.envs.make import make_routing_vector_env
from routing_gym.networks import NETWORKS, make_network, register_network

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
TRAIN = MultiTaskDataset.from_arrays(IMAGES, np.arange(24) // 3 % 2, np.arange(24) % 3, name="mine")
TEST = MultiTaskDataset.from_arrays(
    IMAGES, np.arange(24) // 3 % 2, np.arange(24) % 3, name="mine", split="test", like=TRAIN
)
SPLITS = {"train": TRAIN, "test": TEST}
ID = "routing_gym/DigitsMTL-v0"


def network():
    return make_network("mlp", num_tasks=3, num_classes=2)


@pytest.mark.parametrize("env_id", [ID, "routing_gym/SyntheticMTL-v0", "routing_gym/Cifar10BlockSkip-v0"])
def test_splits_are_taken_in_place_of_a_name(env_id, tmp_path):
    env = gymnasium.make_vec(env_id, num_envs=8, dataset=SPLITS, network="mlp", num_tasks=2)
    assert env.unwrapped.dataset.num_tasks == 2 and env.unwrapped.network.block_counts == (2, 2, 2)
    agent = make_agent("wpl", env).learn(env, 16)
    agent.save(tmp_path / "agent.pt")
    again = gymnasium.make_vec(env_id, num_envs=8, dataset=SPLITS, network="mlp", num_tasks=2)
    judged = routing_gym.evaluate(Agent.load(tmp_path / "agent.pt", again), again)
    assert judged.task_accuracy == routing_gym.evaluate(agent, env).task_accuracy


def test_one_split_is_taken_too():
    env = gymnasium.make(ID, dataset=TRAIN)
    observation, _ = env.reset(seed=0)
    assert env.unwrapped.core.datasets == {"train": TRAIN} and int(observation["depth"]) == 0


@pytest.mark.parametrize("wrong", [None, 3, "nope", {}, [TRAIN], {"train": IMAGES}, IMAGES, MultiTaskDataset])
def test_data_that_is_none_is_refused(wrong):
    message = (
        "unknown data set 'nope'"
        if isinstance(wrong, str)
        else "each a MultiTaskDataset, or the name of registered data"
    )
    with pytest.raises(ValueError, match=message):
        gymnasium.make_vec(ID, num_envs=2, dataset=wrong)
    if not isinstance(wrong, str):
        with pytest.raises(ValueError, match=message):
            RoutingVectorEnv(network(), wrong, 2)


@pytest.mark.parametrize("wrong", [None, 3, nn.Linear(2, 2), nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), nn.Linear])
def test_a_network_that_is_none_is_refused(wrong):
    message = "network must be a name or a RoutedNetwork, got "
    if isinstance(wrong, nn.Module):
        message += rf"{type(wrong).__name__}: routing_gym\.route\(module, layers, num_blocks\) makes one of"
    with pytest.raises(ValueError, match=message):
        gymnasium.make_vec(ID, num_envs=2, network=wrong)
    with pytest.raises(ValueError, match=message):
        RoutingVectorEnv(wrong, SPLITS, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": network(), "recurrent": True}, "recurrent=True: a finished network has no options"),
        ({"network": network(), "width": 3}, "width=3: a finished network has no options"),
        ({"network": network(), "num_blocks": 3}, "num_blocks is for networks given by name"),
        ({"dataset": SPLITS, "shift": 1}, "shift=1: a finished dataset has no options"),
        ({"dataset": SPLITS, "data_dir": "x"}, "data_dir='x': a finished dataset has no options"),
        ({"dataset": SPLITS, "num_tasks": 4}, "mine has the tasks 0 to 2"),
    ],
)
def test_what_is_finished_has_no_options(options, message):
    with pytest.raises(ValueError, match=message):
        gymnasium.make_vec(ID, num_envs=2, **options)


def test_what_nobody_knows_is_no_option_of_what_is_finished():
    with pytest.raises(TypeError, match="unexpected keyword argument 'widht'"):
        gymnasium.make_vec(ID, num_envs=2, network=network(), widht=3)


def test_options_of_an_id_do_not_hold_for_what_replaces_its_data_and_network():
    env = gymnasium.make_vec("routing_gym/Cifar10BlockSkip-v0", num_envs=2, dataset=SPLITS, network=network())
    assert env.unwrapped.config.k_cpt == 2e-9
    with pytest.raises(ValueError, match="fill='mean': a finished dataset has no options"):
        gymnasium.make_vec("routing_gym/Cifar10BlockSkip-v0", num_envs=2, dataset=SPLITS, network="mlp", fill="mean")


def test_numbers_of_numpy_are_numbers():
    options = {"num_blocks": np.int64(2), "width": np.int32(5), "seed": np.int64(1), "k_cpt": np.float64(1e-9)}
    env = gymnasium.make_vec(ID, num_envs=2, dataset=SPLITS, num_tasks=np.int64(2), **options)
    assert env.unwrapped.network.block_counts == (2, 2, 2) and env.unwrapped.config.k_cpt == 1e-9


@pytest.mark.parametrize("option", ["num_tasks", "num_blocks", "seed", "width", "layers", "recurrent"])
@pytest.mark.parametrize("wrong", ["a", "", -1, 2.5, float("nan"), [], {}, object])
def test_wrong_options_are_refused_by_their_names(option, wrong):
    if (option, wrong) == ("seed", -1):
        return
    with pytest.raises(ValueError, match=rf"{option}|sets of blocks"):
        gymnasium.make_vec(ID, num_envs=2, dataset=SPLITS, **{option: wrong})


@pytest.mark.parametrize(
    "name", ["mlp", "pyramid-chain", "omniglot-diverse", "resnet32-skip", "basecnn-2-cc", "cells-6x32", "vit"]
)
@pytest.mark.parametrize("wrong", [None, "a", -1, 2.5, float("nan"), object])
def test_every_network_refuses_wrong_numbers(name, wrong):
    sizes = {"num_tasks": 1, "num_classes": 2, "input_shape": (3, 32, 32)}
    for option in ("num_tasks", "num_classes", "width", "layers", "columns", "paths", "cells", "filters"):
        if option in sizes or option in NETWORKS[name].options:
            with pytest.raises(ValueError, match=option):
                make_network(name, **{**sizes, option: wrong})
    if wrong is not None:
        with pytest.raises(ValueError, match=r"expected input_shape=\(C, H, W\), three integers"):
            make_network(name, **{**sizes, "input_shape": (3, 32, wrong)})
    with pytest.raises(ValueError, match="unknown network"):
        make_network(wrong, **sizes)


@pytest.mark.long
def test_a_split_of_features_is_routed():
    features = torch.randn(30, 5, 1, 1)
    data = MultiTaskDataset.from_arrays(features, (features[:, 0, 0, 0] > 0).long())
    env = gymnasium.make_vec(ID, num_envs=8, dataset={"train": data, "test": data}, num_blocks=2)
    agent = make_agent("shared", env).learn(env, 3200)
    assert routing_gym.evaluate(agent, env).accuracy > 0.8


@pytest.mark.parametrize("option", ["momentum", "noise", "num_envs", "rho"])
def test_an_option_of_a_network_of_ones_own_is_nobody_elses(option):
    def build(shape, classes, num_blocks, *, num_tasks=1, **own):
        raise AssertionError("is not built")

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [*inspect.signature(build).parameters.values()][:4]
    build.__signature__ = inspect.Signature([*parameters, inspect.Parameter(option, kind, default=1)])
    register_network(name := f"with-{option}", build)
    try:
        with pytest.raises(ValueError, match=f"option '{option}' of network '{name}' is one of the environment too"):
            make_routing_vector_env(dataset="synthetic", network=name)
    finally:
        del NETWORKS[name]


def test_splits_may_show_different_numbers_of_classes():
    few = MultiTaskDataset.from_arrays(IMAGES[:6], [0] * 6, [0, 1, 2] * 2, split="test", like=TRAIN)
    few = dataclasses.replace(few, num_classes=1)
    for splits in ({"train": TRAIN, "test": few}, {"test": few, "train": TRAIN}):
        for tasks in (1, 3):
            env = gymnasium.make_vec(ID, num_envs=8, dataset=splits, num_tasks=tasks, class_weights=(1.0, 2.0),
                                     autoreset_mode="disabled")  # fmt: skip
            agent = make_agent("shared", env).learn(env, 16)
            assert routing_gym.evaluate(agent, env).loss > 0 and env.unwrapped.network.num_classes == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda network: network.half(), r"weights in torch.float32, got torch.float16: .* give precision='bfloat16'"),
        (lambda network: network.double(), "weights in torch.float32, got torch.float64"),
        (lambda network: network.to("meta"), "weights without values, on the device 'meta'"),
    ],
)
def test_a_network_that_cannot_run_is_refused_where_it_is_given(change, message):
    built = make_network("mlp", num_tasks=3, num_classes=2, input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match=message):
        gymnasium.make_vec(ID, num_envs=8, dataset=SPLITS, network=change(built))


@pytest.mark.parametrize(("name", "options"), [("mlp", {"task_input": True}), ("omniglot-convs", {"layers": 2})])
def test_so_is_one_for_fewer_tasks(name, options):
    data = routing_gym.tasks.synthetic_mtl(num_tasks=2, image_size=16, images_per_class=4)
    built = make_network(name, num_tasks=1, num_classes=3, input_shape=(1, 16, 16), width=4, **options)
    with pytest.raises(ValueError, match=r" has 2 tasks, the network was built with num_tasks=1"):
        gymnasium.make_vec(ID, num_envs=8, dataset=data, network=built)
