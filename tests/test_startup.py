"""What is imported when, and that the ids are there however libraries are imported."""

import subprocess
import sys

import pytest

from routing_gym.experiments.cli import COMMANDS, command_class
from routing_gym.experiments.engine.command import Command

HEAVY = "{'torch', 'gymnasium', 'stable_baselines3', 'matplotlib', 'scipy', 'sklearn', 'pandas'} & set(sys.modules)"


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


FORKED = """
import os, sys, torch
for code in sys.argv[1:]:
    if not (child := os.fork()):
        exec(code)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, code
"""


def each(*codes):
    """Run every piece of code where nothing but PyTorch, which takes longest, has been imported."""
    done = subprocess.run([sys.executable, "-c", FORKED, *codes], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    said = python(f"import sys; from routing_gym.experiments.cli import main; main({arguments}); print({HEAVY})")
    assert said.endswith("set()\n") and "routing-gym" in said


def test_the_library_imports_nothing_heavy_before_it_is_used():
    assert python(f"import sys, routing_gym; print({HEAVY}); routing_gym.evaluate; print('torch' in sys.modules)") == (
        "set()\nTrue\n"
    )


MADE = "gymnasium.make('routing_gym/SyntheticMTL-v0').reset(seed=0)"


def test_ids_are_known_in_either_order():
    each(f"import routing_gym, gymnasium; {MADE}", f"import gymnasium, routing_gym; {MADE}")


def test_whatever_is_used_first_ids_are_known():
    names = ["env_ids", "register_env", "make_network", "MultiTaskDataset", "testing"]
    each(*(f"import routing_gym; routing_gym.{first}; import gymnasium; {MADE}" for first in names))


def test_games_are_known_in_either_order():
    pytest.importorskip("pettingzoo")
    made = "pettingzoo.make('parallel', 'routing_gym/SyntheticMTL-v0').reset(seed=0)"
    each(f"import routing_gym, pettingzoo; {made}", f"import pettingzoo, routing_gym; {made}")


def test_every_public_name_is_there():
    python("from routing_gym import *; import routing_gym; assert set(routing_gym.__all__) <= set(dir())")
    said = python("import routing_gym\ntry: routing_gym.evalute\nexcept AttributeError as error: print(error)")
    assert said == "module 'routing_gym' has no attribute 'evalute'\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_help_says(name):
    assert issubclass(command_class(name), Command)
