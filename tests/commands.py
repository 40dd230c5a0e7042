"""Commands of `routing-gym`, called in this process."""

import sys
from contextlib import contextmanager

from routing_gym.agents import AGENTS, register_agent
from routing_gym.experiments.cli import main

SMALL = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "2", "--batch-size", "256"]
PER_EPOCH = 3
"""Batches of 256 in an epoch of SyntheticMTL."""


def run(*arguments):
    """Exit status of a command line; its parts may be paths and numbers."""
    return main([str(argument) for argument in arguments])


def forget_plugins(stem=""):
    """Let plug-ins whose file has a name be run anew."""
    for name in [name for name in sys.modules if name.startswith(f"routing_gym_plugin_{stem}")]:
        del sys.modules[name]


@contextmanager
def registered(**classes):
    for name, cls in classes.items():
        register_agent(name, cls)
    try:
        yield
    finally:
        for name in classes:
            del AGENTS[name]
