"""What commands do to the process they run in."""

import os
import platform
import subprocess
import sys

import pytest

FILL = """
import resource, torch
from routing_gym.experiments.cli import main
from routing_gym.experiments.machine import give_back_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(25_000_000)  # 100 MB, 24 400 pages of the usual size; freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(*[faults() for _ in range(4)])
main(["list", "wpl"])
print(*[faults() for _ in range(4)])
give_back_freed_memory()
print(faults())
"""


def pages_touched_anew(**environment):
    """Return how many pages were new each time memory was asked for: before a command, after it, after giving back."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FILL], env={**known, **environment}, capture_output=True, text=True, check=True
    )
    before, *_, after, then = done.stdout.splitlines()
    return [[int(number) for number in line.split()] for line in (before, after, then)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_command_keeps_what_is_freed_for_what_comes_next():
    given_back, kept, anew = pages_touched_anew()
    assert 4 * kept[-1] < min(given_back)  # once there is a piece that is large enough
    assert 4 * anew[0] > min(given_back)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_unless_the_user_has_said_what_to_do():
    before, after, _ = pages_touched_anew(MALLOC_TOP_PAD_="131072")
    assert 4 * min(after) > min(before)
