"""Processes that call one function after the other. Imports nothing that takes long, so that they begin at once."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection
from typing import Any

FORKED = sys.platform == "linux"
"""Whether they are forked from a server, Python's default from 3.14 on; elsewhere each imports everything itself."""
CONTEXT: Any = multiprocessing.get_context("forkserver" if FORKED else "spawn")


def begin_server() -> None:
    """Start the server that processes are forked from, if there is none; it imports while this process goes on."""
    if FORKED:
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload(["routing_gym.experiments.engine.preloaded"])
        forkserver.ensure_running()


class Worker:
    """A process beside this one.

    Attributes:
        process: The process.
        heard: When it last gave a sign of life, in seconds since the epoch; whoever gets to know sets it.
        hung: Whether it was killed for giving none.
    """

    def __init__(self) -> None:
        self.pipe, theirs = CONTEXT.Pipe()
        try:
            self.process = _started(theirs)
        except (EOFError, OSError):  # the server was killed, and is not quite dead: another takes its place
            time.sleep(1.0)
            self.process = _started(theirs)
        theirs.close()  # what is read ends with the process
        atexit.register(self.kill)  # else Python would wait for it
        self.heard, self.hung = time.time(), False

    def call(self, function: Callable[[Any], Any], argument: Any) -> None:
        """Let it call a function; `finished` tells when it has, or has died."""
        self.heard = time.time()
        with suppress(OSError):  # it has died
            self.pipe.send((function, argument))

    def result(self) -> Any:
        """What the function has returned; None if the process has died."""
        with suppress(EOFError, OSError):
            if self.pipe.poll():
                return self.pipe.recv()
        return None

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def finished(workers: Sequence[Worker], seconds: float) -> list[Worker]:
    """Workers that have a result, or have died; waits for the first, so long at most."""
    of = {thing: worker for worker in workers for thing in (worker.pipe, worker.process.sentinel)}
    return list(dict.fromkeys(of[thing] for thing in connection.wait(list(of), seconds)))


def _started(pipe: connection.Connection) -> Any:
    process = CONTEXT.Process(target=_work, args=(pipe, dict(os.environ)))
    process.start()
    return process


def _work(pipe: connection.Connection, environment: dict[str, str]) -> None:
    """Call what comes; end with the process that started this one, and leave a terminal's Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)  # as it is now: the server may be older
    gc.enable()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()

    from routing_gym.agents import load_installed_agents
    from routing_gym.experiments.engine.machine import keep_freed_memory

    load_installed_agents()
    keep_freed_memory()
    with suppress(EOFError, OSError):  # the other end is gone
        while True:
            function, argument = pipe.recv()
            pipe.send(function(argument))
