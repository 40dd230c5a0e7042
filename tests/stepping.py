"""One decision of every row of a state, checked: what `drive` does, for tests that look at states."""

import dataclasses

from routing_gym.networks import accept


def step(network, state, action):
    """Carry every row on by an action; exits pile up from step to step."""
    after = network.advance(state, accept(network, state, action).action)
    return dataclasses.replace(after, exits=state.exits + after.exits)
