"""Training whoever decides while the blocks, or some of them, are frozen (`requires_grad_(False)`)."""

import pytest
import torch
from toys import small_env

from routing_gym.agents import make_agent, needs
from routing_gym.networks import RoutedMLP

AGENTS = ["wpl", "reinforce", "q-learning", "gumbel", "soft-mixture", "top-k", "random", "sb3:A2C"]


def learned(name, frozen):
    """An agent after one batch, and the blocks before and after it."""
    torch.manual_seed(0)
    network = RoutedMLP((1, 2, 3), 3, 3, width=4, layers=2)
    env = small_env(network, 12, **{**needs(name), "weight_decay": 0.1, "replay_batch": 12})
    for bank in network.banks[:frozen]:
        bank.requires_grad_(False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    agent = make_agent(name, env)
    agent.learn(env, 12)
    return agent, before, network.state_dict()


@pytest.mark.parametrize("name", AGENTS)
def test_whoever_decides_learns_the_same_and_what_is_frozen_stays(name):
    agent, _, _ = learned(name, 0)
    for frozen in (1, 2):
        other, before, after = learned(name, frozen)
        for number in range(2):
            for part in ("weight", "bias"):
                key = f"banks.{number}.{part}"
                assert torch.equal(before[key], after[key]) == (number < frozen), key
        assert other.env.trainer.instances == other.episodes or name == "sb3:A2C"
        if name == "sb3:A2C":
            continue  # it acts on what earlier batches have made of the blocks
        for key, value in agent.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value)
