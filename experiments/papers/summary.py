"""One page on what the protocols have decided of all papers, and what is missing where they have not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

from routing_gym.experiments.engine.records import by_label
from routing_gym.experiments.engine.statistics import FEWEST_SEEDS, MISTAKES, half_width
from routing_gym.experiments.papers.judging import claims_of, is_whole
from routing_gym.experiments.papers.reproduction import Claim, Judged, Reproduction, Runs
from routing_gym.experiments.papers.rows import Protocol
from routing_gym.experiments.papers.tables import line

TITLE = "What the papers claim, and what holds"
MOST_SEEDS = 100
HEADS = ("paper", "claim", "effect it is about", "found", "verdict", "core-hours so far", "what it would take")


def summary(stands: Sequence[tuple[Reproduction, Protocol, Runs]]) -> str:
    """Markdown of what is decided: a line for the claim of each protocol that has begun, and for others it has decided.

    Args:
        stands: Protocols, with the finished runs of their rows.
    """
    papers = list(dict.fromkeys(paper.name for paper, _, _ in stands))
    lines, judged, not_begun = [line(list(HEADS)), line(["---"] * len(HEADS))], list[tuple[Claim, bool]](), []
    shown: set[str] = set()
    told_of: set[tuple[str, str, str]] = set()  # what rows that two protocols share decide is decided once
    for paper, protocol, records in sorted(stands, key=lambda stand: papers.index(stand[0].name)):
        page = f"[{paper.name}]({paper.name.replace('-', '_')}.md)"
        new = {record["folder"] for record in records} - shown
        if not new:
            not_begun.append(f"{page} `{protocol.name}` ({protocol.decides})")  # at most it shares rows with others
            continue
        shown |= new
        spent = sum(record["seconds"] for record in records) / 3600
        claims = sorted(claims_of(paper, protocol, records), key=lambda claim: claim.text != protocol.decides)
        claims = [claim for claim in claims if (paper.name, claim.text, claim.numbers) not in told_of]
        told_of |= {(paper.name, claim.text, claim.numbers) for claim in claims}
        judged += [(claim, is_whole(claim, protocol)) for claim in claims]
        for claim in claims:
            main, cells = claim.text == protocol.decides, [page, claim.text]
            if main:
                about, effort = protocol.effect, [f"{spent:.1f}", _missing(claim, protocol, records)]
            else:
                about, effort = "", ["", "decided"]
            if main or claim.verdict != "not enough":
                lines.append(line([*cells, about, claim.numbers, f"**{claim.verdict}**", *effort]))
    told = (
        "What each protocol was made to decide, and below it what else its runs have decided, by "
        "[one rule](../statistics.md#what-a-paper-claims): a paired 95 % interval over all seeds it asks for, three "
        f"at least, that lies on one side of 0. {_account(judged)} All stand on the papers' pages. Core-hours are "
        "wall-clock time of one thread beside other work, of all rows of a protocol, without the search for rates; "
        "rows of two protocols count in both. With the seeds it would take an interval leaves out 0 in half of all "
        "cases, if difference and spread are those seen; whoever goes on for its sake, looking after every seed, errs "
        "more often than in one case of twenty, in [one of eight](../statistics.md#what-a-paper-claims) from three "
        "seeds to seven."
    )
    rest = ["", f"No run of their own yet: {'; '.join(not_begun)}."] if not_begun else []
    return "\n".join([told, "", *lines, *rest])


def _account(claims: Sequence[tuple[Claim, bool]]) -> str:
    """How many claims are decided of those that can be, and how many of them would be if all were one family."""
    ready = [claim for claim, whole in claims if whole]
    verdicts = Counter(claim.verdict for claim in ready)
    strict = sum(_mistaken(claim) * len(ready) <= MISTAKES for claim in ready if claim.verdict != "not enough")
    hold, fail, still = (verdicts[verdict] for verdict in ("holds", "does not hold", "not enough"))
    return (
        f"Of {len(claims)} claims that have runs {len(ready)} have them of all their rows: {hold} hold, "
        f"{fail} do not, of {still} an interval has 0 in it. Each is judged for itself; at 5 % for all {len(ready)} "
        f"together (Bonferroni) {strict} would be decided."
    )


def _mistaken(claim: Claim) -> float:
    """How probable a verdict is where nothing is true: by its least sure part, or the surest that refutes."""
    known = [part.found for part in claim.parts if part.found]
    if claim.verdict == "holds":
        return max(found.p for found in known)
    return min(found.p for found in known if found.verdict == "worse") * len(known)


def _missing(claim: Claim, protocol: Protocol, records: Runs) -> str:
    """How many seeds it would take to decide a claim that is undecided, and how many hours of one core."""
    if claim.verdict != "not enough":
        return "decided"
    if not claim.parts or any(part.found is None for part in claim.parts):
        return "its first seed"
    against = any(part.found.mean < 0 for part in claim.parts if part.found)
    seen = f"at the difference seen{', which is against it' if against else ''}"
    seeds = max(protocol.seeds, *map(seeds_to_tell, claim.parts))
    if not seeds <= MOST_SEEDS:
        return f"more than {MOST_SEEDS} seeds, {seen}"
    there = min(part.found.seeds for part in claim.parts if part.found)
    first = [runs for label, runs in by_label(records).items() if label in (protocol.first or protocol.rows)]
    hours = (seeds - there) * sum(median(run["seconds"] for run in runs) for runs in first) / 3600
    guess = "by a guess " if there == 1 else ""  # from counting test images
    return f"{guess}{seeds:.0f} seeds in all, {hours:.1f} core-hours more, {seen}"


def seeds_to_tell(part: Judged) -> float:
    """Seeds of which the 95 % interval would leave out 0 at the mean and the spread that were seen; inf where none."""
    assert part.found is not None
    if not part.found.mean or part.spread is None:
        return math.inf
    for seeds in range(FEWEST_SEEDS, MOST_SEEDS + 1):
        if half_width(part.spread / math.sqrt(seeds), seeds) < abs(part.found.mean):
            return seeds
    return math.inf
