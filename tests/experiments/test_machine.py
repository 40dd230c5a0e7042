"""What commands do to the process they run in."""

import os
import platform
import subprocess
import sys

import pytest

FILL = """
import os, resource, sys, torch
import routing_gym.agents
from routing_gym.experiments.cli import main
print("imported", *sys.modules)
from routing_gym.experiments.engine.machine import give_back_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(10_000_000)  # 40 MB, 9 800 pages of the usual size; freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print("before", *[faults() for _ in range(4)])
os.environ["MALLOC_TOP_PAD_"] = "131072"
main(["list", "wpl"])
print("told", *[faults() for _ in range(4)])
del os.environ["MALLOC_TOP_PAD_"]
main(["list", "wpl"])
print("kept", *[faults() for _ in range(4)])
give_back_freed_memory()
print(faults())
"""


@pytest.fixture(scope="module")
def said():
    """What the code above prints in an interpreter of its own."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", FILL], env=known, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def test_nothing_imports_stable_baselines3_before_it_is_needed(said):
    (imported,) = [line for line in said if line[0] == "imported"]
    assert "torch" in imported and not {"stable_baselines3", "sb3_contrib", "pandas"} & set(imported)


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_command_keeps_what_is_freed_unless_the_user_has_said_what_to_do(said):
    """Pages that are new each time memory is asked for: before and after a command, and after giving back."""
    (told,) = [[int(number) for number in line[1:]] for line in said if line[0] == "told"]
    (kept,) = [[int(number) for number in line[1:]] for line in said if line[0] == "kept"]
    (before,) = [[int(number) for number in line[1:]] for line in said if line[0] == "before"]
    given_back, anew = min(before), int(said[-1][0])
    assert 4 * min(told) > given_back
    assert 4 * kept[-1] < given_back  # once there is a piece that is large enough
    assert 4 * anew > given_back
