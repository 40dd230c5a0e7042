"""Tables of Ramachandran and Le (2019), and of all agents on their network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.diversity.claims import counts_of, shuffled, specialization
from routing_gym.experiments.papers.diversity.labels import ALL_ON, CELLS_6X32, CELLS_6X64, CELLS_12X32
from routing_gym.experiments.papers.tables import heading, line

PRINTED_PARAMETERS = {CELLS_6X32: 2.5, CELLS_6X64: 9.6, CELLS_12X32: 7.8, ALL_ON: 4.8}
"""Table 4's millions of parameters per example."""


def errors(records: Sequence[Record]) -> list[str]:
    """Show test and validation error beside the paper's test error."""
    header = ["", "test error %", "paper", "validation error %", "MACs, M", "parameters, M", "epochs", "s per epoch"]
    lines = heading([*header, "seeds"])
    for label, runs in by_label(records).items():
        on_validation = [run for run in runs if run["curve"]["judged_on"] == "validation"]
        validation = [1 - run["curve"]["validation_accuracy"][-1] for run in on_validation]
        lines.append(
            line(
                [
                    label,
                    f"**{ACCURACY.text([1 - run['test_accuracy'] for run in runs])}**",
                    "" if runs[0]["paper"] is None else f"*{100 * (1 - runs[0]['paper']):.2f}*",
                    ACCURACY.text(validation) if validation else "",
                    _millions(runs, "macs", 2),
                    _millions(runs, "parameters", 2),
                    *_effort(runs),
                ]
            )
        )
    return [*lines, "", _judged_on(records)]


def depth(records: Sequence[Record]) -> list[str]:
    """Show accuracy and parameters per example beside the paper's."""
    header = ["", "accuracy %", "paper", "parameters per example, M", "paper", "all parameters, M", "MACs, M"]
    lines = heading([*header, "epochs", "s per epoch", "seeds"])
    for label, runs in by_label(records).items():
        printed = PRINTED_PARAMETERS.get(label)
        lines.append(
            line(
                [
                    label,
                    f"**{ACCURACY.text([run['test_accuracy'] for run in runs])}**",
                    "" if runs[0]["paper"] is None else f"*{100 * runs[0]['paper']:.1f}*",
                    _millions(runs, "parameters_used", 2),
                    "" if printed is None else f"*{printed}*",
                    _millions(runs, "parameters", 2),
                    _millions(runs, "macs", 2),
                    *_effort(runs),
                ]
            )
        )
    return [*lines, "", _judged_on(records)]


def classes_and_experts(records: Sequence[Record]) -> list[str]:
    """Show where the examples of every class go, in the first seed, and how much experts tell of classes, in all."""
    lines = errors(records)
    for label, runs in by_label(records).items():
        counts = counts_of(runs[0])
        share = 100 * counts / counts.sum(1, keepdims=True)
        lines += ["", f"{label}, seed {runs[0]['seed']}: percent of every class's choices.", ""]
        lines += heading(["class", *(f"expert {number}" for number in range(1, counts.shape[1] + 1))])
        lines += [line([str(number), *(f"{value:.0f}" for value in row)]) for number, row in enumerate(share)]
        bits = [(specialization(run), shuffled(run).mean()) for run in runs]
        told, by_chance = np.mean(bits, 0)
        lines += ["", f"An expert tells {told:.3f} bits of the class, with labels shuffled {by_chance:.3f}."]
    return lines


def across(
    records: Sequence[Record],
    agents: Sequence[str],
    networks: Sequence[str],
    refused: Mapping[tuple[str, str], str],
) -> list[str]:
    """Show every agent on every network: accuracy, and what an instance costs.

    Args:
        records: Each with the name of its agent as `series` and of its network as `part`.
        agents: The rows.
        networks: The columns.
        refused: Why a pair cannot be; a pair that is neither there nor refused was not run.
    """
    lines = heading(["", *networks])
    for agent in agents:
        cells = []
        for network in networks:
            runs = [record for record in records if (record["series"], record["part"]) == (agent, network)]
            cells.append(_cell(runs) if runs else refused.get((agent, network), "not run"))
        lines.append(line([agent, *cells]))
    how = "Test accuracy in % at how many million multiply-accumulates"
    return [*lines, "", f"{how}; {_epochs_of(records)} epochs. {_judged_on(records)}"]


def _cell(runs: Sequence[Record]) -> str:
    more = f", {len(runs)} seeds" if len(runs) > 1 else ""
    return f"**{ACCURACY.text([run['test_accuracy'] for run in runs])}** at {_millions(runs, 'macs', 2)}{more}"


def _epochs_of(records: Sequence[Record]) -> str:
    """Say how many epochs there were, for each network if they differ."""
    epochs = {(record["part"], record["epochs"]) for record in records}
    if len({number for _, number in epochs}) == 1:
        return str(records[0]["epochs"])
    return " and ".join(f"{number} ({part})" for part, number in sorted(epochs))


def _effort(runs: Sequence[Record]) -> list[str]:
    seconds = np.mean([run["seconds"] / run["epochs"] for run in runs])
    return [str(runs[0]["epochs"]), f"{seconds:.0f}", str(len(runs))]


def _millions(runs: Sequence[Record], key: str, digits: int) -> str:
    values = [run[key] for run in runs]
    return "" if None in values else f"{np.mean(values) / 1e6:.{digits}f}"


def _judged_on(records: Sequence[Record]) -> str:
    """Say what data there was."""
    return f"On the test split of {'; '.join(sorted({record['dataset'] for record in records}))}."
