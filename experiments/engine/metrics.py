"""Metrics of a run, declared once: records, curves, tables, plots, CSV, sweeps and the report read the declaration."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from routing_gym.agents import Agent
from routing_gym.envs import Evaluation
from routing_gym.experiments.engine.console import one_line
from routing_gym.experiments.engine.statistics import half_interval

Record = dict[str, Any]


class MetricError(ValueError):
    """A metric that fails, or gives something else than a number; the message names it."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """What metrics are computed from: an agent, how it and the blocks do on a split, and how training went so far."""

    agent: Agent
    evaluation: Evaluation
    seconds: float
    samples_per_second: float


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that is reported of every run.

    Attributes:
        name: Its key in a record, behind the name of the split where `of_split`.
        heading: Its column in tables, with its unit.
        of: Computes it; None where it means nothing for an agent or a network.
        scale: What it is multiplied by where it is shown: 100 for per cent.
        digits: Digits behind the point where it is shown.
        unit: Written behind it.
        of_split: Whether its key names the split it was measured on, `test_accuracy`.
        table: Whether it is a column of tables.
        curve: Whether it is measured after every epoch, too.
        spread: Whether its mean is shown with the half-width of its 95 % interval over seeds.
        better: Whether more or less of it is better; None where neither is.
    """

    name: str
    heading: str
    of: Callable[[Judged], float | None]
    scale: float = 1.0
    digits: int = 0
    unit: str = ""
    of_split: bool = False
    table: bool = True
    curve: bool = False
    spread: bool = False
    better: Literal["more", "less"] | None = None

    def measure(self, judged: Judged) -> float | None:
        """Compute it; a `MetricError` if it fails, or gives neither a number nor None."""
        try:
            value: Any = self.of(judged)
        except Exception as error:
            raise MetricError(f"metric {self.name!r} failed: {one_line(error)}") from error
        value = value.item() if isinstance(value, np.number) else value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        beyond = number and isinstance(value, int) and abs(value) > sys.float_info.max
        if value is not None and (not number or beyond or math.isnan(value)):
            shown = "an integer beyond all floats" if beyond else f"a {type(value).__name__}"
            got = f"{value!r}" if isinstance(value, int | float | str) and not beyond else shown
            raise MetricError(f"metric {self.name!r} must give a number, or None where it means nothing, got {got}")
        return value

    def key(self, split: str) -> str:
        """Key in the record of a run that was judged on a split."""
        return f"{split}_{self.name}" if self.of_split else self.name

    def value(self, record: Record) -> Any:
        """Value in the record of a run, a number or None; None, too, where the run did not know the metric."""
        return record.get(self.key(record["asked"]["split"]))

    def curve_of(self, record: Record) -> list[Any]:
        """Values after every epoch, None where the run did not know the metric."""
        curve = record["curve"]
        return curve.get(self.key("validation"), [None] * len(curve["epoch"]))

    def curves(self, records: Sequence[Record]) -> np.ndarray:
        """Values of some runs after every epoch, `(R, E)`; NaN where there is none, or the run was over."""
        columns = [self.curve_of(record) for record in records]
        longest = max(map(len, columns))
        return np.array([[*column, *[None] * (longest - len(column))] for column in columns], dtype=float)

    def text(self, values: Sequence[float | None]) -> str:
        """Mean of some runs as it is shown: `99.51 ± 0.12`; a dash where it means nothing."""
        known = [self.scale * value for value in values if value is not None]
        if not known:
            return "–"
        half = half_interval(known) if self.spread else None
        spread = "" if half is None else f" ± {half:.{self.digits}f}"
        return f"{float(np.mean(known)):,.{self.digits}f}{spread}{self.unit}"


def count_parameters(agent: Agent) -> int:
    """Number of parameters of network and agent together."""
    modules: tuple[nn.Module, ...] = (agent.env.network, agent)
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def mean_parameters(judged: Judged) -> float | None:
    """Number of parameters an instance passes on average, as Ramachandran and Le (2019, Table 4) count them.

    Those of the choices it takes; what belongs to no choice, all readouts and the agent included, counts whole. None
    where choices have parameters in common, as in a recurrent network: the counts do not say what is passed twice.
    """
    network, evaluation = judged.agent.env.network, judged.evaluation
    share = evaluation.routes.sum(0).double() / evaluation.exits.sum()
    seen: set[tuple[int, int | None]] = set()
    total = float(count_parameters(judged.agent))
    for number, decision in enumerate(network.decisions):
        for choice in range(len(decision.next)):
            for owned in network.parameters_of(number, choice):
                piece = (id(owned.parameter), owned.index)
                if piece in seen:
                    return None
                seen.add(piece)
                total -= (1 - float(share[number, choice])) * owned.value.numel()
    return total


def _cost(judged: Judged) -> float | None:
    k_cpt = judged.agent.env.config.k_cpt  # None where every instance has a price of its own
    return judged.evaluation.cost(k_cpt) if isinstance(k_cpt, int | float) else None


def alignment(judged: Judged) -> float | None:
    """Adjusted Rand index of routes and of what is planted in the data, over the rows of a split (Hubert, Arabie 1985).

    1 where rows share a route just where they share all that is planted, whatever the blocks are called; 0 is chance.
    None for data in which nothing is planted.
    """
    planted = judged.agent.env.datasets[judged.evaluation.split].planted
    return None if planted is None else _rand_index(planted, judged.evaluation.route)


def alignments(judged: Judged) -> list[float] | None:
    """The same by decision, `(N,)`: of the choices taken there and of what is planted at its depth, or at the last."""
    evaluation = judged.evaluation
    planted = judged.agent.env.datasets[evaluation.split].planted
    if planted is None:
        return None
    taken = evaluation.taken[evaluation.route]
    depths = range(taken.shape[1])
    return [_rand_index(planted[:, min(at, planted.shape[1] - 1)], taken[:, at]) for at in depths]


def _rand_index(*columns: Tensor) -> float:
    """Adjusted Rand index of two ways to sort rows; each is `(R,)`, or `(R, ...)`, whose equal rows belong together."""
    from sklearn.metrics import adjusted_rand_score  # takes a while to import

    sorts = [
        column.flatten(1).unique(dim=0, return_inverse=True)[1] if column.ndim > 1 else column for column in columns
    ]
    return float(adjusted_rand_score(*(sort.cpu().numpy() for sort in sorts)))


def effective_blocks(use: ArrayLike) -> float:
    """Effective number of choices at a decision, mean over decisions: the exponential of the entropy of their `use`.

    As many as share all instances evenly; 1 where one takes them all.
    """
    shares = np.asarray(use, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(shares > 0, shares * np.log(shares), 0.0).sum(-1)
    return float(np.exp(entropy).mean())


def _late_task(judged: Judged) -> float | None:
    late = judged.agent.env.datasets[judged.evaluation.split].late_task
    return None if late is None else judged.evaluation.task_accuracy[late]


METRICS: dict[str, Metric] = {}
"""Metrics by name, in the order of their columns; `register_metric` adds to them."""

TAKEN = frozenset(
    "agent alignments asked batch_size best_epoch by_price commit compared_paths config curve dataset decisions "
    "delta_m device env env_config epoch epochs exit_curves exits experts label live_paths processor routes "
    "routes_by_label seed setting settings settled task_accuracy task_macs task_names threads torch "
    "train_accuracy train_loss use version ways_out".split()
)
"""Fields of records and curves that are no metrics."""


def register_metric(metric: Metric) -> None:
    """Make a metric one of every record, curve, table and report from here on.

    Raises:
        ValueError: There is another of this name, or it is not one that a field can have beside those of a record.
    """
    name = metric.name
    if not (isinstance(name, str) and name.isidentifier()) or name in TAKEN or name.endswith(("_accuracy", "_loss")):
        raise ValueError(f"a metric is named by a word that no field of a record has, got {name!r}: take another name")
    if METRICS.get(name, metric) != metric:
        raise ValueError(f"there is a metric {name!r} already: take another name")
    METRICS[name] = metric


_percent: dict[str, Any] = {"scale": 100, "better": "more"}
_judged: dict[str, Any] = {"of_split": True, "curve": True}
for _metric in (
    Metric("accuracy", "accuracy %", attrgetter("evaluation.accuracy"), digits=2, spread=True, **_judged, **_percent),
    Metric("worst_task", "worst task %", lambda judged: min(judged.evaluation.task_accuracy), digits=1, **_percent),
    Metric("late_task", "late task %", _late_task, digits=1, table=False, **_percent),
    Metric("loss", "loss", attrgetter("evaluation.loss"), digits=4, table=False, better="less", **_judged),
    Metric("macs", "MACs", attrgetter("evaluation.macs"), curve=True, better="less"),
    Metric("router_macs", "router MACs", attrgetter("evaluation.router_macs"), table=False, better="less"),
    Metric("cost", "cost", _cost, digits=4, table=False, better="less"),
    Metric("blocks_used", "blocks", attrgetter("evaluation.blocks_used"), digits=1),
    Metric("paths", "paths", attrgetter("evaluation.paths"), digits=1),
    Metric(
        "effective_blocks", "effective blocks", lambda of: effective_blocks(of.evaluation.use), digits=1, table=False
    ),
    Metric("alignment", "alignment", alignment, digits=2, table=False, better="more"),
    Metric("parameters", "parameters", lambda judged: count_parameters(judged.agent), table=False),
    Metric("parameters_used", "parameters passed", mean_parameters, table=False),
    Metric("samples_per_second", "samples/s", attrgetter("samples_per_second"), better="more"),
    Metric("seconds", "time", attrgetter("seconds"), digits=1, unit=" s", curve=True, better="less"),
):
    register_metric(_metric)

ACCURACY = METRICS["accuracy"]
OURS = frozenset(METRICS)
"""Names of the metrics that every record has; one that a plug-in registers may be younger than a record."""
