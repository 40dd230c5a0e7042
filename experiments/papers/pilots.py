"""What the first runs of a protocol tell of it: whether they train long enough, and what more seeds will show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import by_label
from routing_gym.experiments.engine.statistics import half_width
from routing_gym.experiments.papers.reproduction import Claim, Judged, Runs, Searched, mean_of
from routing_gym.experiments.papers.rows import Protocol
from routing_gym.experiments.papers.tables import heading, line

SEEDS = (3, 5)


def outlook(protocol: Protocol, records: Runs, claims: Sequence[Claim], searched: Searched = ()) -> list[str]:
    """Show what a protocol will be able to decide, as Markdown; nothing where none of its runs is finished.

    Args:
        protocol: The protocol.
        records: Its finished runs.
        claims: What is claimed, judged by all of them, also by those of seeds that lack a row.
        searched: Its search, by whose pace runs of the other rows take as long as they are said to.
    """
    of_row, lines = by_label(records), []
    for label, runs in of_row.items():
        seconds = mean_of(runs, "seconds")
        lines.append(line([label, str(len(runs)), f"{seconds / 60:.1f}", f"{late_gain(runs):+.2f}"]))
    pace: dict[str, list[float]] = {}
    for row, _, run in searched:
        if row.label not in of_row and (record := run.finished()):
            pace.setdefault(row.label, []).append(record["seconds"] / record["epochs"])
    lines += [line([label, "0", f"{np.mean(of) * protocol.epochs / 60:.1f}", ""]) for label, of in pace.items()]
    if not lines:
        return []
    (decisive,) = (claim for claim in claims if claim.text == protocol.decides)
    split = "".join(f", {split} split" for split in sorted({record["curve"]["judged_on"] for record in records}))
    gain = f"gain in the last fifth of the epochs{split}, points"
    lines[:0] = heading(["", "seeds", "minutes per run", gain])
    known = [part for part in decisive.parts if part.spread is not None]
    if not known:
        return [*lines, "", "Of what it decides no seed has all rows yet."]
    columns = [f"standard error of {seeds} seeds (± half interval)" for seeds in SEEDS]
    lines += ["", *heading(["what it decides by", *columns, "known from"]), *map(line, map(_expected, known))]
    if any(part.found and part.found.seeds == 1 for part in known):
        lines += ["", "What is known from one seed is from counting its test images (binomial, the two rows taken as "
                  "independent): it leaves out by how much training differs from seed to seed, so that it is a lower "
                  "bound."]  # fmt: skip
    return lines


def late_gain(runs: Runs) -> float:
    """Accuracy gained in the last fifth of the epochs, in points, mean over runs: near 0 where a curve is flat."""
    curves = ACCURACY.curves(runs)
    epochs = curves.shape[1]
    return float(100 * np.mean(curves[:, -1] - curves[:, epochs - math.ceil(epochs / 5) - 1]))


def _expected(part: Judged) -> list[str]:
    """Cells of the errors to expect of a part of a claim."""
    assert part.found is not None and part.spread is not None
    cells = []
    for seeds in SEEDS:
        error = part.spread / math.sqrt(seeds)
        cells.append(f"{error:.2g}{part.unit} (± {half_width(error, seeds):.2g})")
    seen = part.found.seeds
    return [part.numbers.rstrip("."), *cells, f"{seen} seeds" if seen > 1 else "test images"]
