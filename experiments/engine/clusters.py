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
from routing_gym.experiments.engine.jobs import Job, Outcome, failed, perform_elsewhere
from routing_gym.experiments.engine.launchers import ATTEMPTS, Launcher
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
    """Module of an extra, or a `UsageError` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"--launcher {name} needs its extra: pip install 'routing-gym[{name}]' ({error})") from error


def _outcomes(
    waiting: dict[Any, Job],
    done: Callable[[list[Any]], list[Any]],
    outcomes: Callable[[Any, Job], list[Outcome]],
    display: Display,
) -> Iterator[Outcome]:
    """Outcomes of jobs by how the cluster knows them, which are taken away as they are done."""
    for job in waiting.values():
        display.begin(job.title, job.first.training.epochs)
    while waiting:
        for known in done(list(waiting)):
            found = outcomes(known, waiting[known])
            display.end(waiting.pop(known).title)
            yield from found
        for job in waiting.values():  # whose folders are shared
            if progress := read_progress(job.first.folder / PROGRESS):
                display.epoch(job.title, progress)


class Submitit(Launcher):
    """A SLURM job for each of ours, submitted as one array; without SLURM, a process for each on this machine.

    Runs write into a folder that all machines share. A job that is preempted or lost fails; `--resume` goes on with it.

    Args:
        folder: For job files and their logs.
        options: Of the executor: `cluster`, and what `update_parameters` takes (`slurm_partition`, `timeout_min`, ...).
    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.library, self.folder, self.options = _library("submitit"), folder, options

    def launch(self, jobs: Sequence[Job], display: Display) -> Iterator[Outcome]:
        """Perform jobs; see `Launcher`."""
        options = dict(self.options)
        try:
            cluster = options.pop("cluster", None)
            executor = self.library.AutoExecutor(writable_folder(self.folder), cluster=cluster)
            if cluster is None and executor.cluster != "slurm":
                display.note("There is no SLURM here: the runs are made on this machine, all at once")
            threads = max(job.first.training.threads for job in jobs)
            executor.update_parameters(**{"cpus_per_task": threads, "name": "routing-gym", **options})
            with executor.batch():
                submitted = [executor.submit(perform_elsewhere, job) for job in jobs]
        except (TypeError, ValueError, NameError, RuntimeError) as error:
            raise UsageError(f"--launcher-options: {one_line(error)}") from error

        def done(known: list[Any]) -> list[Any]:
            time.sleep(POLL_SECONDS)
            return [of for of in known if of.done()]

        def outcomes(known: Any, job: Job) -> list[Outcome]:
            error = known.exception()
            return known.result() if error is None else [failed(run, one_line(error)) for run in job.runs]

        waiting = dict(zip(submitted, jobs, strict=True))
        try:
            yield from _outcomes(waiting, done, outcomes, display)
        finally:
            for known in waiting:
                known.cancel()


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

    def launch(self, jobs: Sequence[Job], display: Display) -> Iterator[Outcome]:
        """Perform jobs, of one run each; see `Launcher`."""
        ray, lost = self.library, (ConnectionError, self.library.exceptions.RaySystemError)
        if not jobs:
            return
        if not ray.is_initialized():
            self.connected = True
            try:
                ray.init(address=self.address, log_to_driver=False, include_dashboard=False, logging_level="error")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(f"--address {self.address}: no cluster answers there ({one_line(error)})") from error
        task, token = ray.remote(_perform_and_send), TOKEN.format(secrets.token_hex(8))
        waiting: dict[Any, Job] = {}
        try:
            for job in jobs:
                run = job.first
                write_text(writable_folder(run.folder) / token, "")
                options = {"num_cpus": run.training.threads, "name": run.title, **self.options}
                plugins = tuple(path.resolve() for path in run.plugins)  # as other working directories know them
                away = dataclasses.replace(run, folder=run.folder.resolve(), plugins=plugins)
                waiting[task.options(max_retries=ATTEMPTS - 1, **options).remote(away, token)] = job
            self.heard = time.monotonic()
            yield from _outcomes(waiting, self._done, self._outcome, display)
        except lost as error:
            for job in waiting.values():
                yield failed(job.first, f"the cluster is gone ({one_line(error)})")
        finally:
            if self._answers():
                for known in waiting:
                    with suppress(Exception):
                        ray.cancel(known)
            for job in jobs:
                (job.first.folder / token).unlink(missing_ok=True)

    def _done(self, known: list[Any]) -> list[Any]:
        done, _ = self.library.wait(known, timeout=POLL_SECONDS)
        if self._answers():
            self.heard = time.monotonic()
        elif time.monotonic() - self.heard > GONE_SECONDS:  # Ray would wait for a minute, then end this process
            raise ConnectionError(f"no answer for {GONE_SECONDS:g} s")
        return done

    def _outcome(self, known: Any, job: Job) -> list[Outcome]:
        run = job.first
        try:
            outcome, files = self.library.get(known)
        except self.library.exceptions.RaySystemError:
            raise
        except self.library.exceptions.RayError as error:
            return [failed(run, one_line(error))]
        for name, content in files.items():  # those of a folder that is not shared
            write_atomically(run.folder / name, lambda out, content=content: out.write(content))  # type: ignore[misc]
        return [dataclasses.replace(outcome, run=run)]

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
    (outcome,) = perform_elsewhere(Job((run,)))
    files = [] if shared or not run.folder.is_dir() else [path for path in run.folder.iterdir() if path.is_file()]
    return outcome, {path.name: path.read_bytes() for path in files if path.name != ".lock"}
