"""The tables of Ramachandran and Le (2019), and what they say in words and by their order, judged by recorded runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy  # its parts are imported when they are used

from routing_gym.experiments.engine.metrics import ACCURACY
from routing_gym.experiments.engine.records import Record, by_label
from routing_gym.experiments.papers.diversity import rows
from routing_gym.experiments.papers.judging import SEEN, Judge, judged
from routing_gym.experiments.papers.reproduction import Claim, Judged, Runs, among
from routing_gym.experiments.papers.tables import MACS, accuracy, by_row, error, heading, judged_on, line, millions

SHUFFLES = 200


def claims(records: Runs) -> list[Claim]:
    """Judge all claims by records that were trained in one way; for `series` and `part` see `Row`."""
    judge, of_omniglot = Judge(records), Judge(records, "series", part=rows.OMNIGLOT_EXPERTS)
    order = (rows.DIVERSE, rows.CONVS, rows.CONV5, rows.CONV3)
    said: dict[str, list[Judged]] = {
        (
            "Table 2: convolutions, pooling and identity err less than convolutions alone, these less than only 5x5, "
            "and these less than only 3x3"
        ): judge.in_order(*order),
        "In few steps: the order of Table 2 with k = 2": judge.in_order(*map(rows.from_the_task, order)),
        f"In few steps: unlike experts err less than 3x3 alone{SEEN}": [
            judge.less(rows.from_the_task(rows.DIVERSE), rows.from_the_task(rows.CONV3))
        ],
        "In few steps: unlike experts err less than 3x3 alone, and than 3x3 and identity": [
            judge.less(rows.from_the_task(rows.DIVERSE), rows.from_the_task(other))
            for other in (rows.CONV3, rows.CONTROL)
        ],
        "In few steps: k that falls over the layers errs less than k = 2": [
            judge.less(rows.FALLING_FROM_THE_TASK, rows.from_the_task(rows.DIVERSE))
        ],
        "Table 1: diverse routing errs less than single-task networks": [judge.less(rows.DIVERSE, rows.SINGLE_TASK)],
        "k that falls over the layers errs less than a small fixed k": [of_omniglot.less(rows.ANNEALED, rows.FIXED_K)],
        "Fig. 4: examples of a class tend to be routed through the same experts": [
            judge.positive("bits told of the class beyond chance", _more_than_by_chance, rows.SPECIALIZED)
        ],
        "Table 4: 96 decisions are less accurate than 48": [
            judge.less(rows.CELLS_6X32, rows.CELLS_12X32),
            judge.less(rows.CELLS_6X64, rows.CELLS_12X32),
        ],
    }
    return judged(said)


def counts_of(record: Record) -> np.ndarray:
    """Return `(C, A)`: how often the instances of each label took each choice at the first decision."""
    return np.array(record["routes_by_label"])[:, 0]


def mutual_information(counts: np.ndarray, instances: np.ndarray) -> float:
    """Return how many bits a choice tells of the label: Σ_i p(i) KL(p(label | i) ‖ p(label)), 0 where all choose alike.

    Args:
        counts: `(C, A)`: how often the instances of each label took each choice.
        instances: `(C,)`: how many there are.
    """
    joint = counts / counts.sum()
    by_chance = instances[:, None] / instances.sum() * joint.sum(0)
    return float(scipy.special.rel_entr(joint, by_chance).sum() / np.log(2))


def told_and_shuffled(record: Record) -> tuple[float, np.ndarray]:
    """Return the mutual information of label and choice at the first decision, and what it comes to be by chance.

    That is `(SHUFFLES,)`, with labels dealt out to the instances anew. No instance takes a choice twice, so that the
    labels of those that took one are drawn without replacement. Each choice is drawn for by itself, though instances
    take several: they add up, so that the mean is the same.
    """
    random, counts, instances = np.random.default_rng(0), counts_of(record), np.array(record["exits"]).sum((0, 1, 3))
    drawn = [random.multivariate_hypergeometric(instances, n, size=SHUFFLES) for n in counts.sum(0)]
    by_chance = [mutual_information(table, instances) for table in np.stack(drawn, -1)]
    return mutual_information(counts, instances), np.array(by_chance)


def _more_than_by_chance(runs: Runs) -> float:
    """Return by how much an expert tells more of the label, in bits, than it does of any shuffled ones."""
    told, by_chance = told_and_shuffled(runs[0])
    return told - by_chance.max()


def _validation(runs: Runs) -> str:
    judged = [run["curve"] for run in runs if run["curve"]["judged_on"] == "validation"]
    return ACCURACY.text([1 - curve["validation_accuracy"][-1] for curve in judged]) if judged else ""


def _printed(form: str, of: Callable[[float], float]) -> Callable[[Runs], str]:
    """Return what shows the paper's accuracy as `of` makes it."""
    return lambda runs: "" if runs[0]["paper"] is None else f"*{100 * of(runs[0]['paper']):{form}}*"


def _printed_parameters(runs: Runs) -> str:
    printed = rows.PRINTED_PARAMETERS.get(runs[0]["label"])
    return "" if printed is None else f"*{printed}*"


errors = by_row(
    ("test error %", error),
    ("paper", _printed(".2f", lambda accuracy: 1 - accuracy)),
    ("validation error %", _validation),
    MACS,
    ("parameters, M", millions("parameters")),
)
depth = by_row(
    ("accuracy %", accuracy),
    ("paper", _printed(".1f", lambda accuracy: accuracy)),
    ("parameters per example, M", millions("parameters_used")),
    ("paper", _printed_parameters),
    ("all parameters, M", millions("parameters")),
    MACS,
)


def classes_and_experts(records: Runs) -> list[str]:
    """Show where the examples of every class go, in the first seed, and how much experts tell of classes, in all."""
    lines = errors(records)
    for label, runs in by_label(records).items():
        counts = counts_of(runs[0])
        share = 100 * counts / counts.sum(1, keepdims=True)
        lines += ["", f"{label}, seed {runs[0]['seed']}: percent of every class's choices.", ""]
        lines += heading(["class", *(f"expert {number}" for number in range(1, counts.shape[1] + 1))])
        lines += [line([str(number), *(f"{value:.0f}" for value in row)]) for number, row in enumerate(share)]
        told, by_chance = (np.mean(values) for values in zip(*map(told_and_shuffled, runs), strict=True))
        lines += ["", f"An expert tells {told:.3f} bits of the class, with labels shuffled {by_chance:.3f}."]
    return lines


def across(records: Runs) -> list[str]:
    """Show accuracy and cost of every agent, the records' `series`, on every network, their `part`; or why not."""

    def cell(agent: str, network: str) -> str:
        runs = among(records, series=agent, part=network)
        if not runs:
            return rows.REFUSED.get((agent, network), "not run")
        more = f", {len(runs)} seeds" if len(runs) > 1 else ""
        return f"{accuracy(runs)} at {millions('macs')(runs)}{more}"

    lines = heading(["", *rows.NETWORKS])
    lines += [line([agent, *(cell(agent, network) for network in rows.NETWORKS)]) for agent in rows.COMPARED]
    epochs = {record["part"]: record["epochs"] for record in records}
    told = " and ".join(f"{number} ({part})" for part, number in sorted(epochs.items()))
    how = "Test accuracy in % at how many million multiply-accumulates"
    return [*lines, "", f"{how}; {told} epochs. {judged_on(records)}"]
