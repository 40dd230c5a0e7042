"""One page on what the protocols have decided of all papers, and what is missing where they have not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from routing_gym.experiments.engine.records import by_label
from routing_gym.experiments.engine.statistics import FEWEST_SEEDS, half_width
from routing_gym.experiments.papers.judging import claims_of
from routing_gym.experiments.papers.reproduction import Claim, Judged, Reproduction, Runs, mean_of
from routing_gym.experiments.papers.rows import Protocol
from routing_gym.experiments.papers.tables import line

TITLE = "What the papers claim, and what holds"
MOST_SEEDS = 100
HEADS = ("paper", "claim", "effect it is about", "found", "verdict", "core-hours so far", "what it would take")


def summary(stands: Sequence[tuple[Reproduction, Protocol, Runs]]) -> str:
    """A line for what each protocol decides, as Markdown.

    Args:
        stands: Protocols, with the finished runs of their rows.
    """
    lines = [line(list(HEADS)), line(["---"] * len(HEADS))]
    for paper, protocol, records in stands:
        spent = sum(record["seconds"] for record in records) / 3600
        (main,) = (claim for claim in claims_of(paper, protocol, records) if claim.text == protocol.decides)
        page = f"[{paper.name}]({paper.name.replace('-', '_')}.md)"
        cells = [main.text, protocol.effect, main.numbers, f"**{main.verdict}**", f"{spent:.1f}"]
        lines.append(line([page, *cells, _missing(main, protocol, records)]))
    told = (
        "What each protocol was made to decide, in the order of the queue, by [one rule](../statistics.md): a paired "
        "95 % interval over at least three seeds that lies on one side of 0. What else its runs say stands on the "
        "papers' pages; core-hours are of its rows, without the search for rates, and rows of two protocols count in "
        "both."
    )
    return "\n".join([told, "", *lines])


def _missing(claim: Claim, protocol: Protocol, records: Runs) -> str:
    """How many seeds it would take to decide a claim that is undecided, and how many hours of one core."""
    if claim.verdict != "not enough":
        return "decided"
    if not claim.parts or any(part.found is None for part in claim.parts):
        return "its first seed"
    seeds = max(map(seeds_to_tell, claim.parts))
    if not seeds <= MOST_SEEDS:
        return f"more than {MOST_SEEDS} seeds, at the difference seen"
    there = min(part.found.seeds for part in claim.parts if part.found)
    first = [runs for label, runs in by_label(records).items() if label in (protocol.first or protocol.rows)]
    hours = (seeds - there) * sum(mean_of(runs, "seconds") for runs in first) / 3600
    return f"{seeds:.0f} seeds in all, {hours:.1f} core-hours more, at the difference seen"


def seeds_to_tell(part: Judged) -> float:
    """Seeds of which the 95 % interval would leave out 0 at the mean and the spread that were seen; inf where none."""
    assert part.found is not None
    if not part.found.mean or part.spread is None:
        return math.inf
    for seeds in range(FEWEST_SEEDS, MOST_SEEDS + 1):
        if half_width(part.spread / math.sqrt(seeds), seeds) < abs(part.found.mean):
            return seeds
    return math.inf
