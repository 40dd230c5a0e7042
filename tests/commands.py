"""Commands of `routing-gym`, called in this process."""

from routing_gym.experiments.cli import main


def run(*arguments):
    """Exit status of a command line; its parts may be paths and numbers."""
    return main([str(argument) for argument in arguments])
