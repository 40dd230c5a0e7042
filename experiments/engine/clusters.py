"""Runs on many machines: Ray and SLURM."""

from __future__ import annotations

import dataclasses
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from routing_gym.experiments.engine.callbacks import PROGRESS
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import Display, one_line
from routing_gym.experiments.engine.launchers import ATTEMPTS, Launcher, Outcome, kept_in, perform_elsewhere
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
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"--launcher {name} needs its extra: pip install 'routing-gym[{name}]' ({error})") from error


@dataclasses.dataclass
class Submitit(Launcher):
    """A SLURM job per run, submitted as one array; without SLURM, a process per run on this machine.

    Runs write into a folder that all machines share. A job that is preempted or lost fails; `--resume` goes on with it.

    Attributes:
        folder: For job files and their logs.
        options: Of the executor: `cluster`, and what `update_parameters` takes (`slurm_partition`, `timeout_min`, ...).
    """

    folder: Path
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.library = _library("submitit")

    def launch(self, runs: Sequence[Run], display: Display) -> Iterator[Outcome]:
        """Perform runs; see `Launcher`."""
        options = dict(self.options)
        try:
            executor = self.library.AutoExecutor(writable_folder(self.folder), cluster=options.pop("cluster", None))
            threads = max(run.training.threads for run in runs)
            executor.update_parameters(**{"cpus_per_task": threads, "name": "routing-gym", **options})
            with executor.batch():
                submitted = [executor.submit(perform_elsewhere, run) for run in runs]
        except (TypeError, ValueError, NameError, RuntimeError) as error:
            raise UsageError(f"--launcher-options: {one_line(error)}") from error
        waiting = dict(zip(submitted, runs, strict=True))
        try:
            for run in runs:
                display.begin(run.title, run.training.epochs)
            while waiting:
                for job in [job for job in waiting if job.done()]:
                    run = waiting.pop(job)
                    display.end(run.title)
                    if (failed := job.exception()) is None:
                        yield job.result()
                    else:
                        yield Outcome(run, None, f"{run.title}: {one_line(failed)}; {kept_in(run.folder)}")
                _show(list(waiting.values()), display)
                time.sleep(POLL_SECONDS)
        finally:
            for job in waiting:
                job.cancel()


@dataclasses.dataclass
class Ray(Launcher):
    """A Ray task per run.

    Where the machines share the folder, runs go on from their checkpoints when a machine is lost; where they do not,
    runs begin anew elsewhere and their files are fetched when they are finished.

    Attributes:
        address: Of an existing cluster; None starts one on this machine.
        num_cpus: Processors a run takes; as many as it has threads by default.
        num_gpus: GPUs a run takes, parts of one too.
    """

    address: str | None = None
    num_cpus: float | None = None
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        self.library = _library("ray")
        self.connected = False

    def launch(self, runs: Sequence[Run], display: Display) -> Iterator[Outcome]:
        """Perform runs; see `Launcher`."""
        ray = self.library
        if not runs:
            return
        if not ray.is_initialized():
            self.connected = True
            try:
                ray.init(address=self.address, log_to_driver=False, include_dashboard=False, logging_level="error")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(f"--address {self.address}: no cluster answers there ({one_line(error)})") from error
        task = ray.remote(_perform_and_send)
        tokens = {}
        waiting: dict[Any, Run] = {}
        try:
            for run in runs:
                tokens[run.folder] = writable_folder(run.folder) / TOKEN.format(secrets.token_hex(8))
                write_text(tokens[run.folder], "")
                cpus = run.training.threads if self.num_cpus is None else self.num_cpus
                options = {"num_cpus": cpus, "num_gpus": self.num_gpus, "max_retries": ATTEMPTS - 1, "name": run.title}
                waiting[task.options(**options).remote(_absolute(run), tokens[run.folder].name)] = run
                display.begin(run.title, run.training.epochs)
            heard = time.monotonic()
            while waiting:
                done, _ = ray.wait(list(waiting), timeout=POLL_SECONDS)
                if _answers(ray.get_runtime_context().gcs_address):
                    heard = time.monotonic()
                elif time.monotonic() - heard > GONE_SECONDS:  # Ray would wait for a minute, then end this process
                    raise ConnectionError(f"no answer for {GONE_SECONDS:g} s")
                _show(list(waiting.values()), display)
                for reference in done:
                    run = waiting.pop(reference)
                    display.end(run.title)
                    yield self._fetched(reference, run)
        except (ConnectionError, ray.exceptions.RaySystemError) as error:
            for run in waiting.values():
                yield Outcome(run, None, f"{run.title}: the cluster is gone ({one_line(error)}); {kept_in(run.folder)}")
        finally:
            if _answers(ray.get_runtime_context().gcs_address):
                for reference in waiting:
                    with suppress(Exception):
                        ray.cancel(reference)
            for token in tokens.values():
                token.unlink(missing_ok=True)

    def end(self) -> None:
        """Leave the cluster, if it was joined here."""
        if self.connected:
            self.library.shutdown()

    def _fetched(self, reference: Any, run: Run) -> Outcome:
        """Outcome of a task that is done, its files written where they were not shared."""
        try:
            outcome, files = self.library.get(reference)
        except self.library.exceptions.RayError as error:
            if isinstance(error, self.library.exceptions.RaySystemError):
                raise
            return Outcome(run, None, f"{run.title}: {one_line(error)}; {kept_in(run.folder)}")
        for name, content in files.items():
            write_atomically(run.folder / name, lambda out, content=content: out.write(content))  # type: ignore[misc]
        return dataclasses.replace(outcome, run=run)


def _answers(address: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def _absolute(run: Run) -> Run:
    """A run as it is known from other working directories."""
    plugins = tuple(path.resolve() for path in run.plugins)
    return dataclasses.replace(run, folder=run.folder.resolve(), plugins=plugins)


def _perform_and_send(run: Run, token: str) -> tuple[Outcome, dict[str, bytes]]:
    """Perform a run on another machine; its files come along where the folder is not shared."""
    shared = (run.folder / token).exists()
    outcome = perform_elsewhere(run)
    files = [] if shared or not run.folder.is_dir() else [path for path in run.folder.iterdir() if path.is_file()]
    return outcome, {path.name: path.read_bytes() for path in files if path.name != ".lock"}


def _show(runs: Sequence[Run], display: Display) -> None:
    """Show how far runs are whose folders are shared."""
    for run in runs:
        if progress := read_progress(run.folder / PROGRESS):
            display.epoch(run.title, progress)
