"""Runs on many machines: Ray and SLURM."""

from __future__ import annotations

import dataclasses
import importlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from routing_gym.experiments.engine.callbacks import PROGRESS
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import Display, one_line
from routing_gym.experiments.engine.launchers import ATTEMPTS, Launcher, Outcome, failed, perform_elsewhere
from routing_gym.experiments.engine.records import read_progress, write_text
from routing_gym.experiments.engine.run import Run
from routing_gym.experiments.engine.settings import writable_folder
from routing_gym.files import write_atomically

POLL_SECONDS = 0.5
GONE_SECONDS = 20.0
"""Seconds without an answer after which a cluster counts as gone."""
TOKEN = ".shared-{}"
"""File by which a machine knows whether the folder it writes to is the one that is waited at."""


def _library(name: str) -> Any:
    """Module of an extra.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"--launcher {name} needs its extra: pip install 'routing-gym[{name}]' ({error})") from error


def _outcomes(
    waiting: dict[Any, Run],
    done: Callable[[list[Any]], list[Any]],
    outcome: Callable[[Any, Run], Outcome],
    display: Display,
) -> Iterator[Outcome]:
    """Outcomes of runs by their jobs, which are taken away as they are done."""
    for run in waiting.values():
        display.begin(run.title, run.training.epochs)
    while waiting:
        for job in done(list(waiting)):
            found = outcome(job, waiting[job])
            display.end(waiting.pop(job).title)
            yield found
        for run in waiting.values():  # whose folders are shared
            if progress := read_progress(run.folder / PROGRESS):
                display.epoch(run.title, progress)


class Submitit(Launcher):
    """A SLURM job per run, submitted as one array; without SLURM, a process per run on this machine.

    Runs write into a folder that all machines share. A job that is preempted or lost fails; `--resume` goes on with it.

    Args:
        folder: For job files and their logs.
        options: Of the executor: `cluster`, and what `update_parameters` takes (`slurm_partition`, `timeout_min`, ...).
    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.library, self.folder, self.options = _library("submitit"), folder, options

    def launch(self, runs: Sequence[Run], display: Display) -> Iterator[Outcome]:
        """Perform runs; see `Launcher`."""
        options = dict(self.options)
        try:
            cluster = options.pop("cluster", None)
            executor = self.library.AutoExecutor(writable_folder(self.folder), cluster=cluster)
            if cluster is None and executor.cluster != "slurm":
                display.note("There is no SLURM here: the runs are made on this machine, all at once")
            threads = max(run.training.threads for run in runs)
            executor.update_parameters(**{"cpus_per_task": threads, "name": "routing-gym", **options})
            with executor.batch():
                submitted = [executor.submit(perform_elsewhere, run) for run in runs]
        except (TypeError, ValueError, NameError, RuntimeError) as error:
            raise UsageError(f"--launcher-options: {one_line(error)}") from error

        def done(jobs: list[Any]) -> list[Any]:
            time.sleep(POLL_SECONDS)
            return [job for job in jobs if job.done()]

        def outcome(job: Any, run: Run) -> Outcome:
            error = job.exception()
            return job.result() if error is None else failed(run, one_line(error))

        waiting = dict(zip(submitted, runs, strict=True))
        try:
            yield from _outcomes(waiting, done, outcome, display)
        finally:
            for job in waiting:
                job.cancel()


class Ray(Launcher):
    """A Ray task per run.

    Where the machines share the folder, runs go on from their checkpoints when a machine is lost; where they do not,
    runs begin anew elsewhere and their files are fetched when they are finished.

    Args:
        address: Of an existing cluster; None starts one on this machine.
        options: `num_cpus`, processors a run takes, as many as it has threads by default; `num_gpus`, parts of one too.
    """

    def __init__(self, address: str | None, options: dict[str, Any]) -> None:
        if (address or "").startswith("ray://"):
            raise UsageError(f"--address takes auto or HOST:PORT, on a machine of the cluster, got {address}")
        for name, value in options.items():
            if name not in ("num_cpus", "num_gpus"):
                raise UsageError(f"--launcher-options of ray are num_cpus and num_gpus, got {name!r}")
            if not isinstance(value, int | float) or value < 0:
                raise UsageError(f"--launcher-options {name} must be a number of at least 0, got {value!r}")
        self.library, self.address, self.options = _library("ray"), address, options
        self.connected, self.heard = False, 0.0

    def launch(self, runs: Sequence[Run], display: Display) -> Iterator[Outcome]:
        """Perform runs; see `Launcher`."""
        ray, lost = self.library, (ConnectionError, self.library.exceptions.RaySystemError)
        if not runs:
            return
        if not ray.is_initialized():
            self.connected = True
            try:
                ray.init(address=self.address, log_to_driver=False, include_dashboard=False, logging_level="error")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(f"--address {self.address}: no cluster answers there ({one_line(error)})") from error
        task, token = ray.remote(_perform_and_send), TOKEN.format(secrets.token_hex(8))
        waiting: dict[Any, Run] = {}
        try:
            for run in runs:
                write_text(writable_folder(run.folder) / token, "")
                options = {"num_cpus": run.training.threads, "name": run.title, **self.options}
                plugins = tuple(path.resolve() for path in run.plugins)  # as other working directories know them
                away = dataclasses.replace(run, folder=run.folder.resolve(), plugins=plugins)
                waiting[task.options(max_retries=ATTEMPTS - 1, **options).remote(away, token)] = run
            self.heard = time.monotonic()
            yield from _outcomes(waiting, self._done, self._outcome, display)
        except lost as error:
            for run in waiting.values():
                yield failed(run, f"the cluster is gone ({one_line(error)})")
        finally:
            if self._answers():
                for job in waiting:
                    with suppress(Exception):
                        ray.cancel(job)
            for run in runs:
                (run.folder / token).unlink(missing_ok=True)

    def _done(self, jobs: list[Any]) -> list[Any]:
        done, _ = self.library.wait(jobs, timeout=POLL_SECONDS)
        if self._answers():
            self.heard = time.monotonic()
        elif time.monotonic() - self.heard > GONE_SECONDS:  # Ray would wait for a minute, then end this process
            raise ConnectionError(f"no answer for {GONE_SECONDS:g} s")
        return done

    def _outcome(self, job: Any, run: Run) -> Outcome:
        try:
            outcome, files = self.library.get(job)
        except self.library.exceptions.RaySystemError:
            raise
        except self.library.exceptions.RayError as error:
            return failed(run, one_line(error))
        for name, content in files.items():  # those of a folder that is not shared
            write_atomically(run.folder / name, lambda out, content=content: out.write(content))  # type: ignore[misc]
        return dataclasses.replace(outcome, run=run)

    def _answers(self) -> bool:
        """Whether somebody listens where the cluster should."""
        host, _, port = self.library.get_runtime_context().gcs_address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError:
            return False
        return True

    def end(self) -> None:
        """Leave the cluster, if it was joined here."""
        if self.connected:
            self.library.shutdown()


def _perform_and_send(run: Run, token: str) -> tuple[Outcome, dict[str, bytes]]:
    """Perform a run on another machine; its files come along where the folder is not shared."""
    shared = (run.folder / token).exists()
    outcome = perform_elsewhere(run)
    files = [] if shared or not run.folder.is_dir() else [path for path in run.folder.iterdir() if path.is_file()]
    return outcome, {path.name: path.read_bytes() for path in files if path.name != ".lock"}
