"""On a GPU: the same results as on the CPU, nothing waits for the host, and bad actions are caught once per batch."""

import copy

import pytest
import torch
from toys import CLASSES

from routing_gym.agents import make_agent, train_batch
from routing_gym.envs import RoutingVectorEnv, TrainingDivergedError
from routing_gym.networks import RoutedMLP
from routing_gym.tasks import synthetic_mtl
from routing_gym.testing import check_vector_env

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def env_on(device, network, num_envs=64, **options):
    data = synthetic_mtl(num_tasks=3, num_classes=CLASSES, image_size=6, images_per_class=20)
    return RoutingVectorEnv(network, data, num_envs, device=device, **options)


@pytest.mark.parametrize("name", ["task-specific-all", "shared"])  # the second leaves blocks without a row
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 3e-2)])
def test_training_is_that_of_the_cpu(precision, tolerance, name):
    torch.manual_seed(0)
    network = RoutedMLP((1, 6, 6), CLASSES, 3, width=16)
    losses = []
    for device, own in (("cpu", network), ("cuda", copy.deepcopy(network))):
        options = {"optimizer": "sgd", "learning_rate": 0.1, "precision": precision}
        env = env_on(device, own, autoreset_mode="disabled", **options)
        agent = make_agent(name, env)
        losses.append([train_batch(agent, env)[1].item() for _ in range(10)])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_does_not_wait_for_the_device(precision):
    network = RoutedMLP((1, 6, 6), CLASSES, 3, width=16)
    env = env_on("cuda", network, autoreset_mode="disabled", precision=precision)
    agent = make_agent("wpl", env)
    train_batch(agent, env)
    env.reset()  # hands the row numbers over
    torch.cuda.set_sync_debug_mode("error")
    try:
        while env.state.waiting:
            env.step(torch.zeros(64, dtype=torch.int64, device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    env.train_blocks()


def test_a_bad_action_is_caught_before_the_optimiser_steps():
    env = env_on("cuda", RoutedMLP((1, 6, 6), CLASSES, 3, width=16), autoreset_mode="disabled")
    before = copy.deepcopy(env.network.state_dict())
    env.reset()
    env.step(torch.full((64,), 7, device="cuda"))
    env.step(torch.zeros(64, dtype=torch.int64, device="cuda"))
    env.step(torch.zeros(64, dtype=torch.int64, device="cuda"))
    with pytest.raises(TrainingDivergedError, match="out of range"):
        env.train_blocks()
    assert all(torch.equal(before[key], value) for key, value in env.network.state_dict().items())


def test_the_checker_passes():
    check_vector_env(env_on("cuda", RoutedMLP((1, 6, 6), CLASSES, 3, width=16), 5, validate=True))
