"""The table of Deciding How to Decide (McGill and Perona 2017)."""

from __future__ import annotations

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import by_label
from routing_gym.experiments.papers.reproduction import Runs, mean_of
from routing_gym.experiments.papers.tables import (
    EFFORT,
    LABEL,
    MACS,
    Column,
    error,
    judged_on,
    millions,
    price_text,
    router_share,
    table,
)


def _cost(runs: Runs) -> str:
    if runs[0].get("cost") is None:
        return ""  # prices were drawn: the lines below have one each
    return f"{mean_of(runs, 'cost'):.4f}"


COLUMNS: tuple[Column, ...] = (
    LABEL,
    ("error %", error),
    MACS,
    router_share("router's, %"),
    ("c_inf", _cost),
    *EFFORT,
)


def error_and_operations(records: Runs) -> list[str]:
    """Show error, mean operations and the cost of inference; an agent judged at several prices has a line for each."""

    def at_prices(runs: Runs) -> list[list[str]]:
        return [
            [
                f"… judged at {price_text(points[0]['k_cpt'])}",
                ACCURACY.text([1 - point["test_accuracy"] for point in points]),
                millions("macs")(points),
                "",
                _cost(points),
                *[""] * len(EFFORT),
            ]
            for points in zip(*(run.get("by_price", []) for run in runs), strict=True)
        ]

    return [*table(COLUMNS, by_label(records).values(), at_prices), "", judged_on(records)]
