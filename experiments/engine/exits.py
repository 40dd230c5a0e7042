"""Curves of accuracy by multiply-accumulates that one network of early exits gives: in its record, and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
from rich.table import Table

from routing_gym.agents import Agent, Confidence
from routing_gym.agents.confidence import Measure
from routing_gym.experiments.engine.console import plain_table
from routing_gym.experiments.engine.metrics import ACCURACY, METRICS, Record
from routing_gym.experiments.engine.records import by_label

POINTS = 8
"""Budgets of a curve, evenly from what leaving at once costs to the whole network."""

CAPTION = (
    "anytime: all instances stop at an exit; else: by a threshold found on validation for a budget, a share of the "
    "whole network's MACs"
)

Point = dict[str, Any]


def exit_curves(agent: Agent, split: str) -> dict[str, list[Point]]:
    """Points, `accuracy`, `macs` and `loss`, of a network whose exits are all trained: none of other agents.

    `anytime`: a point for each exit, at which all instances stop. By the name of each measure, where there is a
    validation split, a point for each `budget`, a share of the whole network's MACs, with the `threshold` found on
    validation (Huang et al. 2018, section 5: anytime and budgeted batch prediction); None where all leave at once, or
    nobody does early.
    """
    if not isinstance(agent, Confidence):
        return {}
    curves: dict[str, list[Point]] = {}
    budgets = torch.linspace(agent.costs[0] / agent.whole, 1, POINTS, dtype=torch.float64).tolist()
    for measure in get_args(Measure):
        judge = Confidence(agent.env, dataclasses.replace(agent.config, measure=measure, threshold=0.0, budget=None))
        here = judge.answers(split)

        def point(exits: torch.Tensor, **known: Any) -> Point:
            return {**known, **dict(zip(("accuracy", "loss", "macs"), here.judged(exits), strict=True))}  # noqa: B023

        if not curves:
            curves["anytime"] = [point(torch.full((len(here.right[0]),), number)) for number in range(len(here.macs))]
        if "validation" in agent.env.datasets:
            held_out = judge.answers("validation")
            found = [(budget, judge.found(held_out, budget)) for budget in budgets]
            curves[measure] = [
                point(here.leaving(least), budget=budget, threshold=judge.sign * float(least))
                for budget, least in found
            ]
    return curves


def curves_of(records: Sequence[Record]) -> Iterator[tuple[str, str, list[tuple[Point, ...]]]]:
    """Yield label, curve, and its points, each of all seeds, of those records that have curves."""
    for label, runs in by_label(records).items():
        known = [run["exit_curves"] for run in runs if run.get("exit_curves")]
        for curve in known[0] if known else ():
            yield label, curve, list(zip(*(one[curve] for one in known), strict=True))


def exits_table(records: Sequence[Record]) -> Table | None:
    """Table of all points of such curves, means over seeds; None where no record has any."""
    headings = ("accuracy by MACs", "exit or budget", ACCURACY.heading, METRICS["macs"].heading)
    table = plain_table(*headings, caption=CAPTION)
    for label, curve, points in curves_of(records):
        for number, of_seeds in enumerate(points):
            where = f"exit {number + 1}" if curve == "anytime" else f"{of_seeds[0]['budget']:.2f}"
            texts = [metric.text([point[metric.name] for point in of_seeds]) for metric in (ACCURACY, METRICS["macs"])]
            table.add_row("" if number else f"{label}, {curve}", where, *texts)
        table.add_section()
    return table if table.row_count else None
