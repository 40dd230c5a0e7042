"""Parts of what environments do, for tests that look inside: one decision of every row, the loss of a batch."""

import dataclasses

from routing_gym.networks import accept


def step(network, state, action):
    """Carry every row on by an action; exits pile up from step to step."""
    after = network.advance(state, accept(network, state, action).action)
    return dataclasses.replace(after, exits=state.exits + after.exits)


def block_loss(env):
    """The loss that `env.train_blocks` takes a step on, with graph."""
    return env.trainer.optimization.loss(env.batch.exits, env.batch.label, env.batch.state.task)
