"""Tables of Ramachandran and Le (2019), and of all agents on their network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import by_label
from routing_gym.experiments.papers.diversity.claims import counts_of, shuffled, specialization
from routing_gym.experiments.papers.diversity.rows import ALL_ON, CELLS_6X32, CELLS_6X64, CELLS_12X32
from routing_gym.experiments.papers.reproduction import Runs, among
from routing_gym.experiments.papers.tables import (
    EFFORT,
    LABEL,
    MACS,
    Column,
    accuracy,
    error,
    heading,
    judged_on,
    line,
    millions,
    table,
)

PRINTED_PARAMETERS = {CELLS_6X32: 2.5, CELLS_6X64: 9.6, CELLS_12X32: 7.8, ALL_ON: 4.8}
"""Table 4's millions of parameters per example."""


def _validation(runs: Runs) -> str:
    judged = [run["curve"] for run in runs if run["curve"]["judged_on"] == "validation"]
    return ACCURACY.text([1 - curve["validation_accuracy"][-1] for curve in judged]) if judged else ""


def _printed(form: str, of: Callable[[float], float]) -> Callable[[Runs], str]:
    """Return what shows the paper's accuracy as `of` makes it."""
    return lambda runs: "" if runs[0]["paper"] is None else f"*{100 * of(runs[0]['paper']):{form}}*"


def _printed_parameters(runs: Runs) -> str:
    printed = PRINTED_PARAMETERS.get(runs[0]["label"])
    return "" if printed is None else f"*{printed}*"


ERRORS: tuple[Column, ...] = (
    LABEL,
    ("test error %", error),
    ("paper", _printed(".2f", lambda accuracy: 1 - accuracy)),
    ("validation error %", _validation),
    MACS,
    ("parameters, M", millions("parameters")),
    *EFFORT,
)
DEPTH: tuple[Column, ...] = (
    LABEL,
    ("accuracy %", accuracy),
    ("paper", _printed(".1f", lambda accuracy: accuracy)),
    ("parameters per example, M", millions("parameters_used")),
    ("paper", _printed_parameters),
    ("all parameters, M", millions("parameters")),
    MACS,
    *EFFORT,
)


def errors(records: Runs) -> list[str]:
    """Show test and validation error beside the paper's test error."""
    return [*table(ERRORS, by_label(records).values()), "", judged_on(records)]


def depth(records: Runs) -> list[str]:
    """Show accuracy and parameters per example beside the paper's."""
    return [*table(DEPTH, by_label(records).values()), "", judged_on(records)]


def classes_and_experts(records: Runs) -> list[str]:
    """Show where the examples of every class go, in the first seed, and how much experts tell of classes, in all."""
    lines = errors(records)
    for label, runs in by_label(records).items():
        counts = counts_of(runs[0])
        share = 100 * counts / counts.sum(1, keepdims=True)
        lines += ["", f"{label}, seed {runs[0]['seed']}: percent of every class's choices.", ""]
        lines += heading(["class", *(f"expert {number}" for number in range(1, counts.shape[1] + 1))])
        lines += [line([str(number), *(f"{value:.0f}" for value in row)]) for number, row in enumerate(share)]
        told, by_chance = np.mean([(specialization(run), shuffled(run).mean()) for run in runs], 0)
        lines += ["", f"An expert tells {told:.3f} bits of the class, with labels shuffled {by_chance:.3f}."]
    return lines


def across(
    records: Runs, agents: Sequence[str], networks: Sequence[str], refused: Mapping[tuple[str, str], str]
) -> list[str]:
    """Show every agent on every network: accuracy, and what an instance costs.

    Args:
        records: Each with the name of its agent as `series` and of its network as `part`.
        agents: The rows.
        networks: The columns.
        refused: Why a pair cannot be; a pair that is neither there nor refused was not run.
    """

    def cell(agent: str, network: str) -> str:
        runs = among(records, series=agent, part=network)
        if not runs:
            return refused.get((agent, network), "not run")
        more = f", {len(runs)} seeds" if len(runs) > 1 else ""
        return f"{accuracy(runs)} at {millions('macs')(runs)}{more}"

    lines = heading(["", *networks])
    lines += [line([agent, *(cell(agent, network) for network in networks)]) for agent in agents]
    how = "Test accuracy in % at how many million multiply-accumulates"
    return [*lines, "", f"{how}; {_epochs_of(records)} epochs. {judged_on(records)}"]


def _epochs_of(records: Runs) -> str:
    """Say how many epochs there were, for each network if they differ."""
    epochs = {(record["part"], record["epochs"]) for record in records}
    if len({number for _, number in epochs}) == 1:
        return str(records[0]["epochs"])
    return " and ".join(f"{number} ({part})" for part, number in sorted(epochs))
