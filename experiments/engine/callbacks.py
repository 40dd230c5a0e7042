"""Callbacks: what is done beside training, by a run's batches and epochs; loggers are callbacks, too."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from routing_gym.agents import Agent
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import one_line
from routing_gym.experiments.engine.metrics import METRICS, Record
from routing_gym.experiments.engine.records import Curve, flat_options, write_text


@dataclasses.dataclass
class Session:
    """A run under way.

    Attributes:
        title: What it is called, `wpl, seed 0` say.
        agent: The agent; its environment holds the blocks. Another object once the best checkpoint has been loaded.
        folder: The run's own.
        epochs: How many epochs there should be in the end.
        curve: The epochs so far, see `Curve`.
        config: Resolved configuration, plain values by name.
    """

    title: str
    agent: Agent
    folder: Path
    epochs: int
    curve: Curve
    config: Mapping[str, Any]

    @property
    def last(self) -> dict[str, float]:
        """Numbers of the last epoch by name, those that are single numbers."""
        return {
            name: column[-1]
            for name, column in self.curve.items()
            if isinstance(column, list) and column and isinstance(column[-1], int | float)
        }


class Callback:
    """Five hooks, which do nothing unless they are overridden; what they raise ends the run.

    A run that was interrupted begins again at its last checkpoint, so that an epoch may come a second time.

    Attributes:
        library: What it imports, by the name that `pip install` takes; nothing by default.
    """

    library: ClassVar[str] = ""

    def on_begin(self, session: Session) -> None:
        """Before the first batch; `session.curve` holds the epochs of a run that is gone on with."""

    def on_batch(self, session: Session, metrics: Mapping[str, Tensor]) -> None:
        """After every batch, with its `loss`, `accuracy`, `reward`, `macs` and the agent's own, 0-dimensional tensors.

        To read one waits for a GPU.
        """

    def on_epoch(self, session: Session, metrics: Mapping[str, float]) -> None:
        """After every epoch, before its checkpoint: means of what batches reported, and `session.curve`."""

    def on_end(self, session: Session, record: Record) -> None:
        """When the run is finished, with its record."""

    def on_failure(self, session: Session, error: BaseException) -> None:
        """When it ends otherwise, by an error or a signal: also one in the callback's own `on_begin` or `on_end`."""


class CallbackError(Exception):
    """What a callback raised; the message names it and the hook."""


def tell(callback: Callback, hook: str, session: Session, *what: Any) -> None:
    """Call a hook.

    Raises:
        CallbackError: It raises something.
    """
    try:
        getattr(callback, hook)(session, *what)
    except (Exception, SystemExit) as error:
        name = next((name for name, made in CALLBACKS.items() if made is type(callback)), type(callback).__name__)
        raise CallbackError(f"callback {name}, {hook}: {one_line(error)}") from error


class TensorBoard(Callback):
    """TensorBoard events in the run's folder."""

    writer: Any = None

    def on_begin(self, session: Session) -> None:
        """Open the writer; what is there of later epochs is hidden."""
        from torch.utils.tensorboard import SummaryWriter  # takes a third of a second to import

        self.writer = SummaryWriter(str(session.folder), purge_step=len(session.curve["epoch"]) + 1)

    def on_epoch(self, session: Session, metrics: Mapping[str, float]) -> None:
        """Write the numbers of an epoch."""
        epoch, split = session.curve["epoch"][-1], session.curve["judged_on"]
        for name, value in metrics.items():
            self.writer.add_scalar(f"train/{name}", value, epoch)
        for metric in METRICS.values():
            if metric.curve and (key := metric.key("validation")) in session.last:
                self.writer.add_scalar(f"{split}/{metric.name}_by_epoch", session.last[key], epoch)
        self.writer.flush()  # a kill loses no epoch that has a checkpoint

    def on_end(self, session: Session, record: Record) -> None:
        """Write the numbers in the end."""
        for metric in METRICS.values():
            if (value := metric.value(record)) is not None:
                self.writer.add_scalar(f"{record['asked']['split']}/{metric.name}", value, record["epochs"])
        self.writer.close()

    def on_failure(self, session: Session, error: BaseException) -> None:
        """Close the writer."""
        if self.writer is not None:
            self.writer.close()


TABLES = ("exits", "use")
"""Columns of a curve that are no numbers."""


class Csv(Callback):
    """A file `curve.csv` in the run's folder, a line per epoch."""

    def on_epoch(self, session: Session, metrics: Mapping[str, float]) -> None:
        """Write the curve so far."""
        columns = {name: of for name, of in session.curve.items() if isinstance(of, list) and name not in TABLES}
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))
        write_text(session.folder / "curve.csv", text.getvalue())


class WandB(Callback):
    """Weights & Biases (`pip install wandb`); its project, entity and mode are what `WANDB_*` variables say."""

    library = "wandb"
    run: Any = None

    def on_begin(self, session: Session) -> None:
        """Open the run, or go on with that of the folder."""
        import wandb

        where = {"dir": str(session.folder), "id": _identity(session, self.library), "resume": "allow"}
        self.run = wandb.init(name=session.title, config=dict(session.config), **where)

    def on_epoch(self, session: Session, metrics: Mapping[str, float]) -> None:
        """Log the numbers of an epoch."""
        self.run.log(_numbers(session, metrics), step=session.curve["epoch"][-1])

    def on_end(self, session: Session, record: Record) -> None:
        """Write the summary."""
        self.run.summary.update(_in_the_end(record))
        self.run.finish()

    def on_failure(self, session: Session, error: BaseException) -> None:
        """Say that it failed."""
        if self.run is not None:
            self.run.finish(exit_code=1)


class Trackio(Callback):
    """Trackio (`pip install trackio`), in the project that `TRACKIO_PROJECT` names."""

    library = "trackio"
    run: Any = None

    def on_begin(self, session: Session) -> None:
        """Open the run, or go on with that of the folder."""
        import trackio

        name = f"{session.title} {_identity(session, self.library)}"
        project = os.environ.get("TRACKIO_PROJECT", "routing-gym")
        self.run = trackio.init(project=project, name=name, config=dict(session.config), resume="allow")

    def on_epoch(self, session: Session, metrics: Mapping[str, float]) -> None:
        """Log the numbers of an epoch."""
        self.run.log(_numbers(session, metrics), step=session.curve["epoch"][-1])

    def on_end(self, session: Session, record: Record) -> None:
        """Log the numbers in the end."""
        self.run.log(_in_the_end(record), step=record["epochs"])
        self.run.finish()

    def on_failure(self, session: Session, error: BaseException) -> None:
        """Close the run."""
        if self.run is not None:
            self.run.finish()


class MLflow(Callback):
    """MLflow (`pip install mlflow`), at the address and in the experiment that `MLFLOW_*` variables name."""

    library = "mlflow"
    mlflow: Any = None

    def on_begin(self, session: Session) -> None:
        """Open the run, or go on with that of the folder, whose parameters stay as they were."""
        import mlflow

        kept, tags = _kept(session, self.library), {"folder": str(session.folder)}
        run = mlflow.start_run(run_id=kept) if kept else mlflow.start_run(run_name=session.title, tags=tags)
        self.mlflow = mlflow
        if not kept:
            _keep(session, self.library, run.info.run_id)
            texts = [(name, text[:LONGEST_PARAMETER]) for name, text in flat_options(dict(session.config)).items()]
            for start in range(0, len(texts), MOST_PARAMETERS):
                mlflow.log_params(dict(texts[start : start + MOST_PARAMETERS]))

    def on_epoch(self, session: Session, metrics: Mapping[str, float]) -> None:
        """Log the numbers of an epoch."""
        self.mlflow.log_metrics(_numbers(session, metrics), step=session.curve["epoch"][-1])

    def on_end(self, session: Session, record: Record) -> None:
        """Log the numbers in the end."""
        self.mlflow.log_metrics(_in_the_end(record), step=record["epochs"])
        self.mlflow.end_run()

    def on_failure(self, session: Session, error: BaseException) -> None:
        """Say that it failed."""
        if self.mlflow is not None:
            self.mlflow.end_run("FAILED")


MOST_PARAMETERS, LONGEST_PARAMETER = 100, 6000
"""What MLflow takes in one call."""


def _kept(session: Session, library: str) -> str:
    """Name under which a library knows a run that is gone on with; nothing where the run begins."""
    path = session.folder / f".id-{library}"
    return path.read_text(encoding="utf-8").strip() if session.curve["epoch"] and path.exists() else ""


def _keep(session: Session, library: str, name: str) -> None:
    write_text(session.folder / f".id-{library}", f"{name}\n")


def _identity(session: Session, library: str) -> str:
    """Name of a run that is the same when it is gone on with, and another when it is replaced."""
    if not (name := _kept(session, library)):
        _keep(session, library, name := uuid.uuid4().hex[:16])
    return name


def _numbers(session: Session, metrics: Mapping[str, float]) -> dict[str, float]:
    return {**{f"train/{name}": value for name, value in metrics.items()}, **session.last}


def _in_the_end(record: Record) -> dict[str, float]:
    split = record["asked"]["split"]
    values = {f"end/{metric.key(split)}": metric.value(record) for metric in METRICS.values()}
    return {name: value for name, value in values.items() if value is not None}


CALLBACKS: dict[str, Callable[[], Callback]] = {
    "tensorboard": TensorBoard,
    "csv": Csv,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}
"""Callbacks by the names that `--callbacks` takes; `register_callback` adds to them."""


def register_callback(name: str, callback: Callable[[], Callback]) -> None:
    """Make a callback known to `--callbacks`.

    Args:
        name: Its name.
        callback: Its class, or a function without arguments that makes one for a run.

    Raises:
        ValueError: The name belongs to another.
    """
    if CALLBACKS.get(name, callback) is not callback:
        raise ValueError(f"there is a callback {name!r} already: take another name")
    CALLBACKS[name] = callback


def check_callbacks(names: tuple[str, ...]) -> None:
    """Refuse callbacks that are not there.

    Raises:
        UsageError: An unknown name, or a library that is not installed.
    """
    for name in names:
        if name not in CALLBACKS:
            raise UsageError(f"unknown callback {name!r}; known are {', '.join(CALLBACKS)}")
        library = getattr(CALLBACKS[name], "library", "")
        if library and library not in sys.modules and importlib.util.find_spec(library) is None:
            raise UsageError(f"--callbacks {name} needs a library that is not installed: pip install {library}")


def make_callbacks(names: tuple[str, ...]) -> list[Callback]:
    """Callbacks by name; errors as of `check_callbacks`."""
    check_callbacks(names)
    return [CALLBACKS[name]() for name in names]


PROGRESS = ".progress.json"
"""File in a run's folder that says how far it is, while it runs in another process."""


class Progress(Callback):
    """How far a run is, in a file: for whoever waits for it in another process, and as a sign of life.

    Args:
        every: Seconds from one sign of life to the next, at least.
    """

    def __init__(self, every: float = 1.0) -> None:
        self.every, self.next = every, 0.0

    def on_begin(self, session: Session) -> None:
        """Say where it begins."""
        self._write(session)

    def on_batch(self, session: Session, metrics: Mapping[str, Tensor]) -> None:
        """Give a sign of life, when it is time."""
        if time.monotonic() >= self.next:
            self._write(session)

    def on_epoch(self, session: Session, metrics: Mapping[str, float]) -> None:
        """Say which epoch is done."""
        self._write(session)

    def on_end(self, session: Session, record: Record) -> None:
        """Take the file away."""
        (session.folder / PROGRESS).unlink(missing_ok=True)

    def on_failure(self, session: Session, error: BaseException) -> None:
        """Take the file away."""
        (session.folder / PROGRESS).unlink(missing_ok=True)

    def _write(self, session: Session) -> None:
        self.next = time.monotonic() + self.every
        where = {"pid": os.getpid(), "time": time.time(), "epochs": session.epochs}
        part = session.folder / f"{PROGRESS}.part"
        part.write_text(json.dumps({**where, **said_of(session)}), encoding="utf-8")
        part.replace(session.folder / PROGRESS)


def said_of(session: Session) -> dict[str, Any]:
    """What is shown of the last epoch."""
    return {"epoch": 0, "judged_on": session.curve["judged_on"], **session.last}
