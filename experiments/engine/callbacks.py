"""Callbacks: what is done beside training, by a run's batches and epochs; loggers are callbacks, too."""

from __future__ import annotations

import dataclasses
import importlib.util
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
from routing_gym.experiments.engine.records import Curve, flat_options, write_rows, write_text
from routing_gym.networks import claim
from routing_gym.options import unknown_name


@dataclasses.dataclass
class Session:
    """A run under way.

    Attributes:
        title: What it is called, `wpl, seed 0` say.
        agent: The agent; its environment holds the blocks. Another object once the best checkpoint has been loaded.
        folder: The run's own.
        epochs: How many epochs there should be in the end.
        curve: The epochs so far, see `Curve`.
        config: Every option, plain values by name.
        trained: Instances that it was trained on once it is over; the best checkpoint has seen fewer.
    """

    title: str
    agent: Agent
    folder: Path
    epochs: int
    curve: Curve
    config: Mapping[str, Any]
    trained: int = 0

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

    A run that was interrupted begins again at its last checkpoint, so that an epoch may come a second time. `library`
    is what it imports, by the name that `pip install` takes; nothing by default.
    """

    library: ClassVar[str] = ""

    def on_begin(self, session: Session) -> None:
        """Before the first batch; `session.curve` holds the epochs of a run that is gone on with."""

    def on_batch(self, session: Session, metrics: Mapping[str, Tensor]) -> None:
        """After every batch, with its `loss`, `accuracy`, `reward`, `macs` and the agent's own, as tensors `()`."""

    def on_epoch(self, session: Session, metrics: Mapping[str, float]) -> None:
        """After every epoch, before its checkpoint: means of what batches reported, and `session.curve`."""

    def on_end(self, session: Session, record: Record) -> None:
        """When the run is finished."""

    def on_failure(self, session: Session, error: BaseException) -> None:
        """When it ends otherwise, by an error or a signal: also one in the callback's own `on_begin` or `on_end`."""


class CallbackError(Exception):
    """What a callback raised; the message names it and the hook."""


def tell(callback: Callback, hook: str, session: Session, *what: Any) -> None:
    """Call a hook; what it raises becomes a `CallbackError`."""
    try:
        getattr(callback, hook)(session, *what)
    except (Exception, SystemExit) as error:
        name = next((name for name, made in CALLBACKS.items() if made is type(callback)), type(callback).__name__)
        raise CallbackError(f"callback {name}, {hook}: {one_line(error)}") from error


class Tracker(Callback):
    """A library that takes numbers by name; `on_begin` sets how to `log` an epoch, `conclude` in the end, `close`."""

    log: Callable[[dict[str, float], int], Any]
    conclude: Callable[[dict[str, float], int], Any]
    close: Callable[[bool], Any] = staticmethod(lambda failed: None)
    in_the_end: ClassVar[str] = "end/{key}"

    def on_epoch(self, session: Session, metrics: Mapping[str, float]) -> None:
        """Log the numbers of an epoch."""
        of_batches = {f"train/{name}": value for name, value in metrics.items()}
        self.log(of_batches | self._judged(session), session.curve["epoch"][-1])

    def on_end(self, session: Session, record: Record) -> None:
        """Log the numbers in the end, and close."""
        values, split = {}, record["asked"]["split"]
        for metric in METRICS.values():
            if (value := metric.value(record)) is not None:
                values[self.in_the_end.format(split=split, name=metric.name, key=metric.key(split))] = value
        self.conclude(values, record["epochs"])
        self.close(False)

    def on_failure(self, session: Session, error: BaseException) -> None:
        """Close what is open."""
        self.close(True)

    def _judged(self, session: Session) -> dict[str, float]:
        return session.last

    def _identity(self, session: Session, new: str) -> str:
        """Name under which the library knows a run: as in its folder where it is gone on with, else a new one."""
        path = session.folder / f".id-{self.library}"
        if session.curve["epoch"] and path.exists():
            return path.read_text(encoding="utf-8").strip()
        if new:
            write_text(path, f"{new}\n")
        return new


class TensorBoard(Tracker):
    """TensorBoard events in the run's folder."""

    in_the_end = "{split}/{name}"

    def on_begin(self, session: Session) -> None:
        """Open the writer; what is there of later epochs is hidden."""
        from torch.utils.tensorboard import SummaryWriter  # takes a third of a second to import

        writer = SummaryWriter(str(session.folder), purge_step=len(session.curve["epoch"]) + 1)

        def log(values: dict[str, float], epoch: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, epoch)
            writer.flush()  # a kill loses no epoch that has a checkpoint

        self.log = self.conclude = log
        self.close = lambda failed: writer.close()

    def _judged(self, session: Session) -> dict[str, float]:
        split, last = session.curve["judged_on"], session.last
        curves = {metric.key("validation"): metric.name for metric in METRICS.values() if metric.curve}
        return {f"{split}/{name}_by_epoch": last[key] for key, name in curves.items() if key in last}


class Csv(Callback):
    """A file `curve.csv` in the run's folder, a line per epoch."""

    def on_epoch(self, session: Session, metrics: Mapping[str, float]) -> None:
        """Write the curve so far, but for what is no number."""
        columns = {name: of for name, of in session.curve.items() if name not in ("judged_on", "exits", "use")}
        write_rows([columns, *zip(*columns.values(), strict=True)], session.folder / "curve.csv")


class WandB(Tracker):
    """Weights & Biases (`pip install wandb`); its project, entity and mode are what `WANDB_*` variables say."""

    library = "wandb"

    def on_begin(self, session: Session) -> None:
        """Open the run, or go on with that of the folder."""
        import wandb

        where = {"dir": str(session.folder), "id": self._identity(session, uuid.uuid4().hex[:16]), "resume": "allow"}
        run = wandb.init(name=session.title, config=dict(session.config), **where)
        self.log, self.conclude = run.log, lambda values, epochs: run.summary.update(values)
        self.close = lambda failed: run.finish(1 if failed else None)


class Trackio(Tracker):
    """Trackio (`pip install trackio`), in the project that `TRACKIO_PROJECT` names."""

    library = "trackio"

    def on_begin(self, session: Session) -> None:
        """Open the run, or go on with that of the folder."""
        import trackio

        name = f"{session.title} {self._identity(session, uuid.uuid4().hex[:16])}"
        project = os.environ.get("TRACKIO_PROJECT", "routing-gym")
        run = trackio.init(project=project, name=name, config=dict(session.config), resume="allow")
        self.log = self.conclude = run.log
        self.close = lambda failed: run.finish()


MOST_PARAMETERS, LONGEST_PARAMETER = 100, 6000  # that MLflow takes in one call


class MLflow(Tracker):
    """MLflow (`pip install mlflow`), at the address and in the experiment that `MLFLOW_*` variables name."""

    library = "mlflow"

    def on_begin(self, session: Session) -> None:
        """Open the run, or go on with that of the folder, whose parameters stay as they were."""
        import mlflow

        known, new = self._identity(session, ""), {"run_name": session.title, "tags": {"folder": str(session.folder)}}
        begun = mlflow.start_run(**({"run_id": known} if known else new))
        self.log = self.conclude = mlflow.log_metrics
        self.close = lambda failed: mlflow.end_run("FAILED" if failed else "FINISHED")
        if not known:
            self._identity(session, begun.info.run_id)
            texts = [(name, text[:LONGEST_PARAMETER]) for name, text in flat_options(dict(session.config)).items()]
            for start in range(0, len(texts), MOST_PARAMETERS):
                mlflow.log_params(dict(texts[start : start + MOST_PARAMETERS]))


CALLBACKS: dict[str, Callable[[], Callback]] = {
    "tensorboard": TensorBoard,
    "csv": Csv,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}
"""Callbacks by the names that `--callbacks` takes; `register_callback` adds to them."""


def register_callback(name: str, callback: Callable[[], Callback]) -> None:
    """Make a callback known to `--callbacks`, by its class or a function that makes one; a name is taken once."""
    claim(CALLBACKS, "callback", name, callback)


def check_callbacks(names: tuple[str, ...]) -> None:
    """Refuse callbacks that are unknown, or whose library is not installed."""
    for name in names:
        if name not in CALLBACKS:
            raise UsageError(unknown_name("callback", name, CALLBACKS))
        library = getattr(CALLBACKS[name], "library", "")
        if library and library not in sys.modules and importlib.util.find_spec(library) is None:
            raise UsageError(f"--callbacks {name} needs a library that is not installed: pip install {library}")


PROGRESS = ".progress.json"
"""File in a run's folder that says how far it is, while it runs in another process."""


class Progress(Callback):
    """How far a run is, in a file: for whoever waits for it in another process, and as a sign of life."""

    every, next = 1.0, 0.0
    """Seconds between signs of life, and when the next is due."""

    def _write(self, session: Session, *what: Any, **more: Any) -> None:
        self.next = time.monotonic() + self.every
        where = {"pid": os.getpid(), "time": time.time(), "epochs": session.epochs}
        part = session.folder / f"{PROGRESS}.part"
        part.write_text(json.dumps({**where, **said_of(session)}), encoding="utf-8")
        part.replace(session.folder / PROGRESS)

    def _remove(self, session: Session, *what: Any, **more: Any) -> None:
        (session.folder / PROGRESS).unlink(missing_ok=True)

    def on_batch(self, session: Session, metrics: Mapping[str, Tensor]) -> None:
        """Give a sign of life, when it is time."""
        if time.monotonic() >= self.next:
            self._write(session)

    on_begin = on_epoch = _write
    on_end = on_failure = _remove


def said_of(session: Session) -> dict[str, Any]:
    """What is shown of the last epoch."""
    return {"epoch": 0, "judged_on": session.curve["judged_on"], **session.last}
