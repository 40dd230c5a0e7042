"""Tables of reproduced papers, as lines of Markdown: what a column shows is declared once, and shared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import by_label
from routing_gym.experiments.papers.reproduction import Runs, distinct, mean_of

Column = tuple[str, Callable[[Runs], str]]
"""Its heading, and what it shows of the runs of a row."""


def table(
    columns: Sequence[Column],
    rows: Iterable[Runs],
    below: Callable[[Runs], list[list[str]]] | None = None,
    effort: Sequence[Column] | None = None,
) -> list[str]:
    """Return a table with a line for the runs of every row: its label, the columns, and what it took.

    Args:
        columns: The columns.
        rows: The runs of each.
        below: Further lines below that of a row, as cells.
        effort: Columns of what it took, by default `EFFORT`.
    """
    columns = [("", lambda runs: runs[0]["label"]), *columns, *(EFFORT if effort is None else effort)]
    lines = heading([name for name, _ in columns])
    for runs in rows:
        lines.append(line([text(runs) for _, text in columns]))
        lines += map(line, below(runs) if below else [])
    return lines


def by_row(*columns: Column, note: str = "") -> Callable[[Runs], list[str]]:
    """Return what shows a group as a table with a line for every row, and below it a note and what it was judged on."""

    def show(records: Runs) -> list[str]:
        return [*table(columns, by_label(records).values()), "", f"{note} {judged_on(records)}".strip()]

    return show


def heading(cells: Sequence[str]) -> list[str]:
    """Return the first two lines of a table whose first column holds text and whose others hold numbers."""
    return [line(cells), line(["---"] + ["---:"] * (len(cells) - 1))]


def line(cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |"


def accuracy(runs: Runs) -> str:
    """Test accuracy in %, as our own numbers stand out."""
    return f"**{ACCURACY.text([run['test_accuracy'] for run in runs])}**"


def error(runs: Runs) -> str:
    """Test error in %, likewise."""
    return f"**{ACCURACY.text([1 - run['test_accuracy'] for run in runs])}**"


def beside(ours: str, theirs: float | None, form: str = "") -> str:
    """Write the paper's number behind ours."""
    return ours if theirs is None else f"{ours} *{theirs:{form}}*".strip()


def millions(key: str, digits: int = 2) -> Callable[[Runs], str]:
    """Return what shows millions of something; nothing where it means nothing for a run."""
    return lambda runs: "" if None in [run[key] for run in runs] else f"{mean_of(runs, key) / 1e6:.{digits}f}"


def router_share(heading: str, digits: int = 2) -> Column:
    """Return the column of the share that routers have in the operations."""
    return heading, lambda runs: f"{100 * np.mean([run['router_macs'] / run['macs'] for run in runs]):.{digits}f}"


MACS: Column = ("MACs, M", millions("macs"))
EFFORT: tuple[Column, ...] = (
    ("epochs", lambda runs: str(runs[0]["epochs"])),
    ("core-hours", lambda runs: f"{sum(run['seconds'] for run in runs) / 3600:.1f}"),
    ("seeds", lambda runs: str(len(runs))),
)


def judged_on(records: Runs) -> str:
    """Say what data there was."""
    return f"On the test split of {'; '.join(sorted(distinct(records, 'dataset')))}."


def price_text(price: float) -> str:
    """Write the price of an operation as people do: `4e-9`."""
    return f"{price:g}".replace("e-0", "e-")
