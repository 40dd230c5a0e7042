"""First weights come from their seed, whatever other threads build meanwhile."""

import sys
import threading

import gymnasium
import pytest
import torch

from routing_gym.agents import make_agent
from routing_gym.blocks import first_weights


def built(seed):
    """An environment's network and an agent."""
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=4, seed=seed, num_blocks=8, images_per_class=6)
    agent = make_agent("reinforce", env, representation="mlp", seed=seed)
    return torch.cat([p.detach().flatten() for part in (env.unwrapped.network, agent) for p in part.parameters()])


def drawn(seed):
    """Many numbers, one by one."""
    with first_weights(seed):
        return torch.cat([torch.rand(1) for _ in range(50)])


@pytest.mark.parametrize(("make", "times"), [(built, 2), (drawn, 60)])
def test_what_several_threads_draw_at_once_is_of_their_seeds(make, times):
    alone, before = [make(seed) for seed in (0, 1)], torch.get_rng_state()
    together, start, switch = {}, threading.Barrier(2), sys.getswitchinterval()

    def run(seed):
        start.wait()
        together[seed] = [make(seed) for _ in range(times)]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (0, 1)]
    sys.setswitchinterval(1e-6)  # they take turns as often as they can
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    for seed, expected in enumerate(alone):
        assert all(torch.equal(got, expected) for got in together[seed])
    assert torch.equal(torch.get_rng_state(), before)


def test_they_may_be_drawn_while_others_are():
    with first_weights(0):
        first = torch.rand(3)
        with first_weights(1):
            torch.rand(3)
        second = torch.rand(3)
    with first_weights(0):
        assert torch.equal(torch.rand(6), torch.cat([first, second]))
