"""Training that stops half way and goes on from its checkpoint, held against training in one go."""

import warnings

from damage import same

from routing_gym.agents import Agent
from routing_gym.agents.base import checkpoint


def learned(agent, batches):
    """Metrics of some batches that an agent learns from, plain numbers by name."""
    seen = []
    agent.learn(agent.env, batches * agent.env.num_envs, seen.append)
    return [{name: value.item() for name, value in metrics.items()} for metrics in seen]


def assert_goes_on(make, batches, folder, other=None):
    """Train an agent for some batches and, loaded again, for some more, bit for bit as one that is trained for all.

    `make()` gives an agent, `other()` the environment that it is loaded into, by default one like its own. Returns the
    agent that was saved, the one that was loaded, trained, and the metrics of all batches.
    """
    whole, half = make(), make()
    course, first = learned(whole, sum(batches)), learned(half, batches[0])
    checkpoint._TOLD.discard(type(half))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "agent .*: no checkpoint holds")
        half.save(folder / "half.pt")
    again = Agent.load(folder / "half.pt", make().env if other is None else other())
    assert type(again) is type(half) and again.episodes == half.episodes
    assert first + learned(again, batches[1]) == course
    for one, two in ((whole, again), (whole.env.network, again.env.network)):
        assert same(one.state_dict(), two.state_dict())
    return half, again, course
