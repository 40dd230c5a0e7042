"""Judging what papers say in words, by the one rule for all differences: a paired t-interval over common seeds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.engine.statistics import FEWEST_SEEDS, MISTAKES, paired_difference
from routing_gym.experiments.papers.reproduction import Claim, Judged, Reproduction, Runs, Verdict, among
from routing_gym.experiments.papers.rows import Protocol, Settings


def judged(said: Mapping[str, Sequence[Judged]]) -> list[Claim]:
    """Judge claims by their parts.

    A claim holds if the 95 % t-interval of each of its parts lies above 0, and does not hold if that of any lies below
    0, at 95 % for all of its parts together (Bonferroni): many parts do not make a claim easier to refute. Anything
    else, and fewer than 3 seeds, is "not enough", which decides nothing.

    Args:
        said: The parts of each claim by its text.
    """
    claims = []
    for text, parts in said.items():
        found = [part.found for part in parts]
        verdict: Verdict = "not enough"
        if found and all(one is not None and one.verdict == "better" for one in found):
            verdict = "holds"
        elif any(one is not None and one.verdict == "worse" and one.p * len(found) <= MISTAKES for one in found):
            verdict = "does not hold"
        claims.append(
            Claim(text, verdict, " ".join(dict.fromkeys(part.numbers for part in parts)) or "Needs runs.", parts)
        )
    return claims


def claims_of(paper: Reproduction, settings: Settings, records: Runs) -> list[Claim]:
    """Judge what a paper says by the runs of one way of training, each claim by the seeds that have all of its rows.

    Of a protocol, a row of several points is one only with all the points that it asks for, nothing is decided before
    there are all of its seeds, and claims of which its runs tell nothing yet are left out, but for the one it decides.
    """
    if not isinstance(settings, Protocol):
        return paper.judge(records)
    rows = (row for row in paper.rows if row.label in settings.rows and settings.shown(row.groups))
    asked = Counter(_judged_by(paper, row.facts) for row in rows)
    there = Counter((_judged_by(paper, record), record["seed"]) for record in records)
    whole = [record for record in records if there[name := _judged_by(paper, record), record["seed"]] == asked[name]]
    claims = [
        claim if is_whole(claim, settings) else dataclasses.replace(claim, verdict="not enough")
        for claim in paper.judge(whole)
    ]
    return [claim for claim in claims if claim.text == settings.decides or any(part.found for part in claim.parts)]


def is_whole(claim: Claim, protocol: Protocol) -> bool:
    """Whether all seeds of a protocol are there of what a claim is about."""
    seeds = [0 if part.found is None else part.found.seeds for part in claim.parts]
    return min(seeds, default=0) >= max(protocol.seeds, FEWEST_SEEDS)


def _judged_by(paper: Reproduction, facts: Mapping[str, Any]) -> tuple[str, str]:
    """The name by which a row is judged, see `Reproduction.judged_by`, and the part of the paper it is of."""
    return facts[paper.judged_by], facts["part"]


SEEN = " (a claim since runs were seen)"
"""Behind what was made a claim when some of the runs it is judged by were known: it confirms less than others do."""
POINTS = " points"
"""Unit of differences of errors."""


class Judge:
    """Judges what is said of rows by their runs, seed by seed.

    Args:
        records: All trained in one way.
        by: What of a record is the name of its row; several rows of one name, as of a curve, are judged together.
        **facts: What is true of all runs that count.
    """

    def __init__(self, records: Runs, by: str = "label", **facts: Any) -> None:
        self._by, self._records = by, among(records, **facts)

    def runs(self, name: str) -> list[Record]:
        """The runs of a row."""
        return among(self._records, **{self._by: name})

    def positive(
        self,
        what: str,
        value: Callable[..., float | None],
        *names: str,
        unit: str = "",
        paper: float | None = None,
        after: int | None = None,
    ) -> Judged:
        """Judge whether a number is above 0.

        Args:
            what: What it is.
            value: Computes it from the runs that each of the rows has of one seed; None where it means nothing. Where
                several rows have one name, seeds count that have all of them.
            names: The rows.
            unit: Its unit, with a space before it.
            paper: What it is in the paper; None where that is not printed.
            after: After how many epochs, where the paper has it after several numbers of them.
        """
        seeds = sorted(set.intersection(*map(self._whole_seeds, names)))
        known = {seed: value(*(among(self.runs(name), seed=seed) for name in names)) for seed in seeds}
        values = {seed: number for seed, number in known.items() if number is not None}
        if not values:
            return Judged(f"Needs runs of one seed: {'; '.join(names)}.")
        found = paired_difference(values, dict.fromkeys(values, 0.0))
        interval = f" [{found.low:+.3g}, {found.high:+.3g}]" if np.isfinite(found.low) else ""
        few = f", of {FEWEST_SEEDS} at least" if found.seeds < FEWEST_SEEDS else ""
        seeds_text = f"{found.seeds} seed{'s' if found.seeds > 1 else ''}{few}"
        if paper is not None:
            outside = not few and not found.low <= paper <= found.high
            when = "" if after is None else f" after {after} epochs"
            seeds_text += f"; {paper:+.3g} in the paper{when}{', which is outside' if outside else ''}"
        known_by = list(values.values())
        own = [among(self.runs(name), seed=seeds[0]) for name in names]
        spread = float(np.std(known_by, ddof=1)) if len(known_by) > 1 else _counting(own, unit)
        return Judged(f"{what}: {found.mean:+.3g}{unit}{interval} ({seeds_text}).", found, spread, unit)

    def _whole_seeds(self, name: str) -> set[int]:
        """Seeds of which there are all the rows of a name that any seed has."""
        labels: dict[int, set[str]] = {}
        for run in self.runs(name):
            labels.setdefault(run["seed"], set()).add(run["label"])
        return {seed for seed, own in labels.items() if own == set().union(*labels.values())}

    def more(
        self,
        what: str,
        value: Callable[[Record], float],
        larger: str,
        smaller: str,
        unit: str = "",
        paper: float | None = None,
        after: int | None = None,
    ) -> Judged:
        """Judge whether something is larger in one row than in another."""

        def difference(above: Runs, below: Runs) -> float:
            return value(above[0]) - value(below[0])

        text = f"{what}, {larger} less {smaller}"
        return self.positive(text, difference, larger, smaller, unit=unit, paper=paper, after=after)

    def less(self, better: str, worse: str) -> Judged:
        """Judge whether the test error of a row is below that of another."""
        printed = [run for row in (better, worse) for run in self.runs(row)[:1] if run.get("paper")]
        paper = 100 * (printed[0]["paper"] - printed[1]["paper"]) if len(printed) == 2 else None
        epochs = {int(epoch) for run in printed for epoch in run.get("paper_by_epoch", ())}
        after = max(epochs) if paper is not None and len(epochs) > 1 else None
        return self.more("error", error_of, worse, better, POINTS, paper, after)

    def in_order(self, *names: str) -> list[Judged]:
        """Judge whether each of some rows errs less than the next."""
        return [self.less(better, worse) for better, worse in pairwise(names)]


def _counting(rows: Sequence[Runs], unit: str) -> float | None:
    """Standard deviation, in points, that counting test images gives a difference of two errors; None of others.

    Binomial, the two taken as independent; of a curve it is that of its lowest error.
    """
    lowest = [min(runs, key=error_of) for runs in rows]
    if unit != POINTS or len(rows) != 2 or any("exits" not in run for run in lowest):
        return None
    errors = np.array([error_of(run) for run in lowest])
    return float(np.sqrt(sum(errors * (100 - errors) / [np.sum(run["exits"]) for run in lowest])))


def error_of(record: Record) -> float:
    """Test error in %."""
    return 100 * (1 - record["test_accuracy"])
