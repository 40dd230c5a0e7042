"""A network namespace that has the loopback alone: Ray listens on every interface there is."""

import functools
import shlex
import shutil
import subprocess
import sys

import pytest


@functools.cache
def _to_be_had():
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode
    )


def python_in_namespace(script, *arguments, status=0):
    """Run a script, a path, in a namespace of its own; skip where there are none."""
    if not _to_be_had():
        pytest.skip("needs network namespaces (unshare --net)")
    command = shlex.join([sys.executable, *map(str, (script, *arguments))])
    inside = ["unshare", "--net", "sh", "-c", f"ip link set lo up && exec {command}"]
    done = subprocess.run(inside, capture_output=True, text=True, timeout=400)
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
