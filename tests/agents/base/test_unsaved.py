"""What an agent of one's own has learned and no checkpoint holds is told of."""

import math
import random
import re
import warnings

import gymnasium
import numpy as np
import pytest
import torch

from routing_gym.agents import Shared, make_agent, needs, register_agent

ID = "routing_gym/SyntheticMTL-v0"


class Forgetful(Shared):
    """Holds what it has learned in every way that no checkpoint sees, and some that lose nothing."""

    scratch = ("last",)

    def __init__(self, env, config=None):
        super().__init__(env, config)
        self.tensor, self.array, self.counts, self.seen = torch.zeros(3), np.zeros(3), {0: 0}, []
        self.draws, self.chance, self.noise = np.random.default_rng(0), random.Random(0), torch.Generator()
        self.register_buffer("aside", torch.zeros(3), persistent=False)
        self.register_buffer("kept", torch.zeros(3))
        self.total, self.last, self.unset = 0, None, None
        self.constant, self.half = torch.full((2,), math.nan), torch.zeros(2, dtype=torch.bfloat16)

    def update(self, trajectory):
        self.tensor, self.array = self.tensor + 1, self.array + self.draws.random()
        self.counts[0] += 1 + self.chance.random()
        self.seen.append(trajectory.task)
        self.noise.manual_seed(len(self.seen))
        self.aside += 1
        self.kept += 1
        self.half = self.half + 1
        self.total, self.last = self.total + 1, trajectory.task


def test_a_constructor_that_forgets_ours_is_told_so():
    class Bare(Shared):
        def __init__(self, env, config=None):
            self.value = 3

    env = gymnasium.make_vec(ID, num_envs=8, **needs("shared"))
    with pytest.raises(ValueError, match=r"Bare: call super\(\).__init__\(env, config\) first in its __init__"):
        Bare(env).learn(env, 8)


LOST = ["tensor", "array", "counts", "seen", "draws", "chance", "noise", "aside", "total", "half"]


def test_what_is_learned_outside_a_checkpoint_is_told_of_once(tmp_path):
    register_agent("forgetful", Forgetful)
    agent = make_agent("forgetful", gymnasium.make_vec(ID, num_envs=8, **needs("forgetful")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.save(tmp_path / "agent.pt")  # nothing has been learned
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    agent.learn(agent.env, 16)
    with pytest.warns(UserWarning, match="'forgetful': no checkpoint holds the state of self.tensor") as warned:
        agent.save(tmp_path / "agent.pt")
        agent.save(tmp_path / "agent.pt")
    assert len(warned) == 1
    assert sorted(re.findall(r"self\.(\w+) \(", str(warned[0].message))) == sorted(LOST)
    assert torch.get_rng_state().equal(before[0]) and (np.random.get_state()[1] == before[1]).all()
